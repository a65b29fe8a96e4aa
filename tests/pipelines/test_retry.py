"""Dead letters are tried again: only their rows are computed, and all others keep their bits."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from pipelines import retry as retrying
from pipelines import transforms
from pipelines.label import plan_run, run_label
from pipelines.teachers.base import Teacher
from storage.cache import Cache
from storage.catalogue import show_label_set
from storage.label_blocks import decode_label_block
from storage.label_set import LabelSet
from storage.parts import BlockExtent
from storage.verify import verify
from tests.pipelines import networks
from tests.pipelines.support import (
    ROOT,
    colour_teacher,
    config_of,
    experiment,
    folder_source,
    picture,
    plain,
    snapshot,
    write_config,
    write_folder,
)

NEVER = (250, 5, 130)


@pytest.fixture(autouse=True)
def _as_in_a_new_process():
    yield
    transforms._teachers.clear()


def make_config(folder, *, cache="cache", target=None, **sections):
    """12 pictures, units of 6; the teacher raises on one, gives NaN for another, and one is too large."""
    pictures = folder / "pictures"
    if not pictures.exists():
        write_folder(pictures, per_class=4)
        (pictures / "green" / "001.png").write_bytes(plain(networks.RAISE_COLOUR))
        (pictures / "green" / "002.png").write_bytes(plain(networks.NAN_COLOUR))
        (pictures / "red" / "003.png").write_bytes(picture(2, 3, size=90))
    generation = {"dead_letter_limit": 0.9, "max_image_pixels": 80 * 80, **sections.pop("generation", {})}
    return config_of(
        experiment(
            cache=folder / cache,
            source=folder_source(pictures, unit_size=6),
            teacher=colour_teacher(),
            generation=generation,
            target=target or {},
            **sections,
        )
    )


def label(config, *, retry=False):
    return run_label(plan_run(config, progress=False, retry_dead_letters=retry), progress=False)


def mend(monkeypatch):
    """What a fixed teacher and a higher limit do."""
    monkeypatch.setattr(networks, "RAISE_COLOUR", NEVER)
    monkeypatch.setattr(networks, "NAN_COLOUR", NEVER)


def opened(config):
    return LabelSet.open(Cache.at(config.cache), name_or_id=config.name)


def rows_of(config):
    """(unit, position, view) to the row's probabilities and rest as they are decoded."""
    label_set, found = opened(config), {}
    for index, part in enumerate(label_set.parts.to_pylist()):
        for extent in part["blocks"]:
            data = label_set.cache.read_extent(label_set.tar_path(index), BlockExtent(**extent))
            block = decode_label_block(data, origin="test")
            for row, position in enumerate(block.positions.tolist()):
                one = block.soft_labels.take(np.array([row]))
                kept = one.probs[0] > 0
                said = dict(zip(one.class_ids[0][kept].tolist(), one.probs[0][kept].tolist(), strict=True))
                found[part["unit_name"], position, block.view] = (said, one.rest.tolist())
    return found


def blocks_of(config):
    """Bytes of every block by unit, view and first sample."""
    label_set = opened(config)
    return {
        (part["unit_name"], extent["view"], extent["first_sample"]): label_set.cache.read_extent(
            label_set.tar_path(index), BlockExtent(**extent)
        )
        for index, part in enumerate(label_set.parts.to_pylist())
        for extent in part["blocks"]
    }


def count_rows(monkeypatch):
    """Count the views that are not black in what the teacher is given."""
    counted = []
    logits = Teacher.logits

    def counting(self, views):
        counted.append(int(views.reshape(len(views), -1).any(axis=1).sum()))
        return logits(self, views)

    monkeypatch.setattr(Teacher, "logits", counting)
    return counted


