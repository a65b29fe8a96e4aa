"""Everything that is wrong is said before work starts, or costs a row and is listed; good samples are labelled either way."""

from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch

from storage.cache import Cache
from storage.label_blocks import decode_label_block
from storage.label_set import LabelSet
from storage.parts import BlockExtent, Extent
from storage.samples import decode_samples
from tests.integration.support import refuse
from tests.pipelines.networks import NAN_COLOUR, RAISE_COLOUR
from tests.pipelines.support import (
    bomb,
    colour_teacher,
    folder_source,
    picture,
    plain,
    shard_bytes,
    tar_bytes,
    timm_teacher,
    write_folder,
)


@pytest.fixture
def made(made_by_colour):
    return made_by_colour


def labelled_rows(cache, name="tiny"):
    """(key, view) of every row of a label set."""
    label_set = LabelSet.open(Cache.at(str(cache)), name_or_id=name)
    rows = []
    for index, part in enumerate(label_set.parts.to_pylist()):
        path = label_set.tar_path(index)
        keys = decode_samples(label_set.cache.read_extent(path, Extent(**part["samples"])), origin=path).keys
        for block in part["blocks"]:
            decoded = decode_label_block(label_set.cache.read_extent(path, BlockExtent(**block)), origin=path)
            rows += [(keys[position], decoded.view) for position in decoded.positions]
    return sorted(rows)


# Samples


@pytest.fixture
def spoilt(tmp_path):
    """A copy of the pictures, among them bad ones; keys, stages and reasons of the bad ones."""
    folder = write_folder(tmp_path / "spoilt")
    good = sorted(str(file.relative_to(folder)) for file in folder.rglob("*.png"))
    bad = {
        "blue/zero.png": (b"", "decode", "the picture is empty (0 bytes)"),
        "blue/text.jpg": (b"<!DOCTYPE html>", "decode", "not an image"),
        "green/truncated.png": (picture(1, 1)[:-300], "decode", "truncated or damaged"),
        "green/header.jpg": (b"\xff\xd8\xff\xe0", "decode", "truncated or damaged"),
        "red/bomb.png": (bomb(), "decode", "60000 x 60000 pixels exceed the limit of 178956970 (decompression bomb?)"),
        "red/link.png": (None, "read", "the file cannot be read: FileNotFoundError"),
    }
    for key, (data, _, _) in bad.items():
        if data is None:
            (folder / key).symlink_to("nowhere.png")
        else:
            (folder / key).write_bytes(data)
    return folder, good, bad


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.integration)])
def test_bad_samples_are_listed_with_key_stage_and_reason_and_all_others_are_labelled(command, made, tmp_path, spoilt, workers):
    folder, good, bad = spoilt
    config = made(source=folder_source(folder), generation={"dead_letter_limit": 0.5, "workers": workers})
    report = command("label", config, "--json").json
    assert (report["num_samples"], report["num_dead_letters"]) == (len(good) + len(bad), len(bad))
    assert labelled_rows(tmp_path / "cache") == sorted((key, view) for key in good for view in range(2))
    shown = command("cache", "show", tmp_path / "cache", "tiny", "--dead-letters", "--json").json["dead_letters"]
    assert {letter["key"]: letter["stage"] for letter in shown} == {key: stage for key, (_, stage, _) in bad.items()}
    for letter in shown:
        assert bad[letter["key"]][2] in letter["reason"]
        assert letter["view"] is None
    text = command("cache", "show", tmp_path / "cache", "tiny", "--dead-letters").out
    assert "dead letter    red/bomb.png at 4, all views, decode: 60000 x 60000 pixels exceed the limit" in text
    assert command("cache", "verify", tmp_path / "cache").status == 0


def test_too_many_bad_samples_end_the_run_but_keep_what_was_computed(command, made, tmp_path, spoilt):
    folder, good, bad = spoilt
    config = made(source=folder_source(folder))
    said = [
        "rows have no label, more than generation.dead_letter_limit 0.01 allows, and the run was stopped; no label set was made"
    ]
    refuse(command("label", config), status=1, saying=said)
    assert list(Cache.at(str(tmp_path / "cache")).label_set_ids()) == []
    committed = len(list((tmp_path / "cache").rglob("*.tar")))
    assert 0 < committed < 4
    raised = command("label", config, "--set", "generation.dead_letter_limit=0.5", "--json").json
    assert 0 < raised["num_computed_rows"] < 2 * len(good + list(bad))
    assert len(labelled_rows(tmp_path / "cache")) == 2 * len(good)
    refuse(
        command("label", config),
        status=1,
        saying=[
            f"{2 * len(bad)} of {2 * len(good + list(bad))} rows have no label, more than generation.dead_letter_limit 0.01 allows",
            "no label set was made, what was computed is kept",
            "blue/text.jpg: decode: not an image",
            "... and 1 more",
            "Mend these samples where they lie, run again with --retry-dead-letters",
            "or raise the limit, and run the same command again",
        ],
    )


