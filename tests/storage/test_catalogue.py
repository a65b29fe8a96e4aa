"""What `decant cache` says of a cache: figures for machines, the same in words, and every problem by file."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from storage.catalogue import list_cache, show_label_set, verify_label_sets
from storage.errors import CacheError, CorruptError, MismatchError
from storage.label_set import LabelSet, UsedPart
from storage.remedies import REPAIR
from storage.sources import index_source
from storage.specs import CompactCodec, ExactCodec, PartSpec
from storage.upkeep.tags import set_tag
from tests.storage.caches import make_labeller, make_request

DEAD = frozenset({("ant/001.jpg", None), ("cat/016.jpg", 1), ("cat/016.jpg", 3)})


@pytest.fixture
def labeller(tmp_path):
    return make_labeller(tmp_path, dead=DEAD)


@pytest.fixture
def url(labeller):
    return labeller.cache.store.url


def test_an_empty_cache(url, tmp_path):
    for place in (url, str(tmp_path)):
        assert list_cache(place) == {
            "label_sets": [],
            "problems": [],
            "text": f"{place} holds no label set; make one with `decant label`",
        }
        with pytest.raises(CacheError, match="holds no label set; make one with `decant label`"):
            verify_label_sets(place, progress=False)


def test_label_sets_are_listed_with_all_their_names(labeller, url):
    one, two = labeller.label(name="one"), replace(labeller, request=make_request(seed=3)).label(name="two")
    labeller.label(name="again")
    found = list_cache(url)
    assert found["problems"] == []
    assert {entry["id"]: entry for entry in found["label_sets"]} == {
        label_set.manifest.id: {
            "id": label_set.manifest.id,
            "names": names,
            "tags": [],
            "teacher": "tiny",
            "view": "random_resized_crop",
            "num_views": 2,
            "num_rows": 31,
            "bytes": label_set.manifest.parts_bytes,
        }
        for label_set, names in ((one, ["again", "one"]), (two, ["two"]))
    }
    header, *lines = found["text"].splitlines()
    assert header.split() == ["id", "name", "teacher", "views", "rows", "bytes"]
    assert sorted(line.split()[0] for line in lines) == sorted([one.manifest.id, two.manifest.id])
    assert any("again, one" in line for line in lines)
    json.dumps(found)


@pytest.mark.parametrize("damage", ["flipped", "gone"])
def test_a_damaged_label_set_is_a_problem_and_hides_no_other(labeller, url, tmp_path, damage):
    broken = replace(labeller, request=make_request(seed=3)).label(name="broken")
    whole = labeller.label(name="whole")
    path = tmp_path / "cache" / broken.folder / "manifest.json"
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(b"?" + path.read_bytes()[1:])
    listed, verified = list_cache(url), verify_label_sets(url, progress=False)
    for found in (listed, verified):
        assert [entry["id"] for entry in found["label_sets"]] == [whole.manifest.id]
        (problem,) = found["problems"]
        assert problem.startswith(f"{path} is ")
        assert problem in found["text"]


def test_tags_are_listed_apart_and_a_damaged_name_is_a_problem_that_hides_nothing(labeller, url, tmp_path):
    label_set = labeller.label(name="one")
    set_tag(url, label_set="one", name="v1")
    damaged = tmp_path / "cache" / "names" / "two.json"
    damaged.write_bytes(b"{")
    found = list_cache(url)
    assert [(entry["id"], entry["names"], entry["tags"]) for entry in found["label_sets"]] == [
        (label_set.manifest.id, ["one"], ["v1"])
    ]
    (problem,) = found["problems"]
    assert problem.startswith(f"{damaged}: not a name this release can read")
    assert problem in found["text"]
    assert "one, v1" in found["text"]
    assert show_label_set(url, name="one")["id"] == show_label_set(url, name="v1")["id"] == label_set.manifest.id
    with pytest.raises(CorruptError, match="names/two.json: not a name this release can read"):
        show_label_set(url, name="two")
    # Deleting or labelling again mends it.
    assert labeller.label(name="two").manifest.id == label_set.manifest.id
    assert list_cache(url)["problems"] == []


@pytest.mark.parametrize(
    ("codec", "k", "said"),
    [
        (CompactCodec(levels=99), 3, ("top 3, compact codec at 99 levels, of 10 classes, temperature 1.5",)),
        (ExactCodec(), 2, ("top 2, exact codec, of 10 classes, temperature 1.5",)),
        (CompactCodec(), None, ("quality level, compact codec at 255 levels, of 10 classes, temperature 1.5",)),
    ],
)
def test_a_label_set_is_described(tmp_path, codec, k, said):
    request = make_request(codec=codec, k=k, generation_temperature=1.5)
    labeller = make_labeller(tmp_path, request=request, dead=DEAD)
    label_set = labeller.label()
    found = show_label_set(labeller.cache.store.url, name="tiny")
    text = found.pop("text")
    for words in (
        *said,
        label_set.manifest.id,
        "timm tiny, fp32",
        "5e" * 32,
        "2 x random_resized_crop 8x8, bicubic",
        "made by hand",
    ):
        assert words in text
    assert "17 in 3 units, 3 parts" in text
    assert "31, 2 dead letters" in text
    assert (found["id"], found["num_rows"], found["num_classes"], found["classes"]) == (
        label_set.manifest.id,
        31,
        10,
        ["ant", "bee", "cat"],
    )
    assert found["bytes_per_row"] == pytest.approx(label_set.manifest.parts_bytes / 31)
    assert (found["mass_kept"], found["entries_per_row"], found["agreement"]) == (0.5, 3.0, None)
    assert "dead_letters" not in found
    assert json.loads(json.dumps(found)) == found


def test_dead_letters_are_listed_on_request(labeller, url):
    labeller.label()
    found = show_label_set(url, name="tiny", with_dead_letters=True)
    assert found["dead_letters"] == [
        {"key": "ant/001.jpg", "position": 1, "view": None, "stage": "read", "reason": "made so"},
        {"key": "cat/016.jpg", "position": 2, "view": 1, "stage": "teacher", "reason": "made so"},
    ]
    assert "dead letter    ant/001.jpg at 1, all views, read: made so" in found["text"]
    assert "dead letter    cat/016.jpg at 2, view 1, teacher: made so" in found["text"]


def test_dead_letters_of_views_that_are_not_used_are_not_listed(labeller, url):
    labeller.label(name="four", num_views=4, views_per_part=4)
    used = []
    for indexed in index_source(labeller.source).units:
        part = PartSpec(request=labeller.request.fingerprint(), unit_digest=indexed.digest, first_view=0, num_views=4)
        used.append((UsedPart(unit_name=indexed.unit.name, part=part, first_view=0, num_views=2), labeller.cache.find_part(part)))
    labeller.commit(used, name="two", num_views=2)
    for name, num_letters in (("four", 3), ("two", 2)):
        found = show_label_set(url, name=name, with_dead_letters=True)
        assert len(found["dead_letters"]) == found["num_dead_letters"] == num_letters


def test_a_lost_record_is_named(labeller, url, tmp_path):
    label_set = labeller.label()
    record = next((tmp_path / "cache").rglob("*.v00000-00002.json"))
    record.unlink()
    with pytest.raises(CorruptError, match=f"{record} is missing, and with it the dead letters; run decant label again"):
        show_label_set(url, name="tiny", with_dead_letters=True)
    assert verify_label_sets(url, name="tiny", progress=False)["problems"] == [f"{record}: missing"]
    assert show_label_set(url, name=label_set.manifest.id)["num_rows"] == 31


def test_unknown_names_are_refused(labeller, url):
    labeller.label()
    for action in (show_label_set, lambda place, name: verify_label_sets(place, name=name, progress=False)):
        with pytest.raises(MismatchError, match="Did you mean 'tiny'?"):
            action(url, name="tyny")


@pytest.mark.parametrize("quick", [False, True])
def test_verify_counts_what_it_looked_at(labeller, url, quick, capsys):
    one, two = labeller.label(name="one"), replace(labeller, request=make_request(seed=3)).label(name="two")
    found = verify_label_sets(url, quick=quick)
    assert found["problems"] == []
    assert [entry["id"] for entry in found["label_sets"]] == sorted([one.manifest.id, two.manifest.id])
    for entry in found["label_sets"]:
        counts = {"num_parts": 3, "num_blocks": 10, "num_rows": 31, "num_problems": 0}
        assert {name: entry[name] for name in counts} == counts
    assert found["text"].count("sizes: right" if quick else "every byte: right") == 2
    only = verify_label_sets(url, name="two", quick=quick)
    assert [entry["name"] for entry in only["label_sets"]] == ["two"]
    assert capsys.readouterr().err == ""  # no progress bar where no terminal is


def test_verify_reports_problems_in_words(labeller, url, tmp_path):
    label_set = labeller.label()
    path = tmp_path / "cache" / label_set.tar_path(0)
    path.write_bytes(path.read_bytes()[:-1])
    found = verify_label_sets(url, progress=False)
    assert found["label_sets"][0]["num_problems"] == 1
    assert "every byte: 1 problems" in found["text"]
    assert found["text"].endswith(f"{found['problems'][0]}\n{REPAIR}")
    assert LabelSet.open(labeller.cache, name_or_id="tiny").manifest == label_set.manifest
