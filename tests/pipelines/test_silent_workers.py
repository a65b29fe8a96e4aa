"""A worker that is gone is noticed where its engine does not; one that computes for long is not taken for it."""

from __future__ import annotations

import os
import socket
import time

import pytest

from pipelines import silent_workers
from pipelines.engine import EngineLostError
from pipelines.silent_workers import SilentWorkers
from storage.cache import Cache
from storage.errors import CacheError, SourceError
from storage.filesystem import Store
from storage.label_runs.heartbeat import Heartbeat
from tests.storage.caches import make_labeller
from tests.storage.label_runs.made import start_run


@pytest.fixture
def run(tmp_path):
    return start_run(make_labeller(tmp_path, url=str(tmp_path / "cache")))


@pytest.fixture(autouse=True)
def _hurry(monkeypatch):
    monkeypatch.setattr(silent_workers, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(silent_workers, "SILENT_SECONDS", 0.4)
    monkeypatch.setattr(silent_workers, "DEAD_SECONDS", 1.2)


def listen(workers, *, seconds):
    """Look as often as a job is looked at; return what came of it, and after how long."""
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        if workers.look():
            return time.monotonic() - started
        time.sleep(0.02)
    return None


def test_a_worker_that_is_gone_is_named_with_the_remedy(run):
    workers = SilentWorkers(run.folder, info=run.info)
    run.hear("gpu-host-7-4711-0badcafe")
    with pytest.raises(
        EngineLostError, match=r"worker process 4711 on host gpu-host-7 has not been heard of for .*run the same command again"
    ):
        listen(workers, seconds=5)


def test_a_worker_that_computes_for_long_is_waited_for(run):
    workers = SilentWorkers(run.folder, info=run.info)
    beats = Heartbeat(Cache.at(run.folder.store.url), run=run.folder.name, requests=[], beat_seconds=0.1)
    with beats.working():
        assert listen(workers, seconds=1.5) is None
    with pytest.raises(EngineLostError, match=f"worker process {os.getpid()} on host {socket.gethostname()} "):
        listen(workers, seconds=5)


def test_the_first_word_of_a_worker_is_waited_for_longer(run):
    workers = SilentWorkers(run.folder, info=run.info)
    assert listen(workers, seconds=0.8) is None
    with pytest.raises(EngineLostError, match="no worker was heard of for 1 seconds"):
        listen(workers, seconds=5)


@pytest.mark.parametrize("last", ["committed", "failed"])
def test_a_worker_that_is_gone_after_its_last_unit_left_nothing_to_do(run, last):
    workers = SilentWorkers(run.folder, info=run.info)
    for number in range(run.info.num_parts - 1):
        run.commit(number)
    run.hear()
    if last == "committed":
        run.commit(run.info.num_parts - 1)
    else:
        run.folder.report(run.parts[-1].name, SourceError("cannot be read"), fatal=False)
    assert listen(workers, seconds=5) is not None


def test_a_store_that_does_not_answer_says_nothing_of_workers(run, monkeypatch):
    workers = SilentWorkers(run.folder, info=run.info)
    run.hear()
    assert listen(workers, seconds=0.2) is None
    original = Store.files

    def fail(self, folder, *, beginning=""):
        raise CacheError("503")

    monkeypatch.setattr(Store, "files", fail)
    assert listen(workers, seconds=1.0) is None
    monkeypatch.setattr(Store, "files", original)
    # A worker, too, has a while then.
    assert listen(workers, seconds=0.2) is None
    with pytest.raises(EngineLostError):
        listen(workers, seconds=5)


def test_a_process_that_was_stopped_itself_does_not_count_that_time(run):
    workers = SilentWorkers(run.folder, info=run.info)
    run.hear()
    time.sleep(0.06)
    assert not workers.look()
    time.sleep(1.0)
    assert not workers.look()
