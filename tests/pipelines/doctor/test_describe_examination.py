"""An examination in words and in figures."""

from __future__ import annotations

import json

from pipelines.doctor.checkup import Examination
from pipelines.doctor.clocks import Offset
from pipelines.doctor.describe import describe_examination
from pipelines.doctor.findings import Finding
from pipelines.doctor.judge_engine import Engine, Outcome
from tests.pipelines.doctor.specimens import heard, report

ENGINE = Engine(runner="FlinkRunner", local=False, place="host:8081", environment="EXTERNAL", workers_at="localhost:50000")


def examination(*workers, findings=(), **changes):
    return Examination(
        name="birds",
        heard=heard(*workers, **changes),
        engine=ENGINE,
        outcome=Outcome(num_elements=16, seconds=9.0),
        findings=list(findings),
    )


def test_what_differs_is_marked():
    here = report(host="submitter", packages={"torch": "2.15.0+cpu"})
    workers = [
        report(5, elements=(0, 1), packages={"torch": "2.15.0+cu132"}),
        report(6, elements=(2,), packages={"torch": "2.15.0+cu132", "timm": "1.0.30"}),
    ]
    found = describe_examination(examination(*workers, here=here))
    lines = {line.split()[0]: line for line in found["text"].splitlines() if line.startswith("  ")}
    assert lines["torch"].endswith("other build")
    assert lines["timm"].endswith("1.0.31 (1), 1.0.30 (1)  <-- differs")
    assert "differs" not in lines["numpy"]
    assert lines["a:5"].split()[1] == "2"
    assert found["text"].startswith("birds, FlinkRunner, at host:8081, workers: EXTERNAL localhost:50000\n")
    assert found["versions"]["timm"] == {"here": "1.0.31", "workers": {"1.0.31": 1, "1.0.30": 1}}
    json.dumps(found)


def test_errors_come_last_where_people_read_with_their_remedies_on_lines_of_their_own():
    findings = [
        Finding(level="error", topic="cache", message="it is gone", remedy="Bring it back", places=("a:5",)),
        Finding(level="warning", topic="clocks", message="they differ"),
        Finding(level="ok", topic="device", message="cpu"),
    ]
    found = describe_examination(examination(report(5), findings=findings))
    assert found["text"].splitlines()[-6:] == [
        "ok      device    cpu",
        "WARNING clocks    they differ",
        "ERROR   cache     it is gone (a:5)",
        "                  Bring it back",
        "",
        "1 in the way of labelling, 1 to look at",
    ]
    assert (found["verdict"], found["problems"]) == ("error", ["it is gone (a:5). Bring it back"])
    assert describe_examination(examination(report(5)))["verdict"] == "ok"


def test_clocks_are_shown_as_far_as_they_are_known():
    offsets = [Offset(least=-1, most=20), Offset(least=99, most=101)]
    text = describe_examination(examination(report(5), report(6), offsets=offsets))["text"]
    assert "within 20.0 s" in text
    assert "+100.0 s ± 1.0" in text


def test_many_processes_are_listed_in_part():
    text = describe_examination(examination(*(report(pid) for pid in range(100, 150))))["text"]
    assert "a:119" in text
    assert "a:120" not in text
    assert "... and 30 more; --json lists them" in text
