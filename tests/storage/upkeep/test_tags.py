"""Tags: names that people set and only they move, among names that follow experiments."""

from __future__ import annotations

import uuid
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.cache import Cache, NamedLabelSet
from storage.errors import CacheError, CorruptError, FormatError, MismatchError
from storage.label_set import LabelSet
from storage.upkeep.tags import check_experiment_name, check_tag, delete_tag, set_tag
from tests.storage.caches import make_labeller, make_request, read_tree


@pytest.fixture
def labeller(tmp_path):
    return make_labeller(tmp_path)


@pytest.fixture
def url(labeller):
    return labeller.cache.store.url


@pytest.fixture
def first(labeller):
    return labeller.label().manifest.id


@pytest.fixture
def second(labeller, first):
    return replace(labeller, request=make_request(seed=1)).label().manifest.id


def test_a_tag_stays_where_the_experiments_name_moves_on(labeller, url, first):
    assert set_tag(url, label_set="tiny", name="v1")["label_set"] == first
    moved = replace(labeller, request=make_request(seed=1)).label().manifest.id
    assert labeller.cache.names() == {"tiny": moved, "v1": first}
    assert LabelSet.open(labeller.cache, name_or_id="v1").manifest.id == first
    assert labeller.cache.find_name("v1") == NamedLabelSet(label_set=first, is_tag=True)
    assert labeller.cache.find_name("tiny") == NamedLabelSet(label_set=moved, is_tag=False)


def test_a_tag_of_another_cache_is_none(url, tmp_path, first):
    with pytest.raises(CacheError, match="holds no label set; make one with `decant label`"):
        set_tag(str(tmp_path / "elsewhere"), label_set=first, name="v1")
    assert not (tmp_path / "elsewhere").exists()


def test_tagging_twice_changes_nothing_and_moving_needs_force(url, first, second):
    set_tag(url, label_set=first, name="v1")
    before = read_tree(url)
    assert set_tag(url, label_set=first[:8], name="v1")["before"] == first
    assert read_tree(url) == before
    with pytest.raises(MismatchError, match=f"'v1' is a tag of {first} already; give --force to move it to {second}"):
        set_tag(url, label_set=second, name="v1")
    assert read_tree(url) == before
    found = set_tag(url, label_set=second, name="v1", force=True)
    assert (found["before"], found["label_set"], found["text"]) == (first, second, f"v1 points at {second}, moved from {first}")
    assert Cache.at(url).names()["v1"] == second


def test_the_name_of_an_experiment_becomes_a_tag_only_by_force(labeller, url, first, second):
    with pytest.raises(MismatchError, match=f"'tiny' is the name of an experiment, .*now {second}.*--force"):
        set_tag(url, label_set=first, name="tiny")
    set_tag(url, label_set=first, name="tiny", force=True)
    assert labeller.cache.find_name("tiny") == NamedLabelSet(label_set=first, is_tag=True)


def test_labelling_never_moves_a_tag_and_says_so(labeller, url, first, second):
    set_tag(url, label_set=first, name="best")
    other = replace(labeller, request=make_request(seed=2))
    with pytest.raises(MismatchError, match=f"'best' is a tag of .*points at {first}.*committed.*by this id.*another name"):
        other.label(name="best")
    assert labeller.cache.names()["best"] == first
    # What was computed is committed, and the experiment that made the tag's label set may go on.
    assert len(set(labeller.cache.label_set_ids())) == 3
    assert labeller.label(name="best").manifest.id == first
    assert labeller.cache.find_name("best") == NamedLabelSet(label_set=first, is_tag=True)


def test_an_experiment_whose_name_is_a_tag_is_told_before_it_starts(labeller, url, first, second):
    set_tag(url, label_set=first, name="best")
    check_experiment_name(labeller.cache, name="best", label_set=first)
    check_experiment_name(labeller.cache, name="tiny", label_set=first)
    check_experiment_name(labeller.cache, name="new", label_set=first)
    with pytest.raises(MismatchError, match=f"name: 'best' is a tag of .*points at {first}.*would make {second}"):
        check_experiment_name(labeller.cache, name="best", label_set=second)


def test_tags_are_deleted_and_label_sets_stay(url, first, second):
    set_tag(url, label_set=first, name="v1")
    with pytest.raises(MismatchError, match=f"'v1' points at {first}, not at {second}; nothing was removed"):
        delete_tag(url, name="v1", label_set="tiny")
    with pytest.raises(MismatchError, match="has no tag 'v2'; it has v1"):
        delete_tag(url, name="v2")
    with pytest.raises(MismatchError, match="'tiny' is the name of an experiment, no tag"):
        delete_tag(url, name="tiny")
    for pointed_at in (first, first[:10], "v1", None):
        set_tag(url, label_set=first, name="v1")
        assert delete_tag(url, name="v1", label_set=pointed_at)["label_set"] == first
        assert sorted(Cache.at(url).names()) == ["tiny"]
    assert delete_tag(url, name="tiny", force=True)["label_set"] == second
    assert Cache.at(url).names() == {}
    assert sorted(Cache.at(url).label_set_ids()) == sorted([first, second])


