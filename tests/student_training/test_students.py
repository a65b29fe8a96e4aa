"""Students and their preprocessing."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file

from storage.config.students import StudentConfig
from storage.config.training import PreprocessingConfig
from storage.errors import ConfigError
from storage.specs import EvaluationView, RandomResizedCropView
from student_training.students import check_student, create_student, resolve_num_classes, resolve_preprocessing

VIEW = RandomResizedCropView(size=(32, 24))
KWARGS = {"img_size": 16, "patch_size": 8, "depth": 1}


def test_names_arguments_and_weights_are_checked(tmp_path):
    cases = [
        ({"name": "resnet_18"}, "Did you mean 'resnet18'"),
        ({"name": "zzzzqqqq"}, "list_models"),
        ({"name": "test_vit", "kwargs": {"dept": 1}}, r"cannot be made: TypeError: .*dept"),
        ({"name": "test_vit", "kwargs": {"num_classes": 3}}, "'num_classes', which Decant sets itself"),
        ({"name": "test_vit", "checkpoint": "x.safetensors", "pretrained": True}, "only one of them"),
        ({"name": "test_vit", "checkpoint": str(tmp_path / "gone.safetensors")}, "there is no file"),
    ]
    for fields, message in cases:
        with pytest.raises(ConfigError, match=message):
            create_student(StudentConfig(**fields), num_classes=3)


def test_starts_from_a_local_checkpoint(tmp_path):
    path = tmp_path / "start.safetensors"
    start = timm.create_model("test_vit", num_classes=3, **KWARGS)
    save_file(start.state_dict(), path)
    config = StudentConfig(name="test_vit", kwargs=KWARGS, checkpoint=str(path))
    model = create_student(config, num_classes=3)
    assert torch.equal(model.head.weight, start.head.weight)
    with pytest.raises(ConfigError, match=r"cannot be made from '.*start.safetensors': RuntimeError: .*head"):
        create_student(config, num_classes=4)


def test_starts_from_a_checkpoint_in_the_format_of_the_authors_and_never_from_code(tmp_path):
    sizes = {"embed_dims": [16] * 4, "depths": [1] * 4, "num_heads": [1] * 4, "window_sizes": [4] * 4}
    start = timm.create_model("tiny_vit_5m_224", num_classes=3, **sizes)
    tables = {f"stages.{stage}.blocks.0.attn.attention_bias_idxs": torch.arange(9) for stage in (1, 2, 3)}
    torch.save({"model": {**start.state_dict(), **tables}}, tmp_path / "original.pth")
    config = StudentConfig(name="tiny_vit_5m_224", kwargs=sizes, checkpoint=str(tmp_path / "original.pth"))
    model = create_student(config, num_classes=3)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in start.state_dict().items())
    torch.save({"model": start.state_dict(), "more": StudentConfig}, tmp_path / "code.pth")
    with pytest.raises(ConfigError, match=r"cannot be made from .*code\.pth': .*weights.only"):
        create_student(config.model_copy(update={"checkpoint": str(tmp_path / "code.pth")}), num_classes=3)


def test_preprocessing_takes_the_config_then_the_views_and_the_model():
    model = create_student(StudentConfig(name="test_vit", kwargs=KWARGS), num_classes=3)
    found = resolve_preprocessing(PreprocessingConfig(), model=model, view=VIEW)
    assert found.size == (32, 24)
    assert found.mean == found.std == (0.5, 0.5, 0.5)
    assert (found.interpolation, found.crop_fraction) == ("bicubic", 0.95)
    assert found.evaluation_view() == EvaluationView(size=(32, 24), resize_size=(33, 25), interpolation="bicubic")
    config = PreprocessingConfig(size=(16, 16), mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0), interpolation="box", crop_fraction=0.5)
    found = resolve_preprocessing(config, model=model, view=VIEW)
    assert found.evaluation_view() == EvaluationView(size=(16, 16), resize_size=(32, 32), interpolation="box")
    assert found.to_timm() == {
        "input_size": [3, 16, 16],
        "mean": [0.1, 0.2, 0.3],
        "std": [1.0, 1.0, 1.0],
        "interpolation": "box",
        "crop_pct": 0.5,
        "crop_mode": "center",
    }


def test_a_size_or_head_that_does_not_fit_is_found_before_training():
    model = create_student(StudentConfig(name="test_vit", kwargs={**KWARGS, "dynamic_img_size": False}), num_classes=3)
    check_student(model, name="test_vit", size=(16, 16), num_classes=3)
    assert model.training
    with pytest.raises(ConfigError, match=r"cannot take pictures of 24 x 24 .*default is 160 x 160"):
        check_student(model, name="test_vit", size=(24, 24), num_classes=3)
    headless = create_student(StudentConfig(name="test_vit", kwargs={**KWARGS, "global_pool": ""}), num_classes=3)
    with pytest.raises(ConfigError, match=r"gives \(1, 5, 3\)"):
        check_student(headless, name="test_vit", size=(16, 16), num_classes=3)


def test_classes_of_the_head():
    assert resolve_num_classes(StudentConfig(name="x"), num_classes=7, must_match=True) == 7
    assert resolve_num_classes(StudentConfig(name="x", num_classes=9), num_classes=7, must_match=False) == 9
    for fields in ({"num_classes": 9, "must_match": True}, {"num_classes": 5, "must_match": False}):
        with pytest.raises(ConfigError, match="over 7 classes"):
            resolve_num_classes(
                StudentConfig(name="x", num_classes=fields["num_classes"]), num_classes=7, must_match=fields["must_match"]
            )
