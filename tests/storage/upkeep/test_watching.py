"""`decant cache watch` says how a run stands, how it ended, and what to do next."""

from __future__ import annotations

import io
import re
import sys
import threading
import time
import uuid

import pytest

from storage.errors import CacheError, SourceError
from storage.filesystem import Store
from storage.label_runs import following
from storage.label_runs.folder import RunTarget
from storage.label_runs.state import SILENT_SECONDS
from storage.upkeep import watching
from storage.upkeep.leases import leave_hold
from storage.upkeep.watching import WatchInterruptedError, list_runs, watch
from tests.storage.caches import make_labeller
from tests.storage.label_runs.made import start_run


@pytest.fixture
def url(tmp_path):
    return str(tmp_path / "cache")


@pytest.fixture
def labeller(tmp_path, url):
    return make_labeller(tmp_path, url=url)


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(following, "_SHORTEST_WAIT_SECONDS", 0.02)


def commit_all(run):
    for number in range(run.info.num_parts):
        run.commit(number)


def test_a_run_that_goes_on_is_told_once_with_its_figures(tmp_path, any_url):
    run = start_run(make_labeller(tmp_path, url=any_url))
    for number in (0, 1, 4):
        run.commit(number)
    run.hear()
    run.hear("host-2-1")
    time.sleep(1.1 if any_url.startswith("s3") else 0.1)  # S3 counts whole seconds
    found = watch(any_url, once=True)
    assert (found["state"], found["problems"], found["run"]) == ("running", [], run.folder.name)
    assert (found["num_parts"], found["num_done_parts"], found["num_rows"], found["num_done_rows"]) == (6, 3, 34, 17)
    assert (found["num_workers"], found["num_dead_letters"], found["num_failed_parts"]) == (2, 0, 0)
    assert found["rows_per_second"] == pytest.approx(17 / found["elapsed_seconds"])
    assert found["remaining_seconds"] == pytest.approx(found["elapsed_seconds"], rel=0.01)
    assert found["label_sets"] == [{"name": "tiny", "id": "0" * 32, "committed": False}]
    assert re.search(r"17 of 34 rows \(50\.0%\) in 3 of 6 parts, .* rows/s, \d\d:\d\d left, 2 workers\n", found["text"])
    assert found["jobs"] == ["decant-tiny-1"]
    assert "the engine's pages call it decant-tiny-1; it is ended there" in found["text"]
    assert f"watch it: decant cache watch {any_url} {run.folder.name}" in found["text"]


def test_a_run_that_has_ended_says_which_command_commits_the_label_set(labeller, url):
    run = start_run(labeller)
    commit_all(run)
    run.hear()
    found = watch(url)
    assert (found["state"], found["problems"], found["next"]) == ("done", [], "decant label tiny.yaml")
    assert "next: decant label tiny.yaml\n  commits the label set, in seconds and without the teacher" in found["text"]
    assert "still runs" not in found["text"]
    attached = start_run(labeller, detached=False, local=True, runner="FnApiRunner")
    assert "unless the command that started it still runs and does it" in watch(url, run=attached.folder.name)["text"]


def test_a_run_whose_label_set_is_committed_says_that(labeller, url):
    label_set = labeller.label(views_per_part=1).manifest.id
    target = RunTarget(name="tiny", request=labeller.request.fingerprint(), label_set=label_set)
    start_run(labeller, targets=(target,))
    found = watch(url)
    assert (found["state"], found["label_sets"]) == ("done", [{"name": "tiny", "id": label_set, "committed": True}])
    assert f"label set {label_set} (tiny) is committed" in found["text"]
    assert "next" not in found["text"]


def test_watching_goes_on_until_the_last_part_is_there(labeller, url, capsys):
    run = start_run(labeller)
    run.hear()

    def work():
        for number in range(6):
            time.sleep(0.1)
            run.commit(number)

    thread = threading.Thread(target=work)
    thread.start()
    found = watch(url, line_seconds=0.01)
    thread.join()
    assert (found["state"], found["num_done_parts"]) == ("done", 6)
    assert found["recent_rows_per_second"] is not None
    counts = [int(line.split()[1]) for line in capsys.readouterr().err.splitlines()]
    assert counts == sorted(counts)
    assert counts[0] < 34 == counts[-1]


def test_failed_units_end_it_with_what_workers_reported(labeller, url):
    run = start_run(labeller)
    for number in (0, 1, 2, 4, 5):
        run.commit(number)
    run.folder.report(run.parts[3].name, SourceError("a.tar is gone; put it back"), fatal=False)
    found = watch(url)
    assert (found["state"], found["problems"]) == ("failed", ["a.tar is gone; put it back"])
    assert "it failed: 1 parts are missing; what is there stays" in found["text"]
    assert f"{run.folder.path}/errors" in found["text"]
    assert "next: mend that, then: decant label tiny.yaml" in found["text"]


def test_an_error_that_stops_a_local_run_ends_it_at_once(labeller, url):
    run = start_run(labeller, local=True, detached=False)
    run.commit(0)
    run.hear()
    run.folder.report("setup-01234567", SourceError("no such weights"), fatal=True)
    assert watch(url)["problems"] == ["no such weights"]


def test_an_engine_may_try_again_after_such_an_error(labeller, url, monkeypatch):
    run = start_run(labeller)
    run.hear()
    run.folder.report(run.parts[0].name, CacheError("the store was away"), fatal=True)
    assert watch(url, once=True)["state"] == "running"
    commit_all(run)
    found = watch(url)
    assert (found["state"], found["problems"]) == ("done", [])


