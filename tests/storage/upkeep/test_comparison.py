"""Comparisons: every difference is named with both values, and nothing that agrees is."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.cache import Cache
from storage.config import ImageFolderConfig
from storage.errors import MismatchError
from storage.label_set import UsedPart
from storage.narrowing import why_not_narrower
from storage.sources import index_source, open_source
from storage.specs import CompactCodec, ExactCodec, Normalization, PartSpec, RequestSpec
from storage.upkeep.comparison import compare_classes, compare_label_sets, compare_request, compare_requests
from storage.upkeep.comparison_words import classes_in_words
from storage.upkeep.unit_comparison import SHOWN
from tests.storage.caches import CLASSES, make_labeller, make_request

OTHER_VALUES = {
    "teacher.kind": "transformers",
    "teacher.architecture": "large",
    "teacher.weights_sha256": "ab" * 32,
    "teacher.num_classes": 11,
    "teacher.precision": "bf16",
    "teacher.normalization": Normalization(mean=(0.1, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    "view.size": (9, 9),
    "view.scale": (0.5, 1.0),
    "view.ratio": (1.0, 1.0),
    "view.flip_probability": 0.0,
    "view.interpolation": "bilinear",
    "view.seed": 5,
    "target.num_classes": 11,
    "target.k": 2,
    "target.codec": CompactCodec(levels=99),
    "target.generation_temperature": 2.0,
}


def changed(request, *names):
    """A request with other values of some fields."""
    for name in names:
        section, _, field = name.partition(".")
        part = getattr(request, section).model_copy(update={field: OTHER_VALUES[name]})
        request = request.model_copy(update={section: part})
    return RequestSpec.model_validate_json(json.dumps(request.to_json()))


@pytest.fixture
def labeller(tmp_path):
    return make_labeller(tmp_path)


@pytest.fixture
def url(labeller):
    return labeller.cache.store.url


def source_at(folder, *, unit_size=7):
    return open_source(ImageFolderConfig(kind="image_folder", path=str(folder), unit_size=unit_size))


def compare(url, a, b, **options):
    found = compare_label_sets(url, label_set=a, other_label_set=b, **options)
    json.dumps(found)
    return found


def num_units(found):
    return {name: count["num_units"] for name, count in found["units"]["counts"].items() if count["num_units"]}


@settings(max_examples=60)
@given(names=st.sets(st.sampled_from(sorted(OTHER_VALUES))))
def test_every_field_that_differs_is_named_and_no_other(names):
    one = make_request()
    other = changed(one, *names)
    found = compare_requests(one, other)
    leaves = {"teacher.normalization": "teacher.normalization.mean", "target.codec": "target.codec.levels"}
    assert sorted(entry["field"] for entry in found) == sorted(leaves.get(name, name) for name in names)
    for entry, back in zip(found, compare_requests(other, one), strict=True):
        assert (entry["a"], entry["b"], entry["absent"]) == (back["b"], back["a"], None)
        assert entry["a"] != entry["b"]


def test_values_are_those_of_the_requests():
    found = {entry["field"]: entry for entry in compare_requests(make_request(), changed(make_request(), *OTHER_VALUES))}
    assert (found["teacher.precision"]["a"], found["teacher.precision"]["b"]) == ("fp32", "bf16")
    assert (found["teacher.normalization.mean"]["a"], found["teacher.normalization.mean"]["b"]) == ([0.5] * 3, [0.1, 0.5, 0.5])
    assert (found["target.k"]["a"], found["target.k"]["b"]) == (3, 2)
    assert found["teacher.weights_sha256"]["means"] == "other weights"


def test_fields_that_only_one_has_are_told_from_those_that_are_null():
    one, other = make_request(), make_request(num_views=1)
    found = {entry["field"]: entry["absent"] for entry in compare_requests(one, other)}
    assert found["view.kind"] is None
    assert found["view.seed"] == "b"
    assert found["view.resize_size"] == "a"
    (quality,) = compare_requests(make_request(), make_request(k=None))
    assert quality == {"field": "target.k", "a": 3, "b": None, "absent": None, "means": "other values are stored"}


def test_a_label_set_is_like_itself(labeller, url):
    label_set = labeller.label()
    found = compare(url, "tiny", label_set.manifest.id)
    assert found["same"]
    assert (found["fields"], found["provenance"], found["source"]) == ([], [], [])
    assert num_units(found) == {"same": 3}
    assert (found["a_serves_b"], found["b_serves_a"], found["classes"]["same"], found["a"]) == (None, None, True, found["b"])
    assert "A and B are the same label set" in found["text"]
    assert "differ" not in found["text"]


def test_another_request_is_told_by_field_and_whether_one_serves_the_other(labeller, url):
    labeller.label(name="a")
    replace(labeller, request=changed(labeller.request, "teacher.precision", "view.seed")).label(name="b")
    found = compare(url, "a", "b")
    assert [entry["field"] for entry in found["fields"]] == ["teacher.precision", "view.seed"]
    assert found["a_serves_b"] == found["b_serves_a"] == "teacher.precision differs"
    assert re.search(r"teacher.precision +A fp32 +B bf16 +\(the teacher computes with other numbers\)", found["text"])
    assert "Labels of A do not serve B: teacher.precision differs" in found["text"]
    assert "The same pictures in the same units" in found["text"]


def test_a_wider_label_set_serves_a_narrower_one_and_not_the_other_way(labeller, url):
    labeller.label(name="wide")
    narrow = replace(labeller, request=make_request(k=2))
    narrow.label(name="narrow")
    found = compare(url, "wide", "narrow")
    assert found["a_serves_b"] is None
    assert found["b_serves_a"] == why_not_narrower(narrow.request.target, asked=labeller.request.target)
    assert "Labels of A serve B, narrowed when read" in found["text"]
    assert "Labels of B do not serve A: target.k is 2, less than 3" in found["text"]


def test_label_sets_of_two_caches_are_compared(labeller, url, tmp_path):
    here = labeller.label()
    there = make_labeller(tmp_path / "there", num=3)
    there.label()
    found = compare(url, "tiny", "tiny", other_url=there.cache.store.url)
    assert (found["a"]["cache"], found["b"]["cache"]) == (url, there.cache.store.url)
    assert found["a"]["id"] == here.manifest.id
    assert (found["a"]["num_samples"], found["b"]["num_samples"]) == (17, 3)
    with pytest.raises(MismatchError, match=f"{there.cache.store.url} holds no label set 'other'"):
        compare(url, "tiny", "other", other_url=there.cache.store.url)


def test_units_are_told_by_content(labeller, url, tmp_path):
    labeller.label(name="a")
    folder = tmp_path / "pictures"
    (folder / "cat" / "013.jpg").write_bytes(b"another picture")
    for number in range(17, 30):
        (folder / "cat" / f"{number:03d}.jpg").write_bytes(b"new %d" % number)
    replace(labeller, source=source_at(folder)).label(name="b")
    found = compare(url, "a", "b")
    assert num_units(found) == {"same": 1, "changed": 1, "only_a": 1, "only_b": 3}
    assert found["units"]["counts"]["only_b"]["num_samples"] == 16
    assert found["units"]["changed"] == [
        {
            "unit": "00007-00014",
            "num_samples_a": 7,
            "num_samples_b": 7,
            "why": "the same samples and hard labels, but a picture's bytes differ",
        }
    ]
    assert (found["units"]["only_a"], found["units"]["only_b"]) == (
        ["00014-00017"],
        ["00014-00021", "00021-00028", "00028-00030"],
    )
    back = compare(url, "b", "a")
    assert num_units(back) == {"same": 1, "changed": 1, "only_a": 3, "only_b": 1}
    assert "00007-00014: the same samples and hard labels, but a picture's bytes differ" in found["text"]
    assert "What is asked for differs" not in found["text"]
    assert "Parts of units with the same content serve both" in found["text"]


def commit_units(labeller, names, *, name):
    """Commit a label set whose units are called otherwise, in that order."""
    units = index_source(labeller.source).units
    used = []
    for index, unit_name in names:
        part = PartSpec(request=labeller.request.fingerprint(), unit_digest=units[index].digest, first_view=0, num_views=2)
        used.append((UsedPart(unit_name=unit_name, part=part, first_view=0, num_views=2), labeller.cache.find_part(part)))
    return labeller.commit(used, name=name, num_views=2)


def test_renamed_units_are_reused(labeller, url):
    labeller.label(name="a")
    commit_units(labeller, [(0, "00000-00007"), (1, "x/1"), (2, "x/2")], name="b")
    found = compare(url, "a", "b")
    assert num_units(found) == {"same": 1, "moved": 2}
    assert found["units"]["moved"] == [{"a": "00007-00014", "b": "x/1"}, {"a": "00014-00017", "b": "x/2"}]
    assert "00007-00014 is x/1 in B" in found["text"]
    # Names that were exchanged are moves, not changes.
    commit_units(labeller, [(1, "00000-00007"), (0, "00007-00014"), (2, "00014-00017")], name="c")
    assert num_units(compare(url, "a", "c")) == {"same": 1, "moved": 2}


def test_another_order_of_the_same_units_is_said(labeller, url):
    labeller.label(name="a")
    commit_units(labeller, [(1, "00007-00014"), (0, "00000-00007"), (2, "00014-00017")], name="b")
    found = compare(url, "a", "b")
    assert num_units(found) == {"same": 3}
    assert not found["units"]["same_order"]
    assert not found["same"]
    assert "The same pictures in the same units, in another order" in found["text"]


@pytest.mark.parametrize("case", ["keys", "labels"])
def test_samples_of_changed_units_are_compared(labeller, url, tmp_path, case):
    labeller.label(name="a")
    folder = tmp_path / "pictures"
    if case == "keys":
        (folder / "bee" / "008.jpg").rename(folder / "bee" / "008b.jpg")
        expected = "1 samples only in A (bee/008.jpg ...), 1 samples only in B (bee/008b.jpg ...)"
        source = source_at(folder)
    else:
        config = ImageFolderConfig(kind="image_folder", path=str(folder), unit_size=7, classes=("cat", "bee", "ant"))
        source = open_source(config)
        expected = "the same samples, 6 of 7 with another hard label"
    replace(labeller, source=source).label(name="b")
    found = compare(url, "a", "b")
    why = {entry["unit"]: entry["why"] for entry in found["units"]["changed"]}
    assert expected in why.values()


def test_samples_that_cannot_be_read_are_said_so(labeller, url, tmp_path):
    label_set = labeller.label(name="a")
    (tmp_path / "pictures" / "cat" / "016.jpg").write_bytes(b"another")
    replace(labeller, source=source_at(tmp_path / "pictures")).label(name="b")
    labeller.cache.store.remove(label_set.tar_path(2))
    found = compare(url, "a", "b")
    assert found["units"]["changed"][0]["why"].startswith("its samples cannot be compared: ")
    assert "is missing" in found["text"]


def test_lists_are_short_and_counts_whole(tmp_path):
    labeller = make_labeller(tmp_path, num=SHOWN * 3)
    url = labeller.cache.store.url
    replace(labeller, source=source_at(tmp_path / "pictures", unit_size=1)).label(name="a")
    for path in (tmp_path / "pictures").rglob("*.jpg"):
        path.write_bytes(path.read_bytes() + b"!")
    replace(labeller, source=source_at(tmp_path / "pictures", unit_size=1)).label(name="b")
    found = compare(url, "a", "b")
    assert num_units(found) == {"changed": SHOWN * 3}
    assert len(found["units"]["changed"]) == SHOWN
    assert sum(entry["why"] is not None for entry in found["units"]["changed"]) == 3
    assert f"... and {SHOWN * 2} more" in found["text"]


def test_views_are_counted(labeller, url):
    labeller.label(name="two")
    labeller.label(name="four", num_views=4)
    labeller.label(name="three", num_views=3, views_per_part=1)
    assert "A has 2 views, B 4: views 2 to 3 are only in B" in compare(url, "two", "four")["text"]
    assert "A has 3 views, B 2: view 2 is only in A" in compare(url, "three", "two")["text"]


def test_provenance_is_told_apart_and_prevents_nothing(labeller, url):
    made = {"torch": "2.1", "device": "cpu"}
    replace(labeller, provenance=made).label(name="a")
    other = replace(labeller, request=make_request(k=2), provenance={**made, "torch": "2.2", "cuda": "12"})
    other.label(name="b")
    found = compare(url, "a", "b")
    assert found["provenance"] == [
        {"field": "torch", "a": ["2.1"], "b": ["2.2"], "absent": None},
        {"field": "cuda", "a": None, "b": ["12"], "absent": "a"},
    ]
    _, _, said = found["text"].partition("Made in different ways, which is recorded but prevents no reuse:\n")
    assert said.splitlines()[:2] == ["  torch  A 2.1  B 2.2", "  cuda   A -    B 12"]
    assert "torch" not in {entry["field"] for entry in found["fields"]}


@pytest.mark.parametrize(
    ("one", "other", "same", "said"),
    [
        (None, None, True, None),
        (CLASSES, CLASSES, True, None),
        (CLASSES, None, False, "Class names are known in A only"),
        (
            ("ant", "bee", "cat"),
            ("ant", "cat", "bee"),
            False,
            "3 and 3, the same names in another order): class 1 is 'bee' and 'cat'",
        ),
        (("ant", "bee"), ("ant", "bee", "cat"), False, "2 and 3, other names): class 2 is None and 'cat'"),
        (tuple("abcdefghijklmn"), tuple("ABCDEFGHIJKLMN"), False, "; ..."),
    ],
)
def test_class_lists(one, other, same, said):
    found = compare_classes(one, other)
    assert found["same"] is same
    assert len(found["positions"]) <= SHOWN
    text = "\n".join(classes_in_words(found))
    assert said in text if said else text == ""


def ask(labeller, request=None, *, source=None, num_views=2, classes=CLASSES):
    found = compare_request(
        labeller.cache.store.url,
        request=request or labeller.request,
        units=index_source(source or labeller.source).units,
        num_views=num_views,
        classes=classes,
    )
    json.dumps(found)
    return found


def test_an_empty_cache_has_nothing_near(labeller, url):
    found = ask(labeller)
    assert found == {"nearest": None, "text": f"{url} holds no labels at all: every row must be computed"}
    assert not Cache.at(url).store.exists("requests")


def test_what_is_there_is_said_to_be_there(labeller):
    label_set = labeller.label()
    found = ask(labeller)
    assert (found["nearest"], found["fields"], found["b_serves_a"]) == (labeller.request.fingerprint(), [], None)
    assert found["label_set"]["id"] == label_set.manifest.id
    assert found["parts"] == {"all_views": 3, "some_views": 0, "no_views": 0}
    assert "Of 3 units, 3 are labelled in all views, 0 in some, 0 in none" in found["text"]
    more = ask(labeller, num_views=5)
    assert more["parts"] == {"all_views": 0, "some_views": 3, "no_views": 0}
    assert "A has 5 views, B 2: views 2 to 4 are only in A" in more["text"]


@pytest.mark.parametrize(
    ("names", "nearest"),
    [
        (["target.generation_temperature"], "plain"),
        (["view.seed"], "plain"),
        (["teacher.precision"], "bf16"),
        (["teacher.precision", "view.size"], "bf16"),
        (["target.codec"], "plain"),
    ],
)
def test_the_nearest_request_is_found(labeller, names, nearest):
    requests = {"plain": labeller.request, "bf16": changed(labeller.request, "teacher.precision", "target.k")}
    for name, request in requests.items():
        replace(labeller, request=request).label(name=name)
    asked = changed(labeller.request, *names)
    found = ask(labeller, asked)
    assert found["nearest"] == requests[nearest].fingerprint()
    assert found["label_set"]["name"] == nearest
    assert found["fields"] == compare_requests(asked, requests[nearest])


def test_a_wider_request_is_nearer_than_one_that_does_not_serve(labeller):
    exact = make_request(codec=ExactCodec(), k=5)
    replace(labeller, request=exact).label(name="wide")
    replace(labeller, request=make_request(k=1)).label(name="less")
    found = ask(labeller)
    assert (found["nearest"], found["b_serves_a"]) == (exact.fingerprint(), None)
    assert "Labels of B serve A, narrowed when read" in found["text"]


def test_the_label_set_with_most_units_in_common_is_shown_and_damaged_ones_are_left_out(labeller, url, tmp_path):
    whole = labeller.label(name="whole")
    some = commit_units(labeller, [(0, "00000-00007")], name="some")
    assert ask(labeller)["label_set"]["id"] == whole.manifest.id
    (tmp_path / "cache" / whole.folder / "manifest.json").write_bytes(b"damaged")
    found = ask(labeller)
    assert found["label_set"]["id"] == some.manifest.id
    assert found["parts"]["all_views"] == 3
    assert num_units(found) == {"same": 1, "only_a": 2}
    (tmp_path / "cache" / some.folder / "manifest.json").write_bytes(b"damaged")
    found = ask(labeller)
    assert (found["label_set"], found["units"], found["parts"]["all_views"]) == (None, None, 3)
    assert "of which no label set is made" in found["text"]


def test_changed_pictures_are_the_reason(labeller, tmp_path):
    labeller.label()
    folder = tmp_path / "pictures"
    (folder / "cat" / "016.jpg").write_bytes(b"another")
    (folder / "bee" / "008.jpg").rename(folder / "bee" / "008b.jpg")
    found = ask(labeller, source=source_at(folder), classes=("ant", "cat", "bee"))
    assert num_units(found) == {"same": 1, "changed": 2}
    assert {entry["unit"]: entry["why"] for entry in found["units"]["changed"]} == {
        "00007-00014": "other samples, or another order",
        "00014-00017": "the same samples in the same order, but hard labels or pictures' bytes differ",
    }
    assert "the same names in another order" in found["text"]
    assert found["parts"] == {"all_views": 1, "some_views": 0, "no_views": 2}


def test_label_sets_without_units_are_compared(labeller, url):
    labeller.label(name="some")
    labeller.commit([], name="none", num_views=1)
    assert num_units(compare(url, "none", "some")) == {"only_b": 3}
    assert num_units(compare(url, "some", "none")) == {"only_a": 3}
    assert num_units(compare(url, "none", "none")) == {}
