"""What an engine's words mean."""

from __future__ import annotations

import pytest

from pipelines.doctor.judge_engine import Engine, Outcome, explain_failure, judge_engine
from tests.pipelines.doctor.specimens import heard, levels, report

FLINK = Engine(runner="FlinkRunner", local=False, place="host:8081", environment="EXTERNAL", workers_at="localhost:50000")


def test_whom_it_met_is_said_with_what_it_cannot_know():
    workers = [report(1, elements=(0, 1)), report(2, elements=(2,)), report(3, host="b", elements=(3,))]
    (found,) = judge_engine(heard(*workers), engine=FLINK, outcome=Outcome(num_elements=4, seconds=8.25))
    assert found.level == "ok"
    assert found.message.startswith("met 3 worker processes on 2 hosts, in 8.2 s, by 4 elements; a worker that got none")


def test_elements_that_nobody_met_are_lost_and_that_is_an_error():
    found = list(judge_engine(heard(report(1, elements=(0, 2))), engine=FLINK, outcome=Outcome(num_elements=3, seconds=1.0)))
    assert levels(found) == ["error", "ok"]
    assert "the job ended, but 1 of 3 elements were met by no worker" in found[0].message


@pytest.mark.parametrize(
    ("environment", "saying"),
    [
        ("EXTERNAL", "A worker pool must listen at localhost:50000 as each host of the engine sees it"),
        ("DOCKER", "pull the image"),
        ("PROCESS", "free slots"),
    ],
)
def test_a_job_that_did_not_come_back_is_explained_by_how_its_workers_start(environment, saying):
    engine = Engine(runner="FlinkRunner", local=False, place="h:1", environment=environment, workers_at="localhost:50000")
    (found,) = judge_engine(heard(), engine=engine, outcome=Outcome(num_elements=16, seconds=120.0, timed_out=True))
    assert found.level == "error"
    assert "did not come back within 120 s; no worker answered" in found.message
    assert saying in found.remedy


@pytest.mark.parametrize(
    ("text", "message", "remedy"),
    [
        ("ModuleNotFoundError: No module named 'pipelines'", "workers have no decant", "--setup_file"),
        ("ModuleNotFoundError: No module named 'pipelines.doctor'", "another decant, without pipelines.doctor", "older"),
        ("ModuleNotFoundError: No module named 'xxhash'", "workers find no module xxhash", "install its package"),
        ("o.a.f.r.jobmanager.scheduler.NoResourceAvailableException: Could not", "no free slots", "--parallelism"),
        ("java.io.InvalidClassException: x; local class incompatible: serialVersionUID", "not of one version", "--flink_version"),
        ('java.io.IOException: Cannot run program "docker": error=2', "Docker, which is not there", "EXTERNAL"),
        ("TypeError: code() argument 13 must be str, not int", "workers do not run Python 3.", "same minor version"),
        ("StatusCode.UNAVAILABLE details = failed to connect to all addresses", "localhost:50000", "worker_pool_main"),
        ("something nobody foresaw", "the job failed: in short", "engine's page"),
    ],
)
def test_known_failures_are_told_with_what_to_do(text, message, remedy):
    found = explain_failure(text, cause="in short", engine=FLINK)
    assert found.level == "error"
    assert message in found.message
    assert remedy in found.remedy


def test_a_long_failure_is_cut_to_its_end():
    found = explain_failure("x", cause="a" * 5000 + " the end", engine=FLINK)
    assert len(found.message) < 800
    assert found.message.endswith("the end")
    assert "does not say why" in explain_failure("", cause="", engine=FLINK).message