@pytest.mark.parametrize(
    "target", [{"k": 2}, {"k": 2, "codec": {"kind": "exact"}}, {"k": None, "codec": {"kind": "compact", "levels": 40}}]
)
def test_a_retry_gives_the_labels_of_a_run_that_never_failed(tmp_path, monkeypatch, target):
    config = make_config(tmp_path, target=target)
    first = label(config)
    assert (first.num_rows, first.num_dead_letters) == (18, 5)
    before, old_rows = snapshot(config.cache), rows_of(config)
    mend(monkeypatch)
    healthy = make_config(tmp_path, target=target, generation={"max_image_pixels": 10**6})
    counted = count_rows(monkeypatch)
    report = label(healthy, retry=True)
    assert (report.num_computed_rows, report.num_retried_rows, report.num_cured_rows) == (6, 6, 6)
    assert sum(counted) == 6
    assert (report.num_rows, report.num_dead_letters, report.label_set) == (24, 0, first.label_set)
    assert verify(opened(healthy)).problems == ()
    elsewhere = make_config(tmp_path, cache="elsewhere", target=target, generation={"max_image_pixels": 10**6})
    fresh = label(elsewhere)
    rows = rows_of(healthy)
    assert {where: rows[where] for where in old_rows} == old_rows
    # Also the block bytes: the same rows in the same codec.
    assert blocks_of(healthy) == blocks_of(elsewhere)
    assert (report.codec_kl_max, report.agreement) == (fresh.codec_kl_max, fresh.agreement)
    np.testing.assert_allclose(opened(healthy).class_means(), opened(elsewhere).class_means(), rtol=5e-3)
    # The old tars are kept: other label sets may name them.
    after = snapshot(healthy.cache)
    assert {name: after[name] for name in before if name.endswith(".tar")}.items() <= before.items()


def test_a_part_that_is_used_twice_is_tried_again_once(tmp_path):
    config = make_config(tmp_path)
    label(config)
    run = plan_run(config, progress=False)
    units = {indexed.unit.name: indexed for indexed in run.units}
    # Lent for views on both sides of those that another part has.
    parts = [replace(used, first_view=view, num_views=1) for used in run.plan.parts for view in (0, 1)]
    twice, once = (retrying.retry_tasks(run.cache, parts=of, units=units) for of in (parts, run.plan.parts))
    assert twice == once
    assert len(once) == 2


def test_a_second_retry_finds_nothing_to_do(tmp_path, monkeypatch):
    config = make_config(tmp_path, generation={"max_image_pixels": 10**6})
    label(config)
    mend(monkeypatch)
    label(config, retry=True)
    before = snapshot(config.cache)
    assert label(config, retry=True).num_computed_rows == 0
    assert snapshot(config.cache) == before


def test_what_fails_again_stays_a_dead_letter_and_changes_nothing(tmp_path):
    config = make_config(tmp_path)
    label(config)
    before = snapshot(config.cache)
    report = label(config, retry=True)
    assert (report.num_retried_rows, report.num_cured_rows, report.num_dead_letters) == (6, 0, 5)
    assert snapshot(config.cache) == before


def test_a_cure_of_some_leaves_the_letters_of_others_and_says_what_made_which_rows(tmp_path, monkeypatch):
    config = make_config(tmp_path)
    label(config)
    monkeypatch.setattr(networks, "NAN_COLOUR", NEVER)
    monkeypatch.setattr(retrying, "provenance", lambda teacher: {"device": "another", "torch": "newer"})
    report = label(config, retry=True)
    assert (report.num_retried_rows, report.num_cured_rows, report.num_rows) == (6, 2, 20)
    shown = show_label_set(config.cache, name=config.name, with_dead_letters=True)
    assert {(letter["key"], letter["view"], letter["stage"]) for letter in shown["dead_letters"]} == {
        ("green/001.png", 0, "teacher"),
        ("green/001.png", 1, "teacher"),
        ("red/003.png", None, "decode"),
    }
    assert {made["device"] for made in shown["provenance"]} == {"cpu", "another"}
    records = [
        label_set_record
        for part in plan_run(config, progress=False).plan.parts
        if (label_set_record := Cache.at(config.cache).find_part(part.part)).earlier
    ]
    (record,) = records
    assert (record.earlier[0].provenance["device"], record.earlier[0].num_rows) == ("cpu", record.statistics.num_rows - 2)
    assert record.provenance["device"] == "another"
    # And once more: the chain grows, the rest is cured.
    monkeypatch.setattr(networks, "RAISE_COLOUR", NEVER)
    healed = make_config(tmp_path, generation={"max_image_pixels": 10**6})
    assert label(healed, retry=True).num_dead_letters == 0
    assert len(Cache.at(config.cache).find_part(record.part).earlier) == 2
    assert verify(opened(healed)).problems == ()


