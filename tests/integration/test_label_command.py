"""`decant label` from the command line to the committed label set."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipelines import transforms
from storage.cache import Cache
from storage.label_set import LabelSet
from storage.sources import open_source
from storage.streams.label_stream import LabelStream
from tests.pipelines import support
from tests.pipelines.networks import DRIFT
from tests.pipelines.support import (
    ROOT,
    colour_teacher,
    folder_source,
    picture,
    shard_bytes,
    snapshot,
)


def test_labelling_makes_a_label_set_that_can_be_shown_and_verified(command, made, tmp_path):
    report = command("label", made(), "--json").json
    assert {name: report[name] for name in ("name", "num_units", "num_samples", "num_rows", "num_computed_rows")} == {
        "name": "tiny",
        "num_units": 3,
        "num_samples": 24,
        "num_rows": 48,
        "num_computed_rows": 48,
    }
    assert report["rows_per_second"] > 0
    assert 0 < report["mass_kept"] <= 1
    shown = command("cache", "show", tmp_path / "cache", "tiny", "--json").json
    assert (shown["id"], shown["num_rows"], shown["num_views"], shown["num_classes"]) == (report["label_set"], 48, 2, 3)
    assert shown["classes"] == ["blue", "green", "red"]
    assert shown["provenance"][0]["device"] == "cpu"
    verified = command("cache", "verify", tmp_path / "cache", "--json")
    assert (verified.status, verified.json["problems"]) == (0, [])
    assert verified.json["label_sets"][0]["num_rows"] == 48
    (listed,) = command("cache", "ls", tmp_path / "cache", "--json").json["label_sets"]
    assert (listed["id"], listed["names"]) == (report["label_set"], ["tiny"])


def test_the_text_says_what_was_done_and_what_to_do_next(command, made, tmp_path):
    config = made(cache=tmp_path / "a cache")
    ended = command("label", config)
    assert ended.status == 0
    assert "tiny: 48 of 48 rows to label, in 3 work units" in ended.out
    assert f"next: decant cache show '{tmp_path / 'a cache'}' tiny\n" in ended.out
    assert ended.err == ""
    assert "nothing to do, all 48 rows are in the cache; the teacher was not run" in command("label", config).out


def test_the_second_run_loads_no_teacher_and_changes_nothing(command, made, tmp_path, loads):
    first = command("label", made(), "--json").json
    assert loads == ["timm"]
    before = snapshot(tmp_path / "cache")
    transforms._teachers.clear()
    second = command("label", made(), "--json").json
    assert loads == ["timm"]
    assert second["num_computed_rows"] == 0
    assert second["label_set"] == first["label_set"]
    assert snapshot(tmp_path / "cache") == before


def test_a_plan_says_what_labelling_then_does(command, made, loads):
    plan = command("plan", made(), "--json").json
    assert (plan["num_reused_rows"], plan["num_computed_rows"], plan["num_computed_parts"], plan["teacher_loaded"]) == (
        0,
        48,
        3,
        True,
    )
    command("label", made())
    transforms._teachers.clear()
    plan = command("plan", made("more", views=4), "--json").json
    assert (plan["num_reused_rows"], plan["num_computed_rows"], plan["num_computed_parts"], plan["teacher_loaded"]) == (
        48,
        48,
        3,
        False,
    )
    assert loads == ["timm"]
    said = command("plan", made("more", views=4)).out
    assert re.search(r"reused +48 +3  the same teacher, views, target and samples", said)
    assert re.search(r"compute +48 +3  more views", said)


def test_more_views_compute_only_those_and_fewer_none(command, made, tmp_path):
    command("label", made(views=2))
    before = snapshot(tmp_path / "cache")
    more = command("label", made(views=5), "--json").json
    assert (more["num_rows"], more["num_computed_rows"]) == (120, 72)
    after = snapshot(tmp_path / "cache")
    assert {name: after[name] for name in before if name.startswith(("requests/", "label_sets/"))}.items() <= before.items()
    fewer = command("label", made(views=1), "--json").json
    assert (fewer["num_rows"], fewer["num_computed_rows"]) == (24, 0)
    assert command("cache", "verify", tmp_path / "cache").status == 0


def test_new_shards_are_computed_and_old_ones_reused(command, made, tmp_path):
    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "000.tar").write_bytes(shard_bytes(range(6)))
    config = made(source={"kind": "webdataset", "path": str(shards / "*.tar")})
    assert command("label", config, "--json").json["num_computed_rows"] == 12
    (shards / "001.tar").write_bytes(shard_bytes(range(6, 10)))
    again = command("label", config, "--json").json
    assert (again["num_rows"], again["num_computed_rows"], again["num_units"]) == (20, 8, 2)


@pytest.mark.parametrize(("ends", "num_computed_rows"), [("count", 41), ("keys", 4)])
def test_a_new_picture_costs_its_unit_where_keys_say_where_units_end(command, made, tmp_path, ends, num_computed_rows):
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number:03d}.png").write_bytes(picture(number % 3, number))
    source = folder_source(folder, unit_size=8, labelled=False, unit_ends=ends)
    config = made(source=source, views={"kind": "evaluation"})
    assert command("label", config, "--json").json["num_computed_rows"] == 40
    (folder / "001b.png").write_bytes(picture(1, 41))
    again = command("label", config, "--json").json
    assert (again["num_rows"], again["num_computed_rows"]) == (41, num_computed_rows)
    assert command("cache", "verify", tmp_path / "cache").status == 0


def test_a_moved_source_and_a_renamed_experiment_compute_nothing(command, made, tmp_path, pictures, loads):
    first = command("label", made(), "--json").json
    moved = shutil.copytree(pictures, tmp_path / "moved")
    second = command("label", made("other", source=folder_source(moved), name="other"), "--json").json
    assert (second["num_computed_rows"], second["label_set"]) == (0, first["label_set"])
    assert loads == ["timm"]
    (listed,) = command("cache", "ls", tmp_path / "cache", "--json").json["label_sets"]
    assert listed["names"] == ["other", "tiny"]


def test_another_teacher_view_or_target_is_another_request(command, made, tmp_path):
    command("label", made())
    for change in ("views.seed=1", "target.k=3", "target.codec={kind: exact}", "teacher.precision=bf16"):
        assert command("label", made(), "--set", change, "--json").json["num_computed_rows"] == 48
    assert len(command("cache", "ls", tmp_path / "cache", "--json").json["label_sets"]) == 5


@pytest.mark.parametrize("damage", ["missing", "truncated", "damaged record"])
def test_a_damaged_part_is_found_and_made_anew(command, made, tmp_path, damage):
    command("label", made())
    before = snapshot(tmp_path / "cache")
    name = sorted(name for name in before if name.endswith(".tar"))[1]
    victim = tmp_path / "cache" / name
    if damage == "missing":
        victim.unlink()
    elif damage == "truncated":
        victim.write_bytes(before[name][:-1024])
    else:
        victim = victim.with_name(name.rsplit("/", 1)[-1].rsplit(".", 2)[0] + ".json")
        victim.write_bytes(victim.read_bytes().replace(b"num_samples", b"num_rumples"))
    verified = command("cache", "verify", tmp_path / "cache")
    assert verified.status == 1
    assert victim.name in verified.out
    if damage != "missing":
        # Bytes of parts that a label set names are looked at by readers and verify, which say to remove what is damaged.
        assert command("label", made(), "--json").json["num_computed_rows"] == 0
        victim.unlink()
    assert command("label", made(), "--json").json["num_computed_rows"] == 16
    assert snapshot(tmp_path / "cache") == before
    assert command("cache", "verify", tmp_path / "cache").status == 0


@pytest.mark.parametrize("file", ["manifest.json", "parts-*.parquet", "class_means-*.block"])
@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_damaged_label_set_is_found_and_made_anew(command, made, tmp_path, file, damage):
    command("label", made())
    before = snapshot(tmp_path / "cache")
    (victim,) = (tmp_path / "cache" / "label_sets").glob(f"*/{file}")
    if damage == "missing":
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[:-3] + b"xyz")
    assert command("label", made(), "--json").json["num_computed_rows"] == 0
    assert snapshot(tmp_path / "cache") == before


def test_a_label_set_follows_a_part_that_was_made_anew_with_other_bytes(command, made, tmp_path, monkeypatch):
    config = made(teacher=colour_teacher())
    first = command("label", config, "--json").json
    (victim,) = sorted((tmp_path / "cache" / "requests").glob("*/*.tar"))[:1]
    victim.unlink()
    transforms._teachers.clear()
    monkeypatch.setenv(DRIFT, "1.01")
    again = command("label", config, "--json").json
    assert (again["num_computed_rows"], again["label_set"]) == (16, first["label_set"])
    assert not victim.exists()
    assert command("cache", "verify", tmp_path / "cache").status == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
def test_opening_a_label_set_starts_no_threads(command, made, tmp_path):
    """Arrow's threads hold Python objects for a moment, and a process that ends in that moment aborts."""
    command("label", made())
    code = """
import os, sys
from storage.cache import Cache
from storage.label_set import LabelSet
before = len(os.listdir("/proc/self/task"))
LabelSet.open(Cache.at(sys.argv[1]), name_or_id="tiny")
assert len(os.listdir("/proc/self/task")) == before
"""
    subprocess.run([sys.executable, "-c", code, tmp_path / "cache"], cwd=ROOT, check=True)


