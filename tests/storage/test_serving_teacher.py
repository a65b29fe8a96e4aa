"""Labels of another teacher are refused: by what the label set says, by content of files, by what was remembered of them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from storage.cache import Cache
from storage.config import ExperimentConfig, TeacherConfig
from storage.errors import MismatchError
from storage.hashing import canonical_json, seal
from storage.serving import served_picture_target, served_target
from storage.specs import ImportedTeacher
from storage.teacher_files import memo_name
from storage.teacher_record import TeacherRecord
from storage.text.serving import served_text_target
from tests.storage.caches import make_labeller
from tests.storage.text_caches import MASKED_LABELS, make_text_labeller, make_text_request

VIEWS = {"kind": "random_resized_crop", "count": 2}
KWARGS = {"img_size": 8}


def teacher(weights=None, **changes):
    """The teacher of the labels, as a config names it."""
    data = {"kind": "timm", "name": "tiny", "kwargs": KWARGS, "checkpoint": None if weights is None else str(weights)}
    return {**data, **changes}


def config(section):
    data = {"name": "tiny", "views": VIEWS, "target": {"k": 3}, "teacher": section}
    return ExperimentConfig.model_validate_json(json.dumps(data))


def of(section):
    return TeacherConfig.model_validate_json(json.dumps(section))


@pytest.fixture
def weights(tmp_path):
    file = tmp_path / "t0.safetensors"
    file.write_bytes(b"weights")
    return file


@pytest.fixture
def label_set(tmp_path, weights):
    made = make_labeller(tmp_path).label()
    return recorded(made, TeacherRecord.of(of(teacher(weights))))


def recorded(label_set, record):
    """The label set, as if it had been made with such a teacher."""
    return replace(label_set, manifest=label_set.manifest.model_copy(update={"teacher": record}))


def problems(label_set, section, *, sections=None):
    """Lines of the refusal between the first and the last."""
    try:
        served_target(label_set, config=config(section), sections=sections)
    except MismatchError as error:
        _, *lines, last = str(error).splitlines()
        assert "Run decant label with this config, or name another label set in training.targets.label_set" in last
        assert "leave teacher out of the config" in last
        return [line.strip() for line in lines]
    return []


def test_the_teacher_of_the_labels_is_served_wherever_its_file_lies(label_set, weights, tmp_path):
    assert problems(label_set, teacher(weights)) == []
    moved = weights.rename(tmp_path / "elsewhere.safetensors")
    assert problems(label_set, teacher(moved)) == []
    assert problems(label_set, teacher(weights)) == []  # the path of the labels, which is gone
    assert problems(label_set, teacher(moved, device="cpu", num_classes=10)) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"precision": "bf16"}, "teacher.precision: the config asks for 'bf16', the label set holds 'fp32'"),
        ({"num_classes": 3}, "teacher.num_classes: the config asks for 3, the label set holds 10"),
        ({"kind": "transformers"}, "teacher.kind: the config asks for 'transformers', the label set holds 'timm'"),
    ],
)
def test_what_every_label_set_says_of_its_teacher_counts_always(label_set, weights, changes, said):
    assert problems(label_set, teacher(weights, **changes)) == [said]
    assert problems(label_set, teacher(weights, **changes), sections={"teacher"}) == [said]
    assert problems(recorded(label_set, None), teacher(weights, **changes)) == [said]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "other"}, "teacher.name: the config names 'other', the labels were made by 'tiny'"),
        ({"kwargs": {}}, "teacher.kwargs.img_size: the config asks for None, the labels were made with 8"),
        ({"kwargs": {**KWARGS, "depth": 1}}, "teacher.kwargs.depth: the config asks for 1, the labels were made with None"),
        ({"checkpoint": None}, "teacher.checkpoint: the config names None, the labels were made with '"),
        ({"checkpoint": "not/here"}, "without both files, nothing shows that they are the same"),
    ],
)
def test_what_the_label_set_records_counts_unless_it_was_named(label_set, weights, changes, said):
    (line,) = problems(label_set, teacher(weights, **changes))
    assert said in line
    assert problems(label_set, teacher(weights, **changes), sections={"teacher"}) == []
    assert problems(recorded(label_set, None), teacher(weights, **changes)) == []


def test_other_bytes_are_another_teacher_whatever_the_file_is_called(label_set, weights, tmp_path):
    other = tmp_path / "t1.safetensors"
    other.write_bytes(b"others!")
    (line,) = problems(label_set, teacher(other))
    assert line.startswith(f"teacher.checkpoint: the config names '{other}', the labels were made with '{weights}' (sha256 ")
    weights.write_bytes(b"others!")
    (line,) = problems(label_set, teacher(weights))
    assert line.startswith("teacher.checkpoint: ")


def test_a_local_folder_counts_by_its_weights_and_configs(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "metrics.jsonl"):
        (folder / name).write_text(name)
    record = TeacherRecord.of(of(teacher(name=f"local-dir:{folder}")))
    labels = recorded(make_labeller(tmp_path).label(), record)
    moved = folder.rename(tmp_path / "moved")
    (moved / "metrics.jsonl").write_text("went on")
    assert problems(labels, teacher(name=f"local-dir:{moved}")) == []
    (line,) = problems(labels, teacher(name=f"local-dir:{tmp_path / 'nowhere'}"))
    assert "without the files of both, nothing shows that they are the same" in line
    (moved / "config.json").write_text("another")
    (line,) = problems(labels, teacher(name=f"local-dir:{moved}"))
    assert line.startswith("teacher.name: ")
    assert "whose config.json was sha256 " in line


def test_what_was_remembered_of_the_files_goes_before_the_record(label_set, weights, tmp_path):
    """The same weights in another file are the same teacher, and labels without a record are of the teacher of their weights."""
    other = tmp_path / "same_weights.pt"
    other.write_bytes(b"other bytes")
    name = memo_name(of(teacher(other)))
    spec = label_set.manifest.request.teacher

    def remember(spec):
        memo = {"name": name, "facts": {"spec": spec.to_json(), "class_names": None}}
        label_set.cache.store.write(name, seal(canonical_json(memo)))

    assert len(problems(label_set, teacher(other))) == 1
    remember(spec)
    assert problems(label_set, teacher(other)) == []
    remember(spec.model_copy(update={"weights_sha256": "ab" * 32}))
    (line,) = problems(recorded(label_set, None), teacher(other))
    assert line == f"teacher: the config's has weights_sha256 '{'ab' * 32}', that of the label set '{'5e' * 32}'"
    assert problems(label_set, teacher(other))[0].startswith("teacher.checkpoint: ")
    label_set.cache.store.write(name, b"damaged")
    assert problems(recorded(label_set, None), teacher(other)) == []
    label_set.cache.store.remove(name)
    label_set.cache.store.write(f"{name}/in the way", b"")
    assert problems(recorded(label_set, None), teacher(other)) == []


def test_imported_labels_are_of_no_teacher_that_a_config_can_name(label_set, weights):
    request = label_set.manifest.request.model_copy(update={"teacher": ImportedTeacher(architecture="CLIP", num_classes=10)})
    imported = replace(label_set, manifest=label_set.manifest.model_copy(update={"request": request, "teacher": None}))
    assert problems(imported, teacher(weights)) == ["teacher.kind: the config asks for 'timm', the label set holds 'imported'"]
    assert problems(imported, teacher(weights), sections={"teacher"}) == []
    assert len(problems(imported, teacher(weights, num_classes=3), sections={"teacher"})) == 1


def test_secrets_of_a_config_are_not_kept():
    section = {"kind": "transformers", "name": "org/model", "kwargs": {"token": "hf_secret", "revision": "v2", "depth": 1}}
    record = TeacherRecord.of(of(section))
    assert record.kwargs == {"revision": "v2", "depth": 1}
    assert record.why_other(of({**section, "kwargs": {**section["kwargs"], "token": "another"}})) == []
    assert record.why_other(of({**section, "kwargs": {"depth": 1}})) != []


def test_targets_of_any_kind_and_texts_refuse_another_teacher_too(label_set, weights, tmp_path):
    with pytest.raises(MismatchError, match=r"teacher\.precision: [^\0]* Students need no teacher beside stored labels"):
        served_picture_target(label_set, config=config(teacher(weights, precision="fp16")), name="target", sections=None)
    texts = make_text_labeller(tmp_path / "texts", request=make_text_request(target=MASKED_LABELS)).label()
    data = {
        "name": "texts",
        "teacher": {"kind": "masked_lm", "name": "bert", "precision": "bf16"},
        "views": {"kind": "masked_tokens", "length": 16},
        "target": {"k": 3},
    }
    with pytest.raises(MismatchError, match=r"teacher\.precision: the config asks for 'bf16', the label set holds 'fp32'"):
        served_text_target(texts, config=ExperimentConfig.model_validate_json(json.dumps(data)), name="target", sections=None)


def test_manifests_keep_the_record_and_do_without(label_set, tmp_path):
    labeller = make_labeller(tmp_path / "plain")
    assert b'"teacher":null' not in labeller.cache.store.read(f"{labeller.label().folder}/manifest.json")
    text = label_set.manifest.model_dump_json()
    assert type(label_set.manifest).model_validate_json(text).teacher == label_set.manifest.teacher
    assert Cache.at(str(tmp_path / "cache")).store.url
