"""Facts of a teacher are found again by the content of its files, and by nothing that could be stale."""

from __future__ import annotations

import json
import shutil

import pytest
import safetensors.torch
import timm
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from pipelines.teacher_memo import TeacherFacts, TeacherMemo
from pipelines.teachers import load_teacher
from storage.cache import Cache
from storage.config import TeacherConfig
from tests.pipelines.support import colour_teacher, save_teacher, timm_teacher


def teacher_config(data):
    return TeacherConfig.model_validate_json(json.dumps(data))


@pytest.fixture
def memo(tmp_path):
    return TeacherMemo(Cache.at(str(tmp_path / "cache")))


@pytest.fixture
def checkpoint(tmp_path):
    return save_teacher(tmp_path / "teacher.safetensors")


def remember(memo, config):
    facts = TeacherFacts.of(load_teacher(config))
    memo.remember(config, facts=facts)
    return facts


def test_what_was_remembered_is_what_loading_would_say(memo, checkpoint):
    config = teacher_config(timm_teacher(checkpoint))
    assert memo.find(config) is None
    facts = remember(memo, config)
    assert memo.find(config) == facts == TeacherFacts.of(load_teacher(config))


def test_a_moved_file_is_known_and_a_changed_one_is_not(memo, checkpoint, tmp_path):
    config = teacher_config(timm_teacher(checkpoint))
    facts = remember(memo, config)
    moved = shutil.copy(checkpoint, tmp_path / "other_name.safetensors")
    assert memo.find(teacher_config(timm_teacher(moved))) == facts
    save_teacher(checkpoint, seed=1)
    assert memo.find(config) is None
    assert remember(memo, config).spec.weights_sha256 != facts.spec.weights_sha256


@pytest.mark.parametrize(
    ("change", "known"),
    [
        ({"device": "auto"}, True),
        ({"precision": "bf16"}, False),
        ({"num_classes": None}, False),
        ({"kwargs": {"img_size": 16, "patch_size": 8, "depth": 1, "qkv_bias": True}}, False),
        ({"name": "vit_tiny_patch16_224"}, False),
    ],
)
def test_settings_that_change_the_teacher_are_part_of_the_question(memo, checkpoint, change, known):
    data = timm_teacher(checkpoint)
    remember(memo, teacher_config(data))
    assert (memo.find(teacher_config({**data, **change})) is not None) == known


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff\xfe", b'{"spec": 1}'])
def test_a_damaged_memo_counts_as_none_and_is_written_anew(memo, checkpoint, tmp_path, damage):
    config = teacher_config(timm_teacher(checkpoint))
    facts = remember(memo, config)
    (file,) = (tmp_path / "cache" / "teachers").iterdir()
    file.write_bytes(damage)
    assert memo.find(config) is None
    memo.remember(config, facts=facts)
    assert memo.find(config) == facts


def test_a_memo_that_says_something_else_counts_as_none(memo, checkpoint, tmp_path):
    config = teacher_config(timm_teacher(checkpoint))
    facts = remember(memo, config)
    (file,) = (tmp_path / "cache" / "teachers").iterdir()
    assert facts.evaluation.size == (16, 16)
    changed = file.read_bytes().replace(b'"size":[16,16]', b'"size":[18,16]')
    assert changed != file.read_bytes()
    file.write_bytes(changed)
    assert memo.find(config) is None


def test_the_memo_of_another_teacher_counts_as_none(memo, checkpoint, tmp_path):
    config = teacher_config(timm_teacher(checkpoint))
    other = teacher_config(timm_teacher(save_teacher(tmp_path / "other.safetensors", seed=1)))
    remember(memo, config)
    (file,) = (tmp_path / "cache" / "teachers").iterdir()
    remember(memo, other)
    (others,) = set((tmp_path / "cache" / "teachers").iterdir()) - {file}
    file.write_bytes(others.read_bytes())
    assert memo.find(config) is None
    assert memo.find(other) is not None


@pytest.mark.parametrize(
    "data",
    [
        colour_teacher(),
        {"kind": "timm", "name": "hf-hub:someone/model"},
        {"kind": "transformers", "name": "someone/model"},
        {"kind": "timm", "name": "hf-hub:someone/model", "checkpoint": __file__},
        {"kind": "transformers", "name": "someone/model", "checkpoint": __file__},
        {"kind": "timm", "name": "test_vit", "checkpoint": "/nowhere/teacher.safetensors"},
    ],
)
def test_code_hub_models_and_missing_files_are_never_remembered(memo, checkpoint, tmp_path, data):
    facts = TeacherFacts.of(load_teacher(teacher_config(timm_teacher(checkpoint))))
    memo.remember(teacher_config(data), facts=facts)
    assert memo.find(teacher_config(data)) is None
    assert not (tmp_path / "cache" / "teachers").exists()


def save_transformers_model(folder):
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=16, patch_size=8, num_labels=3
    )
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def test_a_folder_is_known_by_all_its_files_wherever_it_lies(memo, tmp_path):
    folder = save_transformers_model(tmp_path / "model")
    config = teacher_config({"kind": "transformers", "name": str(folder), "device": "cpu"})
    facts = remember(memo, config)
    moved = shutil.copytree(folder, tmp_path / "moved")
    assert memo.find(teacher_config({"kind": "transformers", "name": str(moved), "device": "cpu"})) == facts
    settings = folder / "preprocessor_config.json"
    settings.write_text(settings.read_text().replace("0.5", "0.4", 1))
    assert memo.find(config) is None


def test_a_checkpoint_beside_a_folder_hides_no_change_of_the_folder(memo, tmp_path):
    folder = save_transformers_model(tmp_path / "model")
    checkpoint = str(tmp_path / "finetuned.safetensors")
    safetensors.torch.save_file(ViTForImageClassification.from_pretrained(folder).state_dict(), checkpoint)
    data = {"kind": "transformers", "name": str(folder), "checkpoint": checkpoint, "device": "cpu"}
    remember(memo, teacher_config(data))
    assert memo.find(teacher_config(data)) is not None
    settings = folder / "preprocessor_config.json"
    settings.write_text(settings.read_text().replace("0.5", "0.4", 1))
    assert memo.find(teacher_config(data)) is None


def test_a_folder_inside_the_folder_is_looked_into_where_the_config_names_it(memo, tmp_path):
    save_transformers_model(tmp_path / "model" / "deep")
    data = {"kind": "transformers", "name": str(tmp_path / "model"), "kwargs": {"subfolder": "deep"}, "device": "cpu"}
    remember(memo, teacher_config(data))
    assert memo.find(teacher_config(data)) is not None
    settings = tmp_path / "model" / "deep" / "preprocessor_config.json"
    settings.write_text(settings.read_text().replace("0.5", "0.4", 1))
    assert memo.find(teacher_config(data)) is None


def test_a_folder_of_timm_is_known_by_its_files(memo, tmp_path):
    folder = tmp_path / "model"
    module = timm.create_model("test_vit", pretrained=False, num_classes=3)
    timm.models.save_for_hf(module, folder)
    config = teacher_config({"kind": "timm", "name": f"local-dir:{folder}", "device": "cpu"})
    facts = remember(memo, config)
    moved = shutil.copytree(folder, tmp_path / "moved")
    assert memo.find(teacher_config({"kind": "timm", "name": f"local-dir:{moved}", "device": "cpu"})) == facts
    (folder / "config.json").write_text((folder / "config.json").read_text().replace("{", "{ ", 1))
    assert memo.find(config) is None