def test_a_silent_run_is_given_up_after_some_patience(tmp_path, skewed):
    url = f"memory://{uuid.uuid4().hex}"
    run = start_run(make_labeller(tmp_path, url=url))
    run.commit(0)
    run.hear()
    skewed.days = (SILENT_SECONDS + 60) / 86_400
    found = watch(url, once=True)
    assert (found["state"], found["problems"], found["num_workers"]) == ("silent", [], 0)
    assert "no worker was heard of for 02:3" in found["text"]
    found = watch(url, patience_minutes=1.0)
    assert found["state"] == "silent"
    assert found["problems"][0].startswith(f"run {run.folder.name}: no worker was heard of for 02:3")
    assert "go on: decant label tiny.yaml" in found["problems"][0]


def test_a_run_without_a_worker_is_waited_for(labeller, url):
    run = start_run(labeller)
    found = watch(url, once=True)
    assert (found["state"], found["silent_seconds"], found["remaining_seconds"]) == ("waiting", None, None)
    assert "no worker was heard of yet" in found["text"]
    started = time.monotonic()
    assert watch(url, patience_minutes=0.01)["problems"]
    assert time.monotonic() - started > 0.5
    run.hear()
    assert watch(url, once=True)["state"] == "running"


@pytest.mark.parametrize("minutes", [-1.0, float("nan")])
def test_no_patience_is_refused(labeller, url, minutes):
    start_run(labeller)
    with pytest.raises(CacheError, match="give 0 or more"):
        watch(url, patience_minutes=minutes)


def test_an_interrupt_ends_the_watching_and_says_that_the_run_goes_on(labeller, url, monkeypatch):
    run = start_run(labeller)

    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(watching.time, "sleep", interrupt)
    with pytest.raises(
        WatchInterruptedError, match=f"no longer watching; run {run.folder.name} goes on. Watch it again: "
    ) as caught:
        watch(url)
    assert caught.value.exit_code == 130


def test_a_store_that_is_away_for_a_while_does_not_end_the_watching(labeller, url, monkeypatch):
    run = start_run(labeller)
    failures = iter([False, True, True, False])
    files = Store.files

    def failing(self, folder, *, beginning=""):
        if folder.endswith("/alive") and next(failures, False):
            raise CacheError("away")
        return files(self, folder, beginning=beginning)

    monkeypatch.setattr(Store, "files", failing)
    commit_later = threading.Timer(0.3, commit_all, [run])
    commit_later.start()
    assert watch(url)["state"] == "done"
    commit_later.join()
    monkeypatch.setattr(Store, "files", lambda *_, **__: (_ for _ in ()).throw(CacheError("away")))
    with pytest.raises(CacheError, match="away"):
        watch(url, patience_minutes=0.002, show=False)


def test_a_store_that_cannot_be_written_can_be_watched(labeller, url, monkeypatch):
    run = start_run(labeller)
    commit_all(run)

    def refuse(self, name, data):
        raise CacheError("read only")

    monkeypatch.setattr(Store, "write", refuse)
    assert watch(url)["state"] == "done"


def test_the_newest_is_watched_and_others_that_go_on_are_named(labeller, url, capsys):
    older = start_run(labeller, run="20260131-120000-00000001")
    newer = start_run(labeller, run="20260131-130000-00000002")
    commit_all(newer)
    leave_hold(labeller.cache, run=older.folder.name, requests=["ab" * 32])
    assert watch(url)["run"] == newer.folder.name
    said = capsys.readouterr().err
    assert f"watching {newer.folder.name}, the newest run; 1 more go on: {older.folder.name}" in said
    assert watch(url, run="20260131-12", once=True)["run"] == older.folder.name
    assert watch(url, show=False)["run"] == newer.folder.name
    assert capsys.readouterr().err == ""


def test_runs_are_listed(labeller, url):
    with pytest.raises(CacheError, match="holds nothing, so no cache is there"):
        list_runs(url)
    labeller.label()
    assert list_runs(url)["runs"] == []
    assert "has no run that can be followed" in list_runs(url)["text"]
    runs = [start_run(labeller, run=f"20260131-120000-{number:08x}", name=f"birds-{number}") for number in range(22)]
    runs[21].hear()
    found = list_runs(url)
    assert [entry["run"] for entry in found["runs"]] == [run.folder.name for run in reversed(runs)][:20]
    first, second = found["runs"][:2]
    assert (first["num_workers"], second["num_workers"], second["silent_seconds"]) == (1, 0, None)
    assert first["silent_seconds"] < 20
    assert (first["num_parts"], first["num_rows"], first["runner"]) == (6, 34, "FlinkRunner")
    lines = found["text"].splitlines()
    assert re.search(r"34  FlinkRunner     00:\d\d ago +birds-21$", lines[1])
    assert re.search(r"34  FlinkRunner     never +birds-20$", lines[2])


def test_a_terminal_shows_a_bar(labeller, url, monkeypatch):
    run = start_run(labeller)
    commit_all(run)
    run.hear()
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", screen)
    assert watch(url)["state"] == "done"
    assert re.search(r"label: 100%\|.*\| 34/34 \[\d\d:\d\d<\?, .*row/s\]", screen.getvalue())
