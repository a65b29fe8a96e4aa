"""Readers that stop at damage name the command that mends it, and it does."""

from __future__ import annotations

import shutil

import pytest

import decant
from pipelines import transforms
from pipelines.label import plan_run, run_label
from storage.cache import Cache
from storage.errors import CorruptError
from storage.hashing import key_hash
from storage.label_set import LabelSet, commit_label_set, label_set_id
from tests.pipelines.repair.damage import (
    DAMAGES,
    OTHERS,
    PARTS,
    check_whole,
    config_at,
    find,
    flip,
    label,
    repaired_by_command,
    rows_of,
)
from tests.pipelines.support import (
    snapshot,
)


@pytest.mark.parametrize("damage", DAMAGES)
def test_readers_stop_at_a_damaged_tar_with_its_name_and_the_command_that_mends_it(folder, damage):
    config, path = config_at(folder), find(folder, PARTS["tar"], number=1)
    expected, before = rows_of(config), snapshot(folder / "cache")
    DAMAGES[damage](path)
    if damage in {"append", "truncate"}:
        # What lies behind the blocks of rows is found by those who read every byte.
        assert rows_of(config) == expected
    else:
        with pytest.raises(CorruptError, match=f"{path}.*; run decant repair CONFIG, with the config that made these labels"):
            rows_of(config)
    assert decant.main(["cache", "verify", str(folder / "cache")]) == 1
    assert repaired_by_command(folder) == 0
    assert rows_of(config) == expected
    check_whole(folder, before)


def test_a_run_stops_at_a_damaged_record_with_its_name_and_the_command_that_mends_it(folder):
    wider, path = config_at(folder, views=3), find(folder, PARTS["record"])
    before = path.read_bytes()
    flip(path)
    with pytest.raises(CorruptError, match=f"{path}.*; run decant repair CONFIG, with the config that made these labels"):
        label(wider)
    assert repaired_by_command(folder) == 0
    assert path.read_bytes() == before
    # What was computed before the run met the record stays.
    assert label(wider).num_computed_rows == 0
    assert len(rows_of(wider)) == 36


def test_a_damaged_request_is_refused_with_its_name_and_the_command_that_mends_it(folder):
    path, before = find(folder, OTHERS["spec"]), snapshot(folder / "cache")
    flip(path)
    with pytest.raises(CorruptError, match=f"{path}.*; run decant repair CONFIG, with the config that made these labels"):
        Cache.at(str(folder / "cache")).request(path.parent.name)
    assert repaired_by_command(folder) == 0
    check_whole(folder, before)


def test_rows_of_a_writer_at_fault_are_found_and_mended_though_every_checksum_is_right(folder, monkeypatch):
    config = config_at(folder)
    expected = rows_of(config)
    shutil.rmtree(folder / "cache")
    monkeypatch.setattr("storage.parts.key_hash", lambda keys: key_hash([*keys, "one more"]))
    label(config)
    monkeypatch.undo()
    with pytest.raises(CorruptError, match="is not of the samples .* that its part lists; run decant repair CONFIG"):
        rows_of(config)
    assert repaired_by_command(folder) == 0
    assert rows_of(config) == expected


def test_a_label_set_that_names_parts_of_other_labels_is_mended_by_labelling_again(folder, loads):
    config = config_at(folder)
    expected, tiny = rows_of(config), LabelSet.open(Cache.at(config.cache), name_or_id="tiny").manifest
    warm = config_at(folder, target={"k": 2, "generation_temperature": 2.0}).model_copy(update={"name": "warm"})
    run = plan_run(warm, progress=False)
    run_label(run, progress=False)
    transforms._teachers.clear()
    loads.clear()
    parts = list(zip(run.plan.parts, run.cache.find_parts(used.part for used in run.plan.parts), strict=True))
    identity = label_set_id(request=tiny.request.fingerprint(), parts=run.plan.parts)
    options = {"num_views": tiny.num_views, "classes": tiny.classes, "source": tiny.source}
    commit_label_set(run.cache, identity=identity, name="tiny", request=tiny.request, parts=parts, **options)
    with pytest.raises(CorruptError, match="is of other labels: target.generation_temperature is 2.0.*; run decant label again"):
        rows_of(config)
    assert label(config).num_computed_rows == 0
    assert rows_of(config) == expected
    assert loads == []
