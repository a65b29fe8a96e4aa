"""Creating a file once: where the store can, where it forgets or refuses the condition, and on a disk without hard links."""

from __future__ import annotations

import errno
import os
import pickle
import threading
import uuid

import pytest

from storage import creation, filesystem
from storage.cache import Cache
from storage.errors import CacheError, MismatchError
from storage.filesystem import Store
from storage.upkeep.tags import set_tag
from tests.contracts.store_contract import everything
from tests.storage.caches import make_labeller, make_request
from tests.storage.faulty_s3 import Fault

UNABLE = [Fault.FORGET_CONDITION, Fault.REFUSE_CONDITION]


@pytest.fixture
def url(s3_bucket):
    return f"s3://{s3_bucket}/{uuid.uuid4().hex}"


def always(fault):
    return lambda request: fault if "if-none-match" in request.headers else None


def race(actions):
    """Run actions at the same time; return what they return."""
    barrier, results = threading.Barrier(len(actions)), [None] * len(actions)

    def run(position, action):
        barrier.wait()
        results[position] = action()

    threads = [threading.Thread(target=run, args=item) for item in enumerate(actions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.s3
def test_a_store_that_can_is_asked_once_and_says_nothing(faulty_s3, url):
    assert Store(url).check_writable() is None
    assert everything(url) == []
    num_requests = len(faulty_s3.seen)
    assert Store(url).creates_at_once
    assert Store(url).create("file", b"1")
    assert len(faulty_s3.seen) - num_requests == 1


@pytest.mark.s3
@pytest.mark.parametrize("fault", UNABLE)
def test_a_store_that_cannot_is_found_and_said_once(faulty_s3, url, fault):
    faulty_s3.start(always(fault))
    warning = Store(url).check_writable()
    assert warning.startswith(f"{url} cannot create a file only if there is none")
    for words in ("If-None-Match", "Labels stay safe", "tag", "Use a store that can, or let one job at a time"):
        assert words in warning
    assert Store(url).check_writable() is None
    assert not Store(url).creates_at_once
    assert everything(url) == []


@pytest.mark.s3
@pytest.mark.parametrize("fault", UNABLE)
def test_a_store_that_cannot_still_creates_once(faulty_s3, url, fault, monkeypatch):
    monkeypatch.setattr(creation, "SETTLE_SECONDS", 0.1)
    faulty_s3.start(always(fault))
    store = Store(url)
    assert store.create("folder/file", b"first") is True
    assert store.create("folder/file", b"second") is False
    assert Store(url).create("folder/file", b"first") is False
    assert store.read("folder/file") == b"first"
    assert everything(url) == ["folder/file"]


@pytest.mark.s3
def test_of_racing_writers_to_a_store_that_forgets_conditions_one_wins_and_its_bytes_stay(faulty_s3, url, monkeypatch):
    """Half of the races are between writers of the same bytes."""
    monkeypatch.setattr(creation, "SETTLE_SECONDS", 4.0)  # this machine may be slow
    faulty_s3.start(always(Fault.FORGET_CONDITION))
    assert not Store(url).creates_at_once
    data = {(number, who): b"%d" % (who if number % 2 else 0) * 100 for number in range(4) for who in range(2)}

    def writer(number, who):
        return lambda: Store(url).create(f"race/{number}", data[number, who])

    won = dict(zip(data, race([writer(*item) for item in data]), strict=True))
    for number in range(4):
        winners = [who for who in range(2) if won[number, who]]
        assert len(winners) == 1
        assert Store(url).read(f"race/{number}") == data[number, winners[0]]
    assert len(everything(url)) == 4


@pytest.mark.s3
def test_that_same_race_is_lost_by_some_who_trust_such_a_store(faulty_s3, url):
    """What the probe is for: without it every writer is told that it made the file."""
    faulty_s3.start(always(Fault.FORGET_CONDITION))
    fs, path = filesystem.filesystem_of(f"{url}/file")
    assert [creation.create_at_once(fs, path, data) for data in (b"first", b"second")] == [True, True]
    assert fs.cat_file(path) == b"second"


@pytest.mark.s3
def test_what_a_store_can_do_travels_to_workers(faulty_s3, url):
    faulty_s3.start(always(Fault.FORGET_CONDITION))
    store = Store(url)
    assert not store.creates_at_once
    pickled = pickle.dumps(store)
    filesystem._creating_at_once.clear()
    num_requests = len(faulty_s3.seen)
    assert not pickle.loads(pickled).creates_at_once
    assert len(faulty_s3.seen) == num_requests


@pytest.mark.s3
def test_a_condition_that_failed_is_understood_without_its_name(faulty_s3, url):
    """Some stores answer 412 and do not say which condition it was."""
    store = Store(url)
    assert store.creates_at_once
    assert store.create("file", b"first")
    faulty_s3.start(lambda request: Fault.BARE_PRECONDITION if request.method == "PUT" else None)
    assert store.create("file", b"second") is False
    assert faulty_s3.met[Fault.BARE_PRECONDITION]


@pytest.mark.s3
@pytest.mark.parametrize("fault", [Fault.DROP_AFTER, Fault.CUT])
def test_a_file_whose_creation_was_not_heard_of_is_ones_own(faulty_s3, url, fault):
    store = Store(url)
    assert store.creates_at_once
    assert store.create("other", b"same")
    faulty_s3.start(lambda request: fault if request.number == 0 else None)
    assert store.create("file", b"same") is True
    assert [request.method for request in faulty_s3.seen] == ["PUT", "PUT", "HEAD"]
    faulty_s3.start(lambda request: fault if request.number == 0 else None)
    assert store.create("other", b"same") is False


@pytest.mark.s3
def test_a_store_that_cannot_be_written_is_an_error_and_no_missing_skill(faulty_s3, s3_bucket):
    with pytest.raises(CacheError, match="cannot create s3://no-such-bucket/x"):
        Store("s3://no-such-bucket/x").create("file", b"1")


@pytest.mark.s3
def test_a_tag_that_is_taken_stays_in_a_store_that_forgets_conditions(faulty_s3, url, tmp_path, monkeypatch):
    monkeypatch.setattr(creation, "SETTLE_SECONDS", 0.1)
    labellers = [make_labeller(tmp_path / str(seed), url=url, request=make_request(seed=seed)) for seed in range(2)]
    label_sets = [labeller.label(name=f"by-{seed}").manifest.id for seed, labeller in enumerate(labellers)]
    filesystem._creating_at_once.clear()
    faulty_s3.start(always(Fault.FORGET_CONDITION))
    assert set_tag(url, label_set=label_sets[0], name="best")["text"].endswith("only if there is none: look again")
    with pytest.raises(MismatchError, match="--force"):
        set_tag(url, label_set=label_sets[1], name="best")
    assert Cache.at(url).names()["best"] == label_sets[0]


# A disk without hard links


@pytest.fixture
def no_links(monkeypatch):
    def link(*arguments, **options):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)


def test_a_disk_without_hard_links_is_found_and_creates_once(no_links, tmp_path, monkeypatch):
    url = str(tmp_path / "store")
    monkeypatch.setattr(creation, "SETTLE_SECONDS", 0.05)
    assert Store(url).check_writable().startswith(f"{url} cannot create a file only if there is none")
    assert Store(url).check_writable() is None
    monkeypatch.setattr(creation, "SETTLE_SECONDS", 3.0)  # this disk may be slow
    won = race([lambda who=who: Store(url).create("file", b"%d" % who) for who in range(4)])
    assert won.count(True) == 1
    assert Store(url).read("file") == b"%d" % won.index(True)
    assert Store(url).create("file", b"late") is False
    assert everything(url) == ["file"]


def test_a_disk_without_hard_links_that_nobody_asked_creates_once(no_links, tmp_path):
    assert Store(str(tmp_path)).create("file", b"1") is True
    assert Store(str(tmp_path)).create("file", b"2") is False
    assert Store(str(tmp_path)).creates_at_once is False
