"""Caches of which a part was copied, that others wrote, or that cannot be written: whole rows or an error, and the way out."""

from __future__ import annotations

import json
import shutil
import subprocess

import numpy as np
import pytest

from storage.cache import Cache
from storage.config import ImageFolderConfig
from storage.errors import CacheError
from storage.hashing import canonical_json, seal, unseal
from storage.label_set import LabelSet
from storage.sources import open_source
from storage.streams.label_stream import LabelStream
from tests.integration.support import refuse
from tests.integration.test_bad_stores import mounted
from tests.pipelines.support import folder_source, picture, snapshot, write_folder

TRAINING = {
    "student": {"name": "test_vit", "kwargs": {"img_size": 16, "patch_size": 8, "depth": 1}},
    "targets": {"kind": "cached"},
    "epochs": 1,
    "batch_size": 8,
    "torch_threads": 1,
    "device": "cpu",
}


@pytest.fixture
def labelled(command, made, tmp_path):
    """A config whose labels are in `tmp_path/cache`, and every file of them."""
    config = made()
    assert command("label", config).status == 0
    return config, snapshot(tmp_path / "cache")


def read_rows(cache, pictures):
    """Every row of the label set as a reader gets it, or the error it gets."""
    source = open_source(ImageFolderConfig(kind="image_folder", path=str(pictures), unit_size=8))
    stream = LabelStream(LabelSet.open(Cache.at(str(cache)), name_or_id="tiny"), source=source)
    found = []
    for view in range(2):
        for block, count in enumerate(stream.block_rows(epoch=view).tolist()):
            rows = stream.read(epoch=view, block_ids=np.full(count, block), rows=np.arange(count))
            found += zip(rows.keys, rows.soft_labels.densify().tolist(), strict=True)
    return found


LEFT_OUT = {
    "records": "requests/*/*.v*.json",
    "tars": "requests/*/*.tar",
    "parts": "requests/*/*.v*",
    "requests": "requests",
    "label sets": "label_sets",
    "tables": "label_sets/*/parts-*.parquet",
    "names": "names",
    "memos": "[st]*e*s",
}


@pytest.mark.parametrize("what", LEFT_OUT)
@pytest.mark.parametrize("how_many", ["all", "one"])
def test_a_copy_that_lacks_files_reads_right_or_not_at_all_and_labelling_again_makes_it_whole(
    command, labelled, tmp_path, pictures, what, how_many
):
    config, files = labelled
    expected = read_rows(tmp_path / "cache", pictures)
    victims = sorted((tmp_path / "cache").glob(LEFT_OUT[what]))
    for victim in victims if how_many == "all" else victims[:1]:
        shutil.rmtree(victim) if victim.is_dir() else victim.unlink()
    if what in {"records", "memos"}:
        assert read_rows(tmp_path / "cache", pictures) == expected
    else:
        with pytest.raises(CacheError, match="decant (label|repair)"):
            read_rows(tmp_path / "cache", pictures)
    if what in {"records", "tars", "parts", "requests", "tables"}:
        ended = command("cache", "verify", tmp_path / "cache")
        assert ended.status == 1
        assert "missing" in ended.out
        assert "run decant repair CONFIG" in ended.out
    report = command("label", config, "--json")
    assert report.status == 0
    # What is whole is not computed again.
    lost = {"records": 3, "tars": 3, "parts": 3, "requests": 3}.get(what, 0)
    assert report.json["num_computed_rows"] == 16 * (lost if how_many == "all" else 3 if what == "requests" else min(lost, 1))
    assert snapshot(tmp_path / "cache") == files
    assert command("cache", "verify", tmp_path / "cache").status == 0


@pytest.mark.parametrize("what", ["requests/*/*.v*.json", "label_sets/*/manifest.json"])
def test_a_cache_of_a_newer_release_is_refused_by_name_and_not_touched(command, labelled, made, tmp_path, what):
    config, _ = labelled
    path = sorted((tmp_path / "cache").glob(what))[0]
    path.write_bytes(seal(canonical_json({**json.loads(unseal(path.read_bytes())), "format": 2})))
    before = snapshot(tmp_path / "cache")
    said = [path.name, "this release can read"]
    ended = command("cache", "verify", tmp_path / "cache")
    assert ended.status == 1
    assert all(words in ended.out for words in said)
    if "manifest" in what:
        refuse(command("label", config), status=1, saying=said)
        refuse(command("train", made("train", training={**TRAINING, "output": str(tmp_path / "run")})), status=1, saying=said)
    else:
        # Its label set says all that a reader needs; another run must read the record, and cannot.
        refuse(command("label", made("wider", views=3)), status=1, saying=said)
    after = snapshot(tmp_path / "cache")
    assert before.items() <= after.items()


def test_a_cache_on_a_read_only_disk_is_read_verified_and_trained_from_and_labelling_is_refused(
    command, made, tmp_path, pictures
):
    with mounted(tmp_path / "disk", "-o", "size=8m") as folder:
        config = made(cache=folder / "cache", training={**TRAINING, "output": str(tmp_path / "run")})
        assert command("label", config).status == 0
        expected = read_rows(folder / "cache", pictures)
        # What a run remembers of teachers and sources is nobody's to rely on.
        for memos in ("sources", "teachers"):
            shutil.rmtree(folder / "cache" / memos)
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        assert command("cache", "verify", folder / "cache").status == 0
        assert command("cache", "ls", folder / "cache").status == 0
        assert command("cache", "show", folder / "cache", "tiny", "--dead-letters").status == 0
        assert read_rows(folder / "cache", pictures) == expected
        planned = command("plan", config, "--json")
        assert (planned.status, planned.json["num_computed_rows"], planned.err) == (0, 0, "")
        more = command("plan", config, "--set", "views.count=3", "--why", "--json")
        assert (more.status, more.json["num_computed_rows"]) == (0, 24)
        assert more.json["estimate"]["teacher_seconds"] > 0
        audited = command("audit", config, "--json")
        assert (audited.status, audited.json["num_failing_rows"]) == (0, 0)
        assert command("repair", config, "--dry-run").status == 0
        trained = command("train", config, "--json")
        assert (trained.status, trained.json["steps"]) == (0, 3)
        refuse(command("label", config), status=1, saying=["cannot write", "Read-only file system", "is writable"])
        refuse(command("cache", "tag", folder / "cache", "tiny", "v1"), status=1, saying=["Read-only file system"])
        refuse(command("cache", "gc", folder / "cache"), status=1, saying=["Read-only file system"])


def test_two_sources_with_the_same_keys_keep_their_labels_apart(command, made, labelled, tmp_path, pictures):
    _, files = labelled
    others = write_folder(tmp_path / "others")
    for file in others.rglob("*.png"):
        file.write_bytes(picture(1, 100 + int(file.stem)))
    config = made("others", source=folder_source(others))
    report = command("label", config, "--set", "name=others", "--json").json
    assert report["num_computed_rows"] == 48
    assert files.items() <= snapshot(tmp_path / "cache").items()
    mine = read_rows(tmp_path / "cache", pictures)
    # The keys agree, so only the pictures can tell: a student that is shown the wrong ones stops at the first proof.
    training = {**TRAINING, "output": str(tmp_path / "run"), "source": folder_source(others)}
    refuse(command("train", made("mixed", training=training)), status=1, saying=["the teacher"])
    assert read_rows(tmp_path / "cache", pictures) == mine
    assert command("train", made("right", training={**TRAINING, "output": str(tmp_path / "run2")})).status == 0
