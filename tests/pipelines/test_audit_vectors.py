"""An audit of vectors of pictures passes what the same teacher says again, and fails what makes vectors wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipelines import audit as auditing
from pipelines import audit_pictures, transforms
from pipelines.audit import audit
from pipelines.audit_distance import vector_distance
from pipelines.audit_teacher import default_threshold
from pipelines.label import plan_runs, run_labels
from storage.config import ExperimentConfig
from storage.features import FeatureRows
from storage.specs import EmbeddingsSpec, Float16Codec, Int8Codec, RelationsSpec
from tests.pipelines.support import (
    config_of,
    experiment,
    folder_source,
    picture,
    save_teacher,
    timm_teacher,
    write_folder,
)

TARGETS = {
    "hidden": {"kind": "hidden_states", "layers": [0, 1]},
    "grouped": {"kind": "hidden_states", "layers": [0, 1], "codec": {"kind": "int8", "group": 16}},
    "mean": {"kind": "hidden_states", "layers": [0, 1], "tokens": "mean", "codec": {"kind": "float16"}},
    "first": {"kind": "hidden_states", "layers": [0, 1], "tokens": "first"},
    "attention": {"kind": "attention", "layers": [1], "codec": {"kind": "float16"}},
    "relations": {"kind": "relations", "layer": 1},
    "embeddings": {"kind": "embeddings"},
}


@pytest.fixture(autouse=True)
def _as_in_a_new_process():
    transforms._teachers.clear()
    yield
    transforms._teachers.clear()


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """12 pictures in 2 units, one of them none, 2 views, labelled with every kind of vectors."""
    folder = tmp_path_factory.mktemp("audit")
    write_folder(folder / "pictures", per_class=4)
    (folder / "pictures" / "green" / "002.png").write_bytes(b"no picture")
    data = experiment(
        cache=folder / "cache",
        source=folder_source(folder / "pictures"),
        teacher=timm_teacher(save_teacher(folder / "teacher.safetensors")),
        generation={"dead_letter_limit": 0.5},
    )
    del data["target"]
    config = config_of({**data, "targets": TARGETS})
    run_labels(plan_runs(config, progress=False), progress=False)
    return config


def look(config: ExperimentConfig, target, **options):
    return audit(config, label_set=f"tiny.{target}", progress=False, **{"num_rows": 24, **options})


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_teacher_that_made_vectors_says_the_same_again(labelled, target, batch_size):
    config = labelled.model_copy(update={"generation": labelled.generation.model_copy(update={"batch_size": batch_size})})
    found = look(config, target)
    assert (found["problems"], found["num_failing_rows"], found["num_rows"]) == ([], 0, 22)
    assert (found["num_units"], found["num_views"]) == (2, 2)
    assert (found["num_view_digests"], found["num_wrong_view_digests"]) == (22, 0)
    # Other batches than when they were labelled; what the codec rounds off is taken off.
    assert found["distance_max"] < 1e-4
    assert found["threshold"] == (0.004 if target == "relations" else 0.001)
    assert found["provenance_differences"] == []
    assert "views of pictures" in found["text"]
    assert found["top1_agreement"] is None


@pytest.fixture
def stored_as(monkeypatch):
    """Change what is stored of every row that is looked at."""
    real = auditing.stored_rows

    def change(function):
        monkeypatch.setattr(auditing, "stored_rows", lambda label_set, **options: function(list(real(label_set, **options))))

    return change


@pytest.mark.parametrize("target", TARGETS)
def test_vectors_that_moved_by_one_sample_fail(labelled, stored_as, target):
    stored_as(
        lambda rows: [
            replace(row, values=rows[number - 1].values, limits=rows[number - 1].limits) for number, row in enumerate(rows)
        ]
    )
    found = look(labelled, target)
    assert found["num_failing_rows"] == 22
    assert "views of pictures are not what the teacher says of them now" in found["problems"][0]


@pytest.mark.parametrize("target", ["hidden", "grouped", "mean", "first"])
def test_vectors_of_the_next_layer_fail(labelled, stored_as, target):
    def moved(rows: FeatureRows) -> FeatureRows:
        names = list(rows.tensors)
        return FeatureRows(tensors=dict(zip(names, [rows.tensors[name] for name in names[1:] + names[:1]], strict=True)))

    stored_as(lambda rows: [replace(row, values=moved(row.values), limits=moved(row.limits)) for row in rows])
    assert look(labelled, target)["num_failing_rows"] == 22


@pytest.mark.parametrize("target", TARGETS)
def test_a_teacher_whose_code_gives_something_else_fails(labelled, target):
    teacher = transforms.shared_teacher(labelled.teacher)
    with torch.no_grad():
        for parameter in teacher.vector_network.module.parameters():
            parameter.mul_(1.02)
    found = look(labelled, target)
    assert found["num_failing_rows"] == 22
    worst = found["worst"][0]
    assert worst["distance"] == found["distance_max"] < 1
    assert f"{worst['key']!r}, view {worst['view']}: distance" in found["text"]
    assert not look(labelled, target, threshold=1.0)["problems"]


def test_nan_and_other_shapes_fail_with_the_reason(labelled, stored_as, monkeypatch):
    real = audit_pictures.extract_picture_vectors

    def broken(*arguments, **options):
        rows, storable = real(*arguments, **options)
        storable[0] = False
        return rows, storable

    monkeypatch.setattr(audit_pictures, "extract_picture_vectors", broken)
    found = look(labelled, "hidden", num_rows=8)
    assert found["num_failing_rows"] == 2
    assert "it was labelled, and now teacher: its hidden_states hold NaN or infinity" in found["text"]
    monkeypatch.setattr(audit_pictures, "extract_picture_vectors", real)
    stored_as(lambda rows: [replace(row, values=row.values.take(np.arange(3))) for row in rows])
    assert "a picture has 5 rows of hidden_states where 3 are stored" in look(labelled, "hidden")["text"]


def test_other_pixels_fail_by_their_digest(labelled, stored_as):
    stored_as(lambda rows: [replace(row, view_digest=row.view_digest ^ 1) for row in rows])
    found = look(labelled, "first")
    assert found["num_wrong_view_digests"] == found["num_failing_rows"] == 22
    assert "its pixels are not those that were labelled" in found["text"]
    assert "other pixels: 22" in found["problems"][0]


def test_fewer_layers_served_by_wider_labels_are_audited_as_stored(labelled):
    narrow = labelled.model_copy(
        update={"name": "narrow", "targets": None, "target": labelled.targets["hidden"].model_copy(update={"layers": (1,)})}
    )
    (report,) = run_labels(plan_runs(narrow, progress=False), progress=False)
    assert report.num_computed_rows == 0
    found = audit(narrow, num_rows=6, progress=False)
    assert (found["num_failing_rows"], found["name"]) == (0, "narrow")


def test_a_distance_is_of_the_rows_own_length_or_of_the_samples_typical_one():
    now = FeatureRows(tensors={"x": np.array([[3.0, 4.0], [0.0, 0.0], [0.0, 5.0]], dtype=np.float32)})
    stored = FeatureRows(tensors={"x": np.array([[3.0, 4.0], [0.0, 0.5], [0.0, 5.2]], dtype=np.float32)})
    nothing = FeatureRows(tensors={"x": np.zeros((3, 2), dtype=np.float32)})
    # A dot product that is zero but for noise is measured by what others are like.
    assert vector_distance(stored, now, limits=nothing) == pytest.approx(0.1)
    rounded = FeatureRows(tensors={"x": np.full((3, 2), 0.3, dtype=np.float32)})
    assert vector_distance(stored, now, limits=rounded) == pytest.approx(0.04)
    wide = FeatureRows(tensors={"x": np.full((3, 2), 0.6, dtype=np.float32)})
    assert vector_distance(stored, now, limits=wide) == 0


def test_thresholds_of_vectors_follow_precision_and_not_the_codec():
    def of(precision, codec):
        return default_threshold(EmbeddingsSpec(width=3, codec=codec), precision=precision)

    assert of("fp32", Float16Codec()) == of("fp32", Int8Codec()) < of("fp16", Int8Codec()) < of("bf16", Int8Codec()) < 0.3
    relations = RelationsSpec(layer=1, vectors=("query",), num_relation_heads=2, codec=Float16Codec())
    assert default_threshold(relations, precision="bf16") == 4 * of("bf16", Float16Codec())


def test_a_changed_picture_of_the_source_is_refused(labelled, tmp_path):
    other = write_folder(tmp_path / "pictures", per_class=4)
    (other / "green" / "001.png").write_bytes(picture(1, 77))
    config = labelled.model_copy(update={"source": labelled.source.model_copy(update={"path": str(other)})})
    with pytest.raises(auditing.MismatchError, match="the source no longer holds what label set 'tiny.mean'"):
        look(config, "mean")