def test_a_sample_that_fails_as_a_whole_now_keeps_the_rows_it_has(tmp_path, monkeypatch):
    """Dead in one view only, then too large a picture: the letter stays that of the view."""
    config = make_config(tmp_path, views=2)
    original = networks.ColourNetwork.forward

    def fails_once(self, inputs):
        logits = original(self, inputs)
        first_is_blue = inputs[0].mean(dim=(1, 2)).argmax() == 2
        if len(inputs) == 4 and first_is_blue and not self.__dict__.get("failed"):
            logits[0] = float("nan")
            self.__dict__["failed"] = True
        return logits

    monkeypatch.setattr(networks.ColourNetwork, "forward", fails_once)
    transforms._teachers.clear()
    label(config)
    monkeypatch.setattr(networks.ColourNetwork, "forward", original)
    (dead,) = [
        letter
        for letter in show_label_set(config.cache, name="tiny", with_dead_letters=True)["dead_letters"]
        if letter["key"] == "blue/000.png"
    ]
    assert dead["view"] is not None
    mend(monkeypatch)
    small = make_config(tmp_path, generation={"max_image_pixels": 50})
    assert label(small, retry=True).num_cured_rows == 0
    after = [
        (letter["key"], letter["view"])
        for letter in show_label_set(config.cache, name="tiny", with_dead_letters=True)["dead_letters"]
        if letter["key"] == "blue/000.png"
    ]
    assert after == [("blue/000.png", dead["view"])]
    assert label(make_config(tmp_path, generation={"max_image_pixels": 10**6}), retry=True).num_dead_letters == 0


def test_label_sets_that_share_the_part_stay_whole_until_they_are_labelled_again(tmp_path, monkeypatch):
    config = make_config(tmp_path)
    label(config)
    other = config.model_copy(update={"name": "other", "views": config.views.model_copy(update={"count": 1})})
    label(other)
    rows = rows_of(other)
    mend(monkeypatch)
    label(config, retry=True)
    assert verify(opened(other)).problems == ()
    assert rows_of(other) == rows
    shown = show_label_set(other.cache, name="other", with_dead_letters=True)
    assert (shown["num_rows"], shown["num_dead_letters"], shown["num_outdated_parts"]) == (9, 3, 2)
    assert "2 parts were tried again or made anew since: their dead letters are those of now. The label set" in shown["text"]
    assert "The label set reads them as they were; to read them as they are now, run decant label again" in shown["text"]
    label(other)
    assert opened(other).manifest.num_rows == 11
    assert verify(opened(other)).problems == ()
    assert show_label_set(other.cache, name="other", with_dead_letters=True)["num_outdated_parts"] == 0


def test_a_lagging_writer_of_the_replaced_part_removes_nothing(tmp_path, monkeypatch):
    config = make_config(tmp_path, generation={"max_image_pixels": 10**6})
    label(config)
    cache = Cache.at(config.cache)
    part = plan_run(config, progress=False).plan.parts[0].part
    old = cache.find_part(part)
    data = cache.store.read(cache.tar_name(old))
    mend(monkeypatch)
    label(config, retry=True)
    new = cache.find_part(part)
    assert new.tar_name != old.tar_name
    assert cache.commit_part(data, record=old) == new
    assert cache.replace_part(data, record=old, replaces="another.tar") == new
    assert cache.store.exists(cache.tar_name(old))
    assert verify(opened(config)).problems == ()


def test_a_damaged_part_is_not_built_upon(tmp_path, monkeypatch):
    config = make_config(tmp_path)
    label(config)
    cache = Cache.at(config.cache)
    for part in plan_run(config, progress=False).plan.parts:
        record = cache.find_part(part.part)
        data = bytearray(cache.store.read(cache.tar_name(record)))
        data[-1500] ^= 1
        cache.store.write(cache.tar_name(record), bytes(data))
    mend(monkeypatch)
    before = snapshot(config.cache)
    with pytest.raises(Exception, match="its bytes are not those that were committed; run decant repair first"):
        label(config, retry=True)
    assert snapshot(config.cache) == before


