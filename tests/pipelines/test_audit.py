"""An audit passes what another device or library version does to labels, and fails what makes them wrong."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelines import audit as auditing
from pipelines import transforms
from pipelines.audit import audit
from pipelines.audit_sample import choose_places, stored_rows
from pipelines.audit_teacher import default_threshold
from pipelines.label import plan_run, run_label
from pipelines.teachers.base import Teacher
from storage.cache import Cache
from storage.catalogue import list_cache
from storage.errors import ConfigError, CorruptError, MismatchError
from storage.images import decode_image
from storage.label_set import LabelSet
from storage.specs import CompactCodec, ExactCodec, SoftLabelsSpec
from tests.pipelines.networks import DRIFT
from tests.pipelines.support import (
    colour_teacher,
    config_of,
    experiment,
    folder_source,
    picture,
    plain,
    png,
    save_teacher,
    snapshot,
    timm_teacher,
    write_folder,
)

FIGURES = ("num_rows", "num_units", "num_views", "num_failing_rows", "num_wrong_view_digests", "problems")


@pytest.fixture(autouse=True)
def _as_in_a_new_process():
    transforms._teachers.clear()
    yield
    transforms._teachers.clear()


def make_config(folder, **sections):
    """24 pictures in 3 units, 4 views, labelled by a tiny timm model."""
    if not (folder / "pictures").exists():
        write_folder(folder / "pictures")
        save_teacher(folder / "teacher.safetensors")
    teacher = sections.pop("teacher", timm_teacher(folder / "teacher.safetensors"))
    source = folder_source(folder / "pictures")
    return config_of(
        experiment(cache=folder / "cache", source=source, teacher=teacher, views=sections.pop("views", 4), **sections)
    )


def label(config):
    return run_label(plan_run(config, progress=False), progress=False)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    config = make_config(tmp_path_factory.mktemp("audit"))
    label(config)
    return config


def test_the_teacher_that_made_labels_says_the_same_again(labelled):
    before = snapshot(labelled.cache)
    found = audit(labelled, num_rows=20, progress=False)
    assert {name: found[name] for name in FIGURES} == {
        "num_rows": 20,
        "num_units": 3,
        "num_views": 4,
        "num_failing_rows": 0,
        "num_wrong_view_digests": 0,
        "problems": [],
    }
    # Rows share other batches than when they were labelled.
    assert found["total_variation_max"] < 1e-6
    assert found["top1_agreement"] == 1
    assert (found["num_view_digests"], found["provenance_differences"]) == (20, [])
    assert snapshot(labelled.cache) == before


def test_an_audit_holds_what_it_reads_against_gc(labelled, monkeypatch):
    held = []

    def look(label_set, **options):
        store = label_set.cache.store
        held.extend(json.loads(store.read(name))["requests"] for name in store.names("runs/holds"))
        return stored_rows(label_set, **options)

    monkeypatch.setattr(auditing, "stored_rows", look)
    audit(labelled, num_rows=2, progress=False)
    (label_set,) = {entry["id"] for entry in list_cache(labelled.cache)["label_sets"]}
    assert held == [[LabelSet.open_id(Cache.at(labelled.cache), label_set=label_set).manifest.request.fingerprint()]]


def test_an_audit_can_be_repeated_and_another_seed_looks_at_other_rows(labelled):
    def rows(seed):
        opened = LabelSet.open(Cache.at(labelled.cache), name_or_id="tiny")
        return [(row.key, row.view) for row in stored_rows(opened, num_rows=10, seed=seed)]

    assert rows(3) == rows(3) != rows(4)
    one, two = (audit(labelled, num_rows=10, seed=3, progress=False) for _ in range(2))
    assert one == two


def test_more_rows_than_there_are_means_all_of_them(labelled):
    assert audit(labelled, num_rows=10**6, progress=False)["num_rows"] == 96


@given(num_samples=st.integers(1, 60), num_views=st.integers(1, 9), share=st.floats(0, 1.2), seed=st.integers(0, 2**63 - 1))
def test_places_are_different_and_spread_over_samples_and_views(num_samples, num_views, share, seed):
    num_rows = max(1, int(share * num_samples * num_views))
    samples, views = choose_places(num_samples=num_samples, num_views=num_views, num_rows=num_rows, seed=seed)
    num_rows = min(num_rows, num_samples * num_views)
    assert len({*zip(samples.tolist(), views.tolist(), strict=True)}) == len(samples) == num_rows
    assert 0 <= samples.min() <= samples.max() < num_samples
    assert 0 <= views.min() <= views.max() < num_views
    per_sample = np.bincount(samples, minlength=num_samples)
    assert per_sample.max() - per_sample.min() <= 1
    if num_rows < num_samples:
        per_view = np.bincount(views, minlength=num_views)
        assert per_view.max() - per_view.min() <= 1


@pytest.mark.parametrize(("drift", "passes"), [("1.0005", True), ("1.2", False)])
def test_a_teacher_whose_code_changed_shows_though_its_weights_did_not(tmp_path, monkeypatch, drift, passes):
    config = make_config(tmp_path, teacher=colour_teacher(), target={"k": 3, "codec": {"kind": "exact"}})
    label(config)
    monkeypatch.setenv(DRIFT, drift)
    transforms._teachers.clear()
    found = audit(config, progress=False)
    assert found["total_variation_max"] > 0
    assert bool(found["problems"]) == (not passes)
    assert found["num_wrong_view_digests"] == 0
    worst = found["worst"][0]
    assert worst["total_variation"] == found["total_variation_max"]
    assert f"{worst['key']!r}, view {worst['view']}" in found["text"]
    assert not audit(config, threshold=1.0, progress=False)["problems"]


def test_another_teacher_is_refused_with_both_digests(tmp_path):
    config = make_config(tmp_path)
    label(config)
    made = LabelSet.open(Cache.at(config.cache), name_or_id="tiny").manifest.request.teacher.weights_sha256
    save_teacher(tmp_path / "teacher.safetensors", seed=1)
    with pytest.raises(
        MismatchError, match=r"teacher.weights_sha256: the labels are of '[0-9a-f]{64}', the config's is "
    ) as error:
        audit(config, progress=False)
    assert made in str(error.value)
    with pytest.raises(MismatchError, match="teacher.precision: the labels are of 'fp32', the config's is 'bf16'"):
        audit(
            make_config(tmp_path, teacher={**timm_teacher(tmp_path / "teacher.safetensors"), "precision": "bf16"}), progress=False
        )


def test_a_source_that_holds_something_else_is_refused_with_the_units_that_differ(tmp_path):
    config = make_config(tmp_path)
    label(config)
    (tmp_path / "pictures" / "red" / "003.png").write_bytes(picture(0, 0))
    with pytest.raises(MismatchError, match="unit '00016-00024': labelled was content [0-9a-f]{16}, it is [0-9a-f]{16} now"):
        audit(config, progress=False)
    with pytest.raises(MismatchError, match="unit '00000-00008': labelled was content [0-9a-f]{16}, it is gone"):
        audit(config.model_copy(update={"source": config.source.model_copy(update={"unit_size": 5})}), progress=False)


@pytest.fixture
def other_pictures(labelled, tmp_path, monkeypatch):
    """A source that gives another picture for some keys, and that the memo takes for the one that was labelled."""

    def change(changes):
        survey = auditing.survey_run(labelled, progress=False)
        shutil.copytree(labelled.source.path, tmp_path / "changed")
        for key, data in changes.items():
            (tmp_path / "changed" / key).write_bytes(data)
        changed = labelled.model_copy(update={"source": labelled.source.model_copy(update={"path": str(tmp_path / "changed")})})
        other = auditing.survey_run(changed, progress=False)
        units = tuple(replace(mine, unit=theirs.unit) for mine, theirs in zip(survey.units, other.units, strict=True))
        monkeypatch.setattr(auditing, "survey_run", lambda config, progress: replace(other, config=config, units=units))

    return change


def test_one_changed_picture_fails(labelled, other_pictures):
    other_pictures({"red/003.png": plain((255, 255, 0))})
    found = audit(labelled, num_rows=96, progress=False)
    assert {row["key"] for row in found["worst"] if row["total_variation"] > found["threshold"]} == {"red/003.png"}
    assert found["num_failing_rows"] >= 2
    assert found["problems"]


def test_a_picture_that_is_nearly_the_same_fails_by_its_digest(labelled, other_pictures):
    original = np.array(decode_image((Path(labelled.source.path) / "blue/000.png").read_bytes(), max_pixels=10**6))
    # Digests are stored of the first sample of every block.
    other_pictures({"blue/000.png": png(np.clip(original.astype(int) + 1, 0, 255))})
    found = audit(labelled, num_rows=96, threshold=1.0, progress=False)
    assert found["num_wrong_view_digests"] == found["num_failing_rows"] == 32
    assert "its pixels are not those that were labelled" in found["text"]


def test_a_picture_that_cannot_be_decoded_any_more_fails_with_the_reason(labelled, other_pictures):
    other_pictures({"green/002.png": b"no picture"})
    found = audit(labelled, num_rows=96, progress=False)
    assert found["num_failing_rows"] == 4
    assert "'green/002.png', view 0: it was labelled, and now decode: not an image" in found["text"]
    assert found["worst"][0]["kl"] is None


def test_labels_that_moved_by_one_sample_fail(labelled, monkeypatch):
    original = auditing.stored_rows

    def shifted(label_set, **options):
        rows = list(original(label_set, **options))
        return [replace(row, values=rows[number - 1].values) for number, row in enumerate(rows)]

    monkeypatch.setattr(auditing, "stored_rows", shifted)
    found = audit(labelled, num_rows=48, progress=False)
    assert found["num_failing_rows"] > 24


def test_a_teacher_that_gives_nan_now_fails(labelled, monkeypatch):
    logits = Teacher.logits

    def half_nan(self, views):
        found = logits(self, views).clone()
        found[0] = torch.nan
        return found

    transforms.shared_teacher(labelled.teacher)
    monkeypatch.setattr(Teacher, "logits", half_nan)
    found = audit(labelled, num_rows=8, progress=False)
    assert found["num_failing_rows"] == 2
    assert "now teacher: its logits hold NaN or infinity" in found["text"]


def test_dead_letters_are_passed_over_and_narrowed_labels_are_audited_as_stored(tmp_path):
    config = make_config(tmp_path, target={"k": 3, "codec": {"kind": "exact"}}, generation={"dead_letter_limit": 0.5})
    for number in range(5):
        (tmp_path / "pictures" / "blue" / f"{number:03d}.png").write_bytes(b"no picture")
    label(config)
    assert audit(config, num_rows=96, progress=False)["num_rows"] == 96 - 20
    narrow = config.model_copy(update={"name": "narrow", "target": config.target.model_copy(update={"k": 1})})
    assert label(narrow).num_computed_rows == 0
    found = audit(narrow, num_rows=30, progress=False)
    assert (found["num_failing_rows"], found["name"]) == (0, "narrow")
    assert audit(config, label_set="narrow", num_rows=5, progress=False)["name"] == "narrow"


def test_what_made_the_labels_is_compared_apart(labelled, monkeypatch):
    real = auditing.provenance
    monkeypatch.setattr(auditing, "provenance", lambda teacher: {**real(teacher), "torch": "99.0", "device": "cuda:0"})
    found = audit(labelled, num_rows=4, progress=False)
    assert [(one["what"], one["now"]) for one in found["provenance_differences"]] == [("device", "cuda:0"), ("torch", "99.0")]
    assert found["problems"] == []
    assert "cpu; now cuda:0" in found["text"]


def test_a_damaged_block_is_an_error_and_no_difference(tmp_path):
    config = make_config(tmp_path)
    label(config)
    for tar in (tmp_path / "cache").glob("requests/*/*.tar"):
        data = bytearray(tar.read_bytes())
        data[len(data) // 2] ^= 1
        tar.write_bytes(data)
    with pytest.raises(CorruptError):
        audit(config, num_rows=96, progress=False)


@pytest.mark.parametrize(("num_rows", "threshold"), [(0, None), (5, -0.1), (5, 1.5)])
def test_senseless_options_are_refused(labelled, num_rows, threshold):
    with pytest.raises(ConfigError, match="at least 1 row"):
        audit(labelled, num_rows=num_rows, threshold=threshold, progress=False)


def test_the_default_threshold_is_wider_for_coarser_arithmetic_and_coarser_codecs():
    def of(codec, precision):
        return default_threshold(SoftLabelsSpec(num_classes=10, k=3, codec=codec), precision=precision)

    assert of(ExactCodec(), "fp32") < of(CompactCodec(), "fp32") < of(CompactCodec(levels=20), "fp32")
    assert of(ExactCodec(), "fp32") < of(ExactCodec(), "fp16") < of(ExactCodec(), "bf16") < 0.2
