"""Workers are heard while they work, and keep gc off their run when whoever started it is gone."""

from __future__ import annotations

import json
import os
import time

import pytest

from storage.errors import CacheError
from storage.filesystem import Store
from storage.label_runs import heartbeat
from storage.label_runs.folder import RunFolder, new_run_name
from storage.label_runs.heartbeat import Heartbeat
from storage.upkeep.leases import held_requests, held_runs
from tests.storage.caches import make_labeller


@pytest.fixture
def cache(tmp_path):
    return make_labeller(tmp_path).cache


def beating(cache, *, run, **options):
    return Heartbeat(cache, run=run, requests=["ab" * 32], **options)


def test_one_file_a_worker_is_written_while_it_works_and_not_afterwards(cache):
    run = RunFolder(store=cache.store, name=new_run_name())
    beats = beating(cache, run=run.name, beat_seconds=0.05)
    other = beating(cache, run=run.name)
    assert run.last_heard() == {}
    with beats.working():
        (name,) = run.last_heard()
        first = run.last_heard()[name]
        assert f"-{os.getpid()}-" in name
        deadline = time.monotonic() + 20
        while run.last_heard()[name] <= first:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    time.sleep(0.1)
    last = run.last_heard()[name]
    time.sleep(0.3)
    assert run.last_heard() == {name: last}
    with other.working():
        assert len(run.last_heard()) == 2
    (file,) = cache.store.names(f"{run.path}/alive/{name}.json") or [f"{run.path}/alive/{name}.json"]
    assert json.loads(cache.store.read(file))["pid"] == os.getpid()


def test_short_work_is_not_told_each_time(cache, monkeypatch):
    written = []
    original = Store.write
    monkeypatch.setattr(Store, "write", lambda self, name, data: written.append(name) or original(self, name, data))
    beats = beating(cache, run=new_run_name(), beat_seconds=60.0)
    for _ in range(20):
        with beats.working():
            pass
    assert len(written) == 1
    beats.beat(after_seconds=30.0)
    assert len(written) == 1
    beats.beat()
    assert len(written) == 2


def test_a_long_run_renews_the_hold_that_its_submitter_left(cache, monkeypatch):
    run = new_run_name()
    beats = beating(cache, run=run)
    beats.beat()
    assert held_runs(cache.store, now=cache.store.now()) == frozenset()
    monkeypatch.setattr(heartbeat, "_RENEW_SECONDS", 0.0)
    beats.beat()
    now = cache.store.now()
    assert held_runs(cache.store, now=now) == {run}
    assert held_requests(cache.store, now=now) == {"ab" * 32: f"runs/holds/{run}.json"}


def test_a_store_that_fails_does_not_end_the_work(cache, monkeypatch):
    def fail(self, name, data):
        raise CacheError("down")

    beats = beating(cache, run=new_run_name())
    with monkeypatch.context() as patched:
        patched.setattr(Store, "write", fail)
        with beats.working():
            pass
    with beats.working():
        assert len(cache.store.names("runs")) == 1