def test_a_changed_picture_is_another_unit_and_no_retry(tmp_path, monkeypatch):
    config = make_config(tmp_path)
    label(config)
    (tmp_path / "pictures" / "green" / "001.png").write_bytes(picture(1, 1))
    plan = plan_run(config, progress=False, retry_dead_letters=True).plan
    assert sorted(task.replaces is None for task in plan.tasks) == [False, True]
    assert {task.num_rows for task in plan.tasks if task.replaces is None} == {12}


def test_unreadable_samples_are_not_tried_again(tmp_path):
    config = make_config(tmp_path)
    (tmp_path / "pictures" / "blue" / "x.png").symlink_to("nowhere.png")
    label(config)
    keys = {letter["key"] for letter in show_label_set(config.cache, name="tiny", with_dead_letters=True)["dead_letters"]}
    assert "blue/x.png" in keys
    plan = plan_run(config, progress=False, retry_dead_letters=True).plan
    assert sum(task.num_dead_rows for task in plan.tasks) == 6


def test_dead_letters_say_where_they_were_raised_and_nothing_of_this_machine(tmp_path):
    config = make_config(tmp_path)
    label(config)
    shown = {
        (letter["key"], letter["view"]): letter.get("traceback", "")
        for letter in show_label_set(config.cache, name="tiny", with_dead_letters=True)["dead_letters"]
    }
    raised = shown["green/001.png", 0]
    assert raised.splitlines()[-1] == "RuntimeError"
    assert "tests.pipelines.networks.ColourNetwork.forward:" in raised
    assert shown["green/002.png", 0] == ""
    assert shown["red/003.png", None].splitlines()[-1] == "SampleError"
    assert "storage.images.decode_image:" in shown["red/003.png", None]
    text = show_label_set(config.cache, name="tiny", with_dead_letters=True)["text"]
    assert f"{text.count('this picture is one too many')} of these dead letters, innermost last" in text
    assert text.count("tests.pipelines.networks.ColourNetwork.forward:") == 1
    assert "innermost last" not in show_label_set(config.cache, name="tiny")["text"]
    for text in shown.values():
        assert "/" not in text
        assert "0x" not in text


KILLED = f"""
import os, signal, sys
import tests.pipelines.networks as networks
networks.RAISE_COLOUR = networks.NAN_COLOUR = {NEVER}
from storage.filesystem import Store
original = Store.write
def deadly(self, name, data):
    original(self, name, data)
    if name.endswith(".tar"):
        os.kill(os.getpid(), signal.SIGKILL)
Store.write = deadly
from storage.config import load_config
from pipelines.label import plan_run, run_label
run_label(plan_run(load_config(sys.argv[1]), progress=False, retry_dead_letters=True), progress=False)
"""


class Gone(BaseException):
    """The end of a process, as far as it can be had inside one."""


@pytest.mark.parametrize("moment", [pytest.param("the tar is written", marks=pytest.mark.integration), "the records are written"])
def test_a_kill_in_between_leaves_one_whole_part(tmp_path, monkeypatch, moment):
    config = make_config(tmp_path, generation={"max_image_pixels": 10**6})
    label(config)
    old, before = opened(config), rows_of(config)
    if moment == "the tar is written":
        path = write_config(tmp_path / "config.json", config.model_dump(mode="json"))
        ended = subprocess.run([sys.executable, "-c", KILLED, path], cwd=ROOT, capture_output=True, text=True)
        assert ended.returncode == -9, ended.stderr
        mend(monkeypatch)
    else:
        mend(monkeypatch)

        def gone(*words, **options):
            raise Gone

        with monkeypatch.context() as patched:
            patched.setattr("pipelines.committing.commit_label_set", gone)
            with pytest.raises(Gone):
                label(config, retry=True)
    # What was there is there, whole, for readers that have it open and for those that open it now.
    assert verify(old).problems == ()
    assert rows_of(config) == before
    assert verify(opened(config)).problems == ()
    assert label(config, retry=True).num_rows == 24
    assert verify(opened(config)).problems == ()
