"""Holds: who has one, for how long, and who renews it. What gc does about them is tested beside jobs."""

from __future__ import annotations

import uuid

import pytest

from storage.cache import Cache
from storage.label_runs.folder import new_run_name
from storage.upkeep.garbage import collect_garbage
from storage.upkeep.leases import held_requests, held_runs, hold_requests, leave_hold, old_leavings, release_hold, renew_hold
from tests.storage.caches import make_labeller
from tests.storage.label_runs.made import start_run

REQUEST = "ab" * 32


@pytest.fixture
def cache():
    return Cache.at(f"memory://{uuid.uuid4().hex}")


def held(cache):
    now = cache.store.now()
    return held_requests(cache.store, now=now), held_runs(cache.store, now=now)


def test_a_run_that_is_waited_for_has_a_hold_of_its_name_until_it_ends(cache):
    run = new_run_name()
    with hold_requests(cache, requests=[REQUEST], run=run):
        assert held(cache) == ({REQUEST: f"runs/holds/{run}.json"}, {run})
    with hold_requests(cache, requests=[REQUEST]):
        requests, runs = held(cache)
        assert (list(requests), runs) == ([REQUEST], frozenset())
    assert held(cache) == ({}, frozenset())


def test_the_hold_of_a_detached_run_waits_two_weeks_for_whoever_commits(cache, skewed):
    run = new_run_name()
    leave_hold(cache, run=run, requests=[REQUEST])
    for days in (1.1, 13.9):
        skewed.days = days
        assert held(cache) == ({REQUEST: f"runs/holds/{run}.json"}, {run})
        assert list(old_leavings(cache.store, now=cache.store.now())) == []
    renew_hold(cache.store, run=run, requests=["cd" * 32])
    skewed.days = 27.0
    assert held(cache) == ({REQUEST: f"runs/holds/{run}.json"}, {run})
    skewed.days = 28.0
    assert held(cache) == ({}, frozenset())
    assert list(old_leavings(cache.store, now=cache.store.now())) == [f"runs/holds/{run}.json"]


def test_a_hold_that_was_taken_away_comes_back_for_a_day_where_work_goes_on(cache, skewed):
    run = new_run_name()
    leave_hold(cache, run=run, requests=[REQUEST])
    release_hold(cache.store, run=run)
    renew_hold(cache.store, run=run, requests=[REQUEST])
    skewed.days = 0.9
    assert held(cache)[1] == {run}
    skewed.days = 1.1
    assert held(cache) == ({}, frozenset())


def test_parts_of_a_detached_run_survive_until_somebody_commits_them(tmp_path, skewed):
    url = f"memory://{uuid.uuid4().hex}"
    labeller = make_labeller(tmp_path, url=url)
    run = start_run(labeller)
    leave_hold(labeller.cache, run=run.folder.name, requests=[labeller.request.fingerprint()])
    records = [run.commit(number) for number in range(6)]
    skewed.days = 5.0
    found = collect_garbage(url, delete=True)
    assert (found["num_files"], found["num_held_runs"], found["num_held_files"]) == (0, 1, 13)
    assert [labeller.cache.find_part(record.part) for record in records] == records
    skewed.days = 15.0
    assert collect_garbage(url, delete=True)["num_files"] > 12
    assert labeller.cache.store.names("") == []