def test_a_teacher_that_fails_on_half_the_pictures_ends_the_run_with_the_first_units(command, made_by_colour, tmp_path):
    folder = tmp_path / "pictures"
    for number in range(40):
        (folder / "a").mkdir(parents=True, exist_ok=True)
        colour = NAN_COLOUR if number % 2 else (number, 90, 10)
        (folder / "a" / f"{number:02d}.png").write_bytes(plain(colour))
    config = made_by_colour(source=folder_source(folder, unit_size=4), generation={"dead_letter_limit": 0.1})
    ended = command("label", config, "--json")
    assert (ended.status, ended.json["error"]) == (1, "DeadLetterLimitError")
    assert "of 80 rows have no label, more than generation.dead_letter_limit 0.1 allows, and the run was stopped" in ended.err
    # 4 dead rows a unit and 8 allowed: the third unit was one too many, the seven behind it were not touched.
    assert len(list((tmp_path / "cache").rglob("*.tar"))) == 3
    report = command("label", config, "--set", "generation.dead_letter_limit=0.5", "--json").json
    assert (report["num_computed_rows"], report["num_dead_letters"]) == (56, 40)


def test_the_limit_counts_rows_and_is_met_exactly(command, made, tmp_path):
    folder = write_folder(tmp_path / "pictures", per_class=4)
    (folder / "red" / "000.png").write_bytes(b"bad")
    config = made(source=folder_source(folder, unit_size=5))
    assert command("label", config, "--set", f"generation.dead_letter_limit={1 / 12 - 1e-6}").status == 1
    assert command("label", config, "--set", f"generation.dead_letter_limit={1 / 12 + 1e-6}").status == 0


def test_a_source_of_nothing_but_bad_pictures_gives_an_empty_label_set_if_that_is_allowed(command, made, tmp_path):
    folder = tmp_path / "pictures"
    (folder / "a").mkdir(parents=True)
    for number in range(5):
        (folder / "a" / f"{number}.png").write_bytes(b"bad")
    config = made(source=folder_source(folder), generation={"dead_letter_limit": 1.0})
    report = command("label", config, "--json").json
    assert (report["num_rows"], report["num_dead_letters"], report["teacher_rows_per_second"]) == (0, 5, None)
    assert command("label", config, "--set", "views.seed=1").status == 0
    assert command("cache", "verify", tmp_path / "cache").status == 0


def test_pictures_on_which_the_teacher_fails_are_listed_by_view(command, made, tmp_path):
    folder = write_folder(tmp_path / "pictures", per_class=4)
    (folder / "red" / "001.png").write_bytes(plain(NAN_COLOUR))
    (folder / "red" / "002.png").write_bytes(plain(RAISE_COLOUR))
    config = made(source=folder_source(folder), generation={"dead_letter_limit": 0.5})
    assert command("label", config, "--json").json["num_dead_letters"] == 4
    shown = command("cache", "show", tmp_path / "cache", "tiny", "--dead-letters", "--json").json["dead_letters"]
    assert {(letter["key"], letter["view"], letter["stage"], letter["reason"]) for letter in shown} == {
        *(("red/001.png", view, "teacher", "the teacher's logits hold NaN or infinity") for view in range(2)),
        *(("red/002.png", view, "teacher", "this picture is one too many") for view in range(2)),
    }
    assert len(labelled_rows(tmp_path / "cache")) == 20


def test_samples_of_a_shard_without_picture_or_label_are_listed(command, made, tmp_path):
    members = [("a.png", picture(0, 0)), ("a.cls", b"0"), ("b.cls", b"1"), ("c.png", picture(1, 1)), ("d.png", picture(1, 2))]
    (tmp_path / "a.tar").write_bytes(tar_bytes([*members, ("d.cls", b"one")]))
    source = {"kind": "webdataset", "path": str(tmp_path / "a.tar")}
    assert command("label", made(source=source, generation={"dead_letter_limit": 0.9}), "--json").json["num_dead_letters"] == 3
    shown = command("cache", "show", tmp_path / "cache", "tiny", "--dead-letters", "--json").json["dead_letters"]
    assert {letter["key"]: letter["stage"] for letter in shown} == {"b": "read", "c": "read", "d": "read"}


# Sources