def test_a_smaller_k_or_a_coarser_codec_is_served_from_what_is_stored(command, made, loads, tmp_path):
    exact = {"target": {"k": 3, "codec": {"kind": "exact"}}}
    command("label", made("wide", **exact))
    transforms._teachers.clear()
    for number, target in enumerate(
        [{"k": 2, "codec": {"kind": "exact"}}, {"k": 3}, {"k": 1, "codec": {"kind": "compact", "levels": 64}}]
    ):
        config = made(f"narrow{number}", target=target)
        plan = command("plan", config, "--json").json
        assert (plan["num_lent_rows"], plan["num_computed_rows"], plan["teacher_loaded"]) == (48, 0, False)
        assert "from wider or finer labels of them: top 3, exact codec" in command("plan", config).out
        report = command("label", config, "--json").json
        assert (report["num_rows"], report["num_computed_rows"]) == (48, 0)
        assert "served by      parts that hold top 3" in command("cache", "show", tmp_path / "cache", report["label_set"]).out
        assert command("cache", "verify", tmp_path / "cache", report["label_set"]).status == 0
    assert loads == ["timm"]
    refused = command("plan", made("warm", target={"k": 2, "generation_temperature": 2.0}))
    assert "target.generation_temperature is 1.0, not 2.0" in refused.out


