"""Heads of teachers: gc keeps those that hidden states in use need, verify reads them."""

from __future__ import annotations

import pytest

from storage.cache import Cache
from storage.errors import CorruptError
from storage.heads import encode_head
from storage.specs import Float16Codec, HiddenStatesSpec
from storage.upkeep.leases import hold_requests
from storage.upkeep.sweep import HEADS, PARTIAL_FILES
from storage.verify import verify
from tests.storage.heads import CLASSIFIER, make_head
from tests.storage.text_caches import make_text_labeller, make_text_request
from tests.storage.upkeep.litter import collect, collector, counts


def request_with(head):
    target = HiddenStatesSpec(layers=(1, 2), tokens="all", width=6, codec=Float16Codec(), head_sha256=head.sha256())
    return make_text_request(target=target)


@pytest.fixture
def url(tmp_path):
    return str(tmp_path / "cache")


@pytest.fixture
def labelled(tmp_path):
    """A label set of hidden states and its head."""
    labeller = make_text_labeller(tmp_path, request=request_with(make_head()))
    labeller.cache.add_head(make_head())
    return labeller.label()


def heads_in(cache):
    return {name.removeprefix("heads/").removesuffix(".head") for name in cache.store.names("heads")}


def test_a_head_stays_with_its_label_set_and_goes_without(labelled, url):
    cache, head = Cache.at(url), make_head().sha256()
    other = cache.add_head(make_head(CLASSIFIER))
    assert counts(collect(url)) == {HEADS: 1}
    assert counts(collect(url, delete=True)) == {HEADS: 1}
    assert heads_in(cache) == {head} != {other}
    assert verify(labelled).problems == ()
    assert counts(collect(url, delete=True)) == {}
    cache.store.remove("names/texts.json")
    assert counts(collect(url, untagged=True, delete=True))[HEADS] == 1
    assert heads_in(cache) == set()


def test_young_heads_and_other_files_stay(labelled, url, partials_age_at_once):
    cache = Cache.at(url)
    cache.add_head(make_head(CLASSIFIER))
    cache.store.write("heads/notes.txt", b"kept")
    cache.store.write(f"heads/.{'ab' * 16}.partial", b"left")
    assert counts(collect(url, grace_hours=1, delete=True)) == {}
    assert counts(collect(url, delete=True)) == {HEADS: 1, PARTIAL_FILES: 1}
    assert cache.store.exists("heads/notes.txt")


@pytest.mark.parametrize("is_written", [True, False])
def test_the_head_of_a_request_that_a_job_holds_stays(url, is_written):
    # The job may not have written its request yet: then nobody knows which head is its own.
    cache, request = Cache.at(url), request_with(make_head())
    sha256, other = cache.add_head(make_head()), cache.add_head(make_head(CLASSIFIER))
    if is_written:
        cache.add_request(request)
    with hold_requests(cache, requests=[request.fingerprint()]):
        collect(url, delete=True)
    assert heads_in(cache) == ({sha256} if is_written else {sha256, other})
    collect(url, delete=True)
    assert heads_in(cache) == set()


def test_a_head_that_came_into_use_meanwhile_stays(tmp_path, url):
    labeller = make_text_labeller(tmp_path, request=request_with(make_head()))
    sha256 = labeller.cache.add_head(make_head())
    running = collector(url)
    found = list(running.find())
    assert [garbage.kind for garbage in found] == [HEADS]
    labeller.label()
    assert running.remove(found) == []
    assert heads_in(labeller.cache) == {sha256}


def test_what_cannot_be_read_keeps_all_heads(labelled, url):
    cache = Cache.at(url)
    cache.add_head(make_head(CLASSIFIER))
    cache.store.write(f"requests/{labelled.manifest.request.fingerprint()}/spec.json", b"{}")
    assert counts(collect(url, delete=True)) == {}
    assert len(heads_in(cache)) == 2


def test_verify_names_a_head_that_is_missing_damaged_or_another(labelled, url):
    cache, sha256 = Cache.at(url), make_head().sha256()
    file = f"heads/{sha256}.head"
    data = cache.store.read(file)
    for damaged, problem in ((None, "is missing"), (data[:-1], "checksum"), (encode_head(make_head(seed=1)), "another head")):
        cache.store.remove(file)
        if damaged is not None:
            cache.store.write(file, damaged)
        (found,) = verify(labelled).problems
        assert file in found
        assert problem in found
        assert verify(labelled, quick=True).problems == ()
        with pytest.raises(CorruptError, match=problem):
            cache.head(sha256)


def test_verify_reads_blocks_of_texts(tmp_path):
    labeller = make_text_labeller(tmp_path)
    label_set = labeller.label(num_views=2)
    report = verify(label_set)
    assert report.problems == ()
    assert report.num_rows == label_set.manifest.num_rows == 60
    path = label_set.tar_path(0)
    data = bytearray(label_set.cache.store.read(path))
    data[label_set.parts.column("blocks")[0].as_py()[1]["offset"] + 40] ^= 1
    label_set.cache.store.write(path, bytes(data))
    (found,) = verify(label_set).problems
    assert path in found
