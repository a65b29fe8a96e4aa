"""Damage of every kind is found, set aside and made whole again; what is whole is not computed."""

from __future__ import annotations

import json
import shutil
import uuid
from pathlib import Path

import pytest

from pipelines import transforms
from pipelines.repair import repair
from storage.cache import Cache
from storage.errors import FormatError, MismatchError
from storage.hashing import canonical_json, seal, unseal
from storage.label_set import LabelSet
from storage.verify import verify
from tests.pipelines.networks import DRIFT
from tests.pipelines.repair.damage import (
    DAMAGES,
    OTHERS,
    PARTS,
    check_quarantine,
    check_whole,
    config_at,
    damaged_bytes,
    find,
    flip,
    label,
)
from tests.pipelines.support import (
    colour_teacher,
    save_teacher,
    snapshot,
)


def test_with_nothing_damaged_nothing_is_done_and_no_teacher_is_loaded(folder, loads):
    before = snapshot(folder / "cache")
    found = repair(config_at(folder), progress=False)
    assert (found["num_parts"], found["num_damaged_files"], found["problems"]) == (3, 0, [])
    assert found["num_bytes"] == sum(file.stat().st_size for file in (folder / "cache").rglob("*.tar"))
    assert "nothing was done" in found["text"]
    assert loads == []
    assert snapshot(folder / "cache") == before
    shutil.rmtree(folder / "pictures")
    assert repair(config_at(folder), progress=False)["problems"] == []


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", PARTS)
def test_a_damaged_part_is_set_aside_and_computed_again(folder, loads, kind, damage):
    before = snapshot(folder / "cache")
    path = find(folder, PARTS[kind], number=1)
    DAMAGES[damage](path)
    spoilt = damaged_bytes(folder, path)
    looked = repair(config_at(folder), dry_run=True, progress=False)
    assert len(looked["problems"]) == looked["num_damaged_parts"] == 1
    assert path.name in looked["problems"][0]
    assert damaged_bytes(folder, path) == spoilt
    assert loads == []
    found = repair(config_at(folder), progress=False)
    assert (found["num_damaged_parts"], found["num_recomputed_parts"], found["num_equal_parts"]) == (1, 1, 1)
    assert (found["num_damaged_files"], found["num_missing_files"]) == ((0, 1) if damage == "delete" else (1, 0))
    assert loads == ["timm"]
    assert found["problems"] == []
    check_quarantine(folder, found, spoilt)
    check_whole(folder, before)
    assert repair(config_at(folder), progress=False)["num_damaged_files"] == 0


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
@pytest.mark.parametrize("kind", OTHERS)
def test_damage_outside_of_parts_costs_no_teacher(folder, loads, kind, damage):
    before = snapshot(folder / "cache")
    path = find(folder, OTHERS[kind])
    if (kind, damage) == ("name", "flip"):
        path.write_bytes(b'{"label_set": 3}')
    else:
        DAMAGES[damage](path)
    spoilt = damaged_bytes(folder, path)
    found = repair(config_at(folder), progress=False)
    assert (found["num_damaged_parts"], found["num_recomputed_parts"], found["problems"]) == (0, 0, [])
    assert loads == []
    check_quarantine(folder, found, spoilt)
    check_whole(folder, before)


def test_manifest_records_and_a_tar_damaged_at_once(folder, loads):
    before = snapshot(folder / "cache")
    paths = [find(folder, OTHERS["manifest"]), find(folder, PARTS["record"]), find(folder, PARTS["tar"], number=2)]
    for path in paths:
        flip(path)
    spoilt = damaged_bytes(folder, *paths)
    looked = repair(config_at(folder), dry_run=True, progress=False)
    assert (looked["num_damaged_files"], loads) == (3, [])
    assert "its manifest is not whole" in looked["text"]
    found = repair(config_at(folder), progress=False)
    assert (found["num_recomputed_parts"], found["num_equal_parts"], found["problems"]) == (2, 2, [])
    check_quarantine(folder, found, spoilt)
    check_whole(folder, before)


def test_parts_are_made_anew_as_they_were_cut_whatever_the_config_says_now(folder):
    before = snapshot(folder / "cache")
    find(folder, PARTS["tar"]).unlink()
    changed = config_at(folder, generation={"views_per_part": 1, "batch_size": 4})
    assert repair(changed, progress=False)["num_equal_parts"] == 1
    check_whole(folder, before)


def test_a_part_that_serves_a_narrower_request_is_made_anew_in_its_own(folder):
    narrow = config_at(folder, target={"k": 1}, views=1).model_copy(update={"name": "narrow"})
    label(narrow)
    before = snapshot(folder / "cache")
    flip(find(folder, PARTS["tar"]))
    shutil.rmtree(folder / "cache" / "teachers")
    for spec in (folder / "cache" / "requests").glob("*/spec.json"):
        spec.unlink()
    found = repair(narrow, progress=False)
    assert (found["num_recomputed_parts"], found["num_equal_parts"], found["problems"]) == (1, 1, [])
    assert snapshot(folder / "cache") == before