def test_a_shard_that_says_a_key_twice_is_refused(command, made, tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.tar").write_bytes(shard_bytes(range(3)))
    ended = command("label", made(source={"kind": "webdataset", "path": str(tmp_path / "*.tar")}))
    refuse(ended, status=1, saying=["key '000000' occurs twice: unit 'a.tar', position 0, and unit 'b.tar', position 0"])
    assert not (tmp_path / "cache" / "requests").exists()


@pytest.mark.parametrize(
    ("content", "saying"),
    [
        (shard_bytes(range(4))[:3000], "truncated"),
        (b"", "truncated or damaged, or no tar"),
        (b"\x1f\x8b" + b"\0" * 600, "is compressed (gzip)"),
        (tar_bytes([("README", b"hello")]), "none named as WebDataset names them"),
        (tar_bytes([("a.txt", b"hello"), ("a.cls", b"0")]), "name the picture's extension in source.image_fields"),
    ],
)
def test_a_shard_that_is_none_is_refused(command, made, tmp_path, content, saying):
    (tmp_path / "a.tar").write_bytes(content)
    ended = command("label", made(source={"kind": "webdataset", "path": str(tmp_path / "a.tar")}))
    refuse(ended, status=1, saying=[f"{tmp_path}/a.tar", saying])


@pytest.mark.parametrize(
    ("source", "saying"),
    [
        ({"kind": "image_folder", "path": "/nowhere/at/all"}, "cannot list /nowhere/at/all: it does not exist"),
        ({"kind": "webdataset", "path": "/nowhere/*.tar"}, "/nowhere"),
        ({"kind": "parquet", "path": "/nowhere/train.parquet"}, "/nowhere/train.parquet"),
        ({"kind": "image_folder", "path": "nothing://here"}, "nothing://here cannot be reached"),
    ],
)
def test_a_source_that_is_not_there_is_refused(command, made, source, saying):
    refuse(command("label", made(source=source)), status=1, saying=[saying])


@pytest.mark.parametrize(
    ("classes", "status", "saying"),
    [
        (["blue", "green"], 1, "class folder 'red'"),
        (["blue", "green", "red", "violet"], 2, "the source has 4 classes, the teacher 3 outputs"),
        (["blue", "blue", "red"], 1, "'blue' stands for labels 0 and 1"),
        ("/nowhere/classes.txt", 1, "cannot read class names from /nowhere/classes.txt"),
    ],
)
def test_a_class_list_that_does_not_match_is_refused(command, made, pictures, classes, status, saying):
    ended = command("label", made(source=folder_source(pictures, classes=classes)))
    refuse(ended, status=status, saying=[saying])


def test_a_teacher_with_the_same_classes_in_another_order_is_refused(command, made):
    ended = command("label", made(teacher=colour_teacher(class_names=["green", "blue", "red"])))
    refuse(ended, status=2, saying=["class 0 is 'blue' in the source and 'green' in the teacher"])


# The source changes while it is labelled


@pytest.mark.parametrize("change", ["vanishes", "is overwritten"])
def test_a_file_that_changes_mid_run_costs_its_unit_and_the_next_run_labels_it(command, made, tmp_path, change):
    folder = write_folder(tmp_path / "pictures")
    log = tmp_path / "loads.log"
    config = made(
        source=folder_source(folder, unit_size=4),
        teacher=colour_teacher(seconds_per_batch=0.1, log=str(log)),
        generation={"dead_letter_limit": 0.5},
    )
    pictures = sorted(str(file.relative_to(folder)) for file in folder.rglob("*.png"))
    victims = []

    def disturb():
        while not list((tmp_path / "cache").glob("requests/*/*.v*.json")):
            time.sleep(0.005)
        (tasks,) = (tmp_path / "cache").glob("runs/*/tasks/*.json")
        last_unit = json.loads(tasks.read_bytes())[-1][0]["unit"]
        victims.append(last_unit["locator"]["files"][-1])
        if change == "vanishes":
            (folder / victims[0]).unlink()
        else:
            (folder / victims[0]).write_bytes(picture(0, 99))

    thread = threading.Thread(target=disturb)
    thread.start()
    ended = command("label", config)
    thread.join()
    refuse(
        ended,
        status=1,
        saying=[
            "1 units could not be labelled; all others are committed",
            "changed since it was indexed",
            "Run decant label again",
        ],
    )
    (victim,) = victims
    assert (f"'{victim}': the file cannot be read" in ended.err) == (change == "vanishes")
    again = command("label", config, "--json").json
    # Units are runs of sorted names, so that all behind one that vanishes are cut anew.
    behind = len(pictures) - pictures.index(victim) - 1
    assert again["num_computed_rows"] == (2 * (3 + behind) if change == "vanishes" else 2 * 4)
    assert again["num_dead_letters"] == 0


# Teachers


@pytest.mark.parametrize(
    ("change", "saying"),
    [
        ({"checkpoint": "/nowhere/teacher.safetensors"}, "teacher.checkpoint /nowhere/teacher.safetensors does not exist"),
        ({"num_classes": 4}, "Likely the number of classes: set teacher.num_classes: 3"),
        ({"kwargs": {"img_size": 16, "patch_size": 4, "depth": 1}}, "of another shape"),
        ({"kwargs": {"img_size": 16, "patch_size": 8, "depth": 1, "colour": 1}}, "timm cannot build test_vit"),
    ],
)
def test_a_teacher_that_cannot_be_loaded_is_refused(command, made, tmp_path, checkpoint, change, saying):
    ended = command("label", made(teacher={**timm_teacher(checkpoint), **change}))
    refuse(ended, status=1, saying=[saying])
    assert not (tmp_path / "cache" / "requests").exists()


@pytest.mark.parametrize(
    ("change", "saying"),
    [
        ({"name": "test_vitt"}, "teacher.name: timm has no model 'test_vitt'. Did you mean 'test_vit'?"),
        ({"name": "resnet18.bogus"}, "teacher.name: timm has no weights 'bogus' of resnet18."),
        ({"kind": "factory", "name": "nowhere:vit"}, "teacher.name: teacher factory nowhere:vit: there is no module nowhere."),
        ({"device": "gpu"}, "teacher.device: there is no device 'gpu'. Did you mean 'cpu'?"),
    ],
)
def test_a_teacher_of_a_name_nobody_has_is_a_wrong_config(command, made, tmp_path, checkpoint, change, saying):
    ended = command("label", made(teacher={**timm_teacher(checkpoint), **change}))
    refuse(ended, status=2, saying=[saying])
    assert not (tmp_path / "cache" / "requests").exists()


def test_a_checkpoint_that_is_none_is_refused(command, made, tmp_path):
    for content in (b"", b"not a checkpoint"):
        path = tmp_path / "teacher.safetensors"
        path.write_bytes(content)
        refuse(command("label", made(teacher=timm_teacher(path))), status=1, saying=[f"teacher.checkpoint {path} cannot be read"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_an_error_and_no_slow_run(command, made, checkpoint):
    data = timm_teacher(checkpoint)
    for _ in range(2):
        refuse(command("label", made(teacher={**data, "device": "cuda"})), status=1, saying=["teacher.device is cuda but", "cpu"])
        # What is known of the teacher by then must not hide that its device is missing.
        command("plan", made(teacher=data))


def test_a_checkpoint_that_is_gone_when_work_starts_is_an_error(command, made, tmp_path, checkpoint):
    moved = shutil.copy(checkpoint, tmp_path / "moved.safetensors")
    config = made(teacher=timm_teacher(moved))
    command("plan", config)
    Path(moved).unlink()
    refuse(command("label", config), status=1, saying=["moved.safetensors does not exist"])


def test_a_teacher_that_fails_on_everything_stops_the_run(command, made):
    teacher = {"kind": "factory", "name": "tests.pipelines.networks:broken_after_loading", "device": "cpu"}
    refuse(
        command("label", made(teacher=teacher)), status=1, saying=["fails on every sample of a batch", "no kernel for this batch"]
    )


def test_k_larger_than_the_number_of_classes_is_refused(command, made):
    ended = command("label", made(target={"k": 4}))
    refuse(ended, status=2, saying=["target.k: 4 is larger than the teacher's 3 classes; give at most 3"])


# Configs


@pytest.mark.parametrize(
    ("override", "saying"),
    [
        ("generation.batchsize=3", "generation.batchsize"),
        ("generation.batch_size=many", "generation.batch_size"),
        ("generation.batch_size=0", "generation.batch_size"),
        ("views.scale=[0.9, 0.1]", "scale [0.9, 0.1] is no range of area shares"),
        ("views.ratio=[2, 1]", "ratio [2.0, 1.0] is no range of aspect ratios"),
        ("target={k: null, codec: {kind: exact}}", "k: null needs a codec that decides what is kept"),
        ("source=null", "source: is needed to label"),
        ("cache=null", "cache: is needed to label"),
        ("name=../elsewhere", "name"),
    ],
)
def test_a_wrong_config_ends_with_status_2(command, made, tmp_path, override, saying):
    refuse(command("label", made(), "--set", override), status=2, saying=[saying])
    assert not (tmp_path / "cache").exists()


def test_a_config_that_is_not_there_ends_with_status_2(command, tmp_path):
    refuse(command("label", tmp_path / "no.yaml"), status=2, saying=["there is no such config file"])