def test_a_tag_can_be_deleted_when_its_label_set_is_gone(labeller, url, first, tmp_path):
    set_tag(url, label_set=first, name="v1")
    (tmp_path / "cache" / "label_sets" / first / "manifest.json").unlink()
    with pytest.raises(CorruptError, match="manifest.json is missing"):
        LabelSet.open(labeller.cache, name_or_id="v1")
    assert delete_tag(url, name="v1", label_set=first)["label_set"] == first


def test_a_damaged_name_is_replaced_or_removed_only_by_force(labeller, url, first, tmp_path):
    path = tmp_path / "cache" / "names" / "v1.json"
    path.write_bytes(b"{")
    for action in (lambda: set_tag(url, label_set=first, name="v1"), lambda: delete_tag(url, name="v1")):
        with pytest.raises(FormatError, match=f"{path}: not a name.*--force"):
            action()
    assert path.read_bytes() == b"{"
    assert set_tag(url, label_set=first, name="v1", force=True)["label_set"] == first
    path.write_bytes(b"{")
    delete_tag(url, name="v1", force=True)
    assert not path.exists()


@pytest.mark.parametrize("place", ["new", "there"])
def test_names_that_differ_in_capitals_only_are_refused(labeller, url, first, place):
    set_tag(url, label_set=first, name="Best")
    with pytest.raises(MismatchError, match="'best' differs from 'Best' of .* only in capitals"):
        set_tag(url, label_set=first, name="best", force=place == "there")
    with pytest.raises(MismatchError, match="'TINY' differs from 'tiny'"):
        set_tag(url, label_set=first, name="TINY")
    assert sorted(labeller.cache.names()) == ["Best", "tiny"]


ODD = [
    "",
    ".",
    "..",
    "../names/tiny",
    "a/b",
    "a\\b",
    "a b",
    " v1",
    "v1\n",
    "v\0",
    "-v",
    "_v",
    ".v",
    "été 1",
    "最好",
    "x" * 129,
    "a:b",
    "*",
]


@pytest.mark.parametrize("name", ODD)
def test_odd_names_are_refused_with_one_that_would_do(url, first, name):
    before = read_tree(url)
    for force in (False, True):
        with pytest.raises(CacheError, match="cannot be a tag: give 1 to 128 of the letters") as caught:
            set_tag(url, label_set=first, name=name, force=force)
        if "for instance " in str(caught.value):
            check_tag(str(caught.value).rsplit("for instance ", 1)[1].strip("'"))
    assert read_tree(url) == before


def test_the_hint_resembles_what_was_meant():
    with pytest.raises(CacheError, match="for instance 'ete-1'"):
        check_tag("été 1")
    with pytest.raises(CacheError, match="for instance 'runs-best'"):
        check_tag("../runs/best")


@pytest.mark.parametrize("name", ["deadbeef", "ab" * 16, "20261120", "DEADBEEF0"])
def test_what_looks_like_an_id_is_refused(url, first, name):
    with pytest.raises(
        CacheError, match=f"'{name}' cannot be a tag: it looks like the id of a label set; give, for instance, 'v-{name}"
    ):
        set_tag(url, label_set=first, name=name)
    check_tag(f"v-{name}")


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.text(max_size=20) | st.from_regex(r"[A-Za-z0-9._/-]{1,12}", fullmatch=True))
def test_every_name_is_refused_or_is_one_file_that_is_found_again(tmp_path, name):
    place = tmp_path / uuid.uuid4().hex
    cache = Cache.at(str(place))
    try:
        check_tag(name)
    except CacheError:
        return
    cache.store.write(f"names/{name}.json", NamedLabelSet(label_set="ab" * 16, is_tag=True).to_bytes(name=name))
    assert [path.name for path in (place / "names").iterdir()] == [f"{name}.json"]
    assert cache.names() == {name: "ab" * 16}
    cache.store.remove(f"names/{name}.json")


def test_of_two_who_take_a_name_at_once_one_is_told(labeller, url, first, second, monkeypatch):
    # Another process tags between the look and the writing.
    store = labeller.cache.store
    create = type(store).create

    def taken(self, name, data):
        monkeypatch.setattr(type(store), "create", create)
        set_tag(url, label_set=second, name="v1")
        return create(self, name, data)

    monkeypatch.setattr(type(store), "create", taken)
    with pytest.raises(MismatchError, match=f"'v1' is a tag of {second} already"):
        set_tag(url, label_set=first, name="v1")
    assert labeller.cache.names()["v1"] == second