def test_other_bytes_are_said_and_the_label_set_follows_them(folder, monkeypatch):
    config = config_at(folder, teacher=colour_teacher()).model_copy(update={"name": "colours"})
    label(config)
    before = LabelSet.open(Cache.at(config.cache), name_or_id="colours")
    victim = Path(config.cache) / before.tar_path(0)
    flip(victim)
    transforms._teachers.clear()
    monkeypatch.setenv(DRIFT, "1.05")
    found = repair(config, progress=False)
    assert (found["num_recomputed_parts"], found["num_equal_parts"], found["problems"]) == (1, 0, [])
    assert "not the same bytes" in found["text"]
    assert found["parts"][0]["was"] == victim.name != found["parts"][0]["is"]
    after = LabelSet.open(Cache.at(config.cache), name_or_id="colours")
    assert after.manifest.id == before.manifest.id
    assert verify(after).problems == ()


def test_a_label_set_that_reads_an_older_whole_tar_follows_without_a_teacher(folder, loads):
    config = config_at(folder)
    other = config.model_copy(update={"name": "other", "views": config.views.model_copy(update={"count": 1})})
    label(other)
    path = find(folder, PARTS["record"])
    record = json.loads(unseal(path.read_bytes()))
    tar = path.with_name(record["tar_name"])
    changed = path.with_name(record["tar_name"].rsplit(".", 2)[0] + ".0123456789abcdef.tar")
    # As after a repair on another device: a record of another tar, whole as well.
    changed.write_bytes(tar.read_bytes())
    path.write_bytes(seal(canonical_json({**record, "tar_name": changed.name})))
    found = repair(other, progress=False)
    assert (found["num_outdated_parts"], found["num_recomputed_parts"], found["problems"]) == (1, 0, [])
    assert loads == []
    assert changed.name in LabelSet.open(Cache.at(config.cache), name_or_id="other").parts.column("tar_name").to_pylist()


@pytest.mark.parametrize(
    ("change", "saying"),
    [
        ("teacher", "teacher.weights_sha256: it was made by"),
        ("picture", "it was made of content"),
        ("units", "the source holds"),
    ],
)
def test_what_this_config_cannot_compute_is_refused_before_anything_is_moved(folder, change, saying):
    flip(find(folder, PARTS["tar"], number=0))
    if change == "teacher":
        save_teacher(folder / "teacher.safetensors", seed=1)
    elif change == "picture":
        for picture in (folder / "pictures").rglob("000.png"):
            picture.write_bytes((picture.parent / "001.png").read_bytes())
    before = snapshot(folder / "cache")
    config = config_at(folder)
    if change == "units":
        config = config.model_copy(update={"source": config.source.model_copy(update={"unit_size": 6})})
    with pytest.raises(MismatchError, match=saying) as error:
        repair(config, progress=False)
    assert "nothing was moved" in str(error.value)
    assert snapshot(folder / "cache") == before
    assert not (folder / "cache" / "quarantine").exists()


@pytest.mark.parametrize("kind", ["manifest", "record"])
def test_files_of_a_newer_release_are_no_damage(folder, kind):
    path = find(folder, {**PARTS, **OTHERS}[kind])
    path.write_bytes(seal(canonical_json({**json.loads(unseal(path.read_bytes())), "format": 2})))
    before = snapshot(folder / "cache")
    with pytest.raises(FormatError, match="this release can read"):
        repair(config_at(folder), progress=False)
    assert snapshot(folder / "cache") == before


def test_a_label_set_that_never_was_is_simply_made(folder, loads):
    shutil.rmtree(folder / "cache")
    found = repair(config_at(folder), progress=False)
    assert (found["num_missing_files"], found["num_recomputed_parts"], found["problems"]) == (6, 3, [])
    assert "nothing was left that says what was committed" in found["text"]


def test_a_cache_that_is_no_local_folder_is_repaired_as_well(folder):
    config = config_at(folder).model_copy(update={"cache": f"memory://{uuid.uuid4().hex}"})
    label(config)
    store = Cache.at(config.cache).store
    before = {name: store.read(name) for name in store.names("") if name.startswith(("requests/", "label_sets/", "names/"))}
    victims = [
        next(name for name in before if name.endswith(ending)) for ending in (".tar", ".v00000-00002.json", "manifest.json")
    ]
    for name in victims:
        store.write(name, before[name][:-1] + b"?")
    found = repair(config, progress=False)
    assert (found["num_damaged_files"], found["problems"]) == (3, [])
    assert found["num_equal_parts"] == found["num_recomputed_parts"] > 0
    assert {name: store.read(name) for name in before} == before
    for name in victims:
        assert store.read(f"{found['quarantine']}/{name}") == before[name][:-1] + b"?"


def test_a_manifest_that_is_lost_and_a_config_that_changed_since_are_told_apart(folder):
    config = config_at(folder)
    known = LabelSet.open(Cache.at(config.cache), name_or_id="tiny").manifest.id
    find(folder, OTHERS["manifest"]).unlink()
    found = repair(config_at(folder, views=1), progress=False)
    assert found["label_set"] != known
    assert f"the name points at {known}, which was of another source or config" in found["text"]
    assert found["problems"] == []