def stored_labels(config, label_set):
    """Every row of the first view as a student gets it."""
    parsed = support.config_of(json.loads(Path(config).read_text()))
    opened = LabelSet.open(Cache.at(parsed.cache), name_or_id=label_set)
    stream = LabelStream(opened, source=open_source(parsed.source))
    sizes = stream.block_rows(epoch=0)
    rows = np.concatenate([np.arange(size) for size in sizes])
    return stream.read(epoch=0, block_ids=np.repeat(np.arange(len(sizes)), sizes), rows=rows).soft_labels


def test_dense_labels_serve_the_top_k_as_they_lie(command, made, loads, tmp_path):
    dense = made("dense", target={"k": None, "codec": {"kind": "dense"}})
    whole = stored_labels(dense, command("label", dense, "--json").json["label_set"])
    transforms._teachers.clear()
    top = np.sort(np.argsort(-whole.probs, axis=1)[:, :2], axis=1)
    for number, codec in enumerate([{"kind": "exact"}, {"kind": "compact"}]):
        config = made(f"narrow{number}", target={"k": 2, "codec": codec})
        plan = command("plan", config, "--json").json
        assert (plan["num_lent_rows"], plan["num_computed_rows"], plan["teacher_loaded"]) == (48, 0, False)
        assert "from wider or finer labels of them: dense codec" in command("plan", config).out
        report = command("label", config, "--json").json
        assert (report["num_rows"], report["num_computed_rows"]) == (48, 0)
        assert command("cache", "verify", tmp_path / "cache", report["label_set"]).status == 0
        found = stored_labels(config, report["label_set"])
        assert np.array_equal(found.class_ids, top)
        assert np.array_equal(found.probs, np.take_along_axis(whole.probs, top, axis=1))
        np.testing.assert_allclose(found.probs.sum(axis=1) + found.rest, 1, atol=1e-6)
    assert loads == ["timm"]


@pytest.mark.parametrize(
    "options",
    [
        ["--runner=FnApiRunner"],
        ["--runner", "DirectRunner"],
        ["--direct_num_workers=2"],
        ["--direct_num_workers", "2", "--direct_running_mode=multi_threading"],
    ],
)
def test_beams_options_pass_through(command, made, tmp_path, options):
    report = command("label", made(), "--json", *options)
    assert report.json["num_computed_rows"] == 48
    assert command("cache", "verify", tmp_path / "cache").status == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--no_such=1"], "neither decant nor Beam knows --no_such"),
        (["second.yaml"], "'second.yaml' is neither an option nor the value of one; see `decant label --help`"),
        (
            ["target.k=3"],
            "'target.k=3' is neither an option nor the value of one; a key of the config is set with --set target.k=3",
        ),
        (["--runner=DaskRunner"], "it drops elements of ordinary pipelines without an error"),
        (["--workers", "0"], "generation.workers"),
        (["--set", "target.kk=3"], "target.kk"),
    ],
)
def test_wrong_usage_ends_with_status_2_before_anything_is_written(command, made, tmp_path, words, message):
    for output in ([], ["--json"]):
        ended = command("label", made(), *words, *output)
        assert ended.status == 2
        assert message in ended.err
        if output:
            assert ended.json["status"] == 2
            assert message in ended.json["message"]
    assert not (tmp_path / "cache").exists()
