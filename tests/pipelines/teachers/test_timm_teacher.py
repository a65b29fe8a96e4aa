"""What is particular to timm teachers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
from timm.models import save_for_hf

from pipelines.teachers import Teacher, load_teacher
from pipelines.teachers.preprocessing import timm_preprocessing
from storage.config import TeacherConfig
from storage.errors import TeacherError
from storage.specs import EvaluationView, Normalization


@pytest.fixture
def checkpoint(tmp_path: Path, shake: Callable[..., Any], save_state: Callable[..., str]) -> Callable[..., str]:
    def save(name: str, **kwargs: Any) -> str:
        return save_state(shake(timm.create_model(name, **kwargs)).state_dict(), tmp_path / f"{name}.safetensors")

    return save


def load(name: str, checkpoint: str | None = None, **fields: Any) -> Teacher:
    return load_teacher(TeacherConfig(kind="timm", name=name, checkpoint=checkpoint, device="cpu", **fields))


def test_preprocessing_is_timms(checkpoint: Callable[..., str]) -> None:
    teacher = load("test_resnet", checkpoint("test_resnet"))
    assert teacher.preprocessing.view == EvaluationView(size=(160, 160), resize_size=(168, 168), interpolation="bilinear")
    assert teacher.preprocessing.normalization == Normalization(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    assert teacher.preprocessing.input_size == (160, 160)
    assert teacher.class_names is None
    assert teacher.spec.num_classes == 1000


def test_size_of_the_network_is_the_size_of_the_view(checkpoint: Callable[..., str]) -> None:
    kwargs = {"img_size": [48, 32]}
    teacher = load("test_vit", checkpoint("test_vit", img_size=(48, 32)), kwargs=kwargs)
    assert teacher.preprocessing.input_size == (48, 32)


def test_overlay_changes_preprocessing(checkpoint: Callable[..., str]) -> None:
    overlay = {"input_size": [3, 64, 64], "crop_pct": 1.0, "crop_mode": "squash", "mean": [0.4, 0.4, 0.4]}
    teacher = load("test_resnet", checkpoint("test_resnet"), kwargs={"pretrained_cfg_overlay": overlay})
    assert teacher.preprocessing.view == EvaluationView(
        size=(64, 64), resize="squash", resize_size=(64, 64), interpolation="bilinear"
    )
    assert teacher.spec.normalization.mean == (0.4, 0.4, 0.4)


def test_architecture_is_canonical(checkpoint: Callable[..., str]) -> None:
    path = checkpoint("test_vit", num_classes=5, img_size=32, patch_size=8)
    first = load("test_vit", path, num_classes=5, kwargs={"patch_size": 8, "img_size": 32})
    second = load("test_vit.r160_in1k", path, num_classes=5, kwargs={"img_size": 32, "patch_size": 8})
    assert first.spec.architecture == 'test_vit{"img_size":32,"patch_size":8}'
    assert first.spec == second.spec
    assert load("test_resnet", checkpoint("test_resnet")).spec.architecture == "test_resnet"


def test_local_folder_brings_weights_names_and_arguments(tmp_path: Path, shake: Callable[..., Any]) -> None:
    module = shake(timm.create_model("test_vit", num_classes=3, img_size=32, patch_size=8))
    save_for_hf(
        module,
        tmp_path / "model",
        model_args={"img_size": 32, "patch_size": 8},
        model_config={"label_names": ["cat", "dog", "eel"]},
    )
    teacher = load(f"local-dir:{tmp_path / 'model'}")
    assert teacher.class_names == ("cat", "dog", "eel")
    assert teacher.spec.architecture.startswith("test_vit{")
    assert '"patch_size":8' in teacher.spec.architecture
    assert teacher.spec.num_classes == 3
    assert load(f"local-dir:{(tmp_path / 'model').rename(tmp_path / 'moved')}").spec == teacher.spec
    (tmp_path / "moved").rename(tmp_path / "model")
    with pytest.raises(TeacherError, match=r"gives 3 classes but teacher\.num_classes is 8"):
        load(f"local-dir:{tmp_path / 'model'}", num_classes=8)


@pytest.mark.parametrize("keeps_account", [True, False])
def test_arguments_that_lie_beside_weights_are_identity_on_every_timm(
    tmp_path: Path, shake: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, keeps_account: bool
) -> None:
    """timm of before 1.0.31 does not note on a network what it was built with."""
    module = shake(timm.create_model("test_vit", num_classes=3, img_size=32, patch_size=8))
    create = timm.create_model

    def create_as_before(*names: Any, **kwargs: Any) -> Any:
        made = create(*names, **kwargs)
        del made._model_args
        return made

    found = []
    for folder, more in (("plain", {}), ("relu", {"act_layer": "relu"})):
        save_for_hf(module, tmp_path / folder, model_args={"img_size": 32, "patch_size": 8, **more})
        with monkeypatch.context() as patch:
            if not keeps_account:
                patch.setattr(timm, "create_model", create_as_before)
            overlay = {"pretrained_cfg_overlay": {"crop_pct": 0.9}}
            found.append(load(f"local-dir:{tmp_path / folder}", kwargs=overlay).spec.architecture)
    assert found == [
        'test_vit{"global_pool":"token","img_size":[32,32],"in_chans":3,"patch_size":8}',
        'test_vit{"act_layer":"relu","global_pool":"token","img_size":[32,32],"in_chans":3,"patch_size":8}',
    ]


def test_network_without_a_classifier_is_refused(tmp_path: Path) -> None:
    save_for_hf(timm.create_model("test_resnet", num_classes=0), tmp_path / "features")
    with pytest.raises(TeacherError, match="gives features, not classes"):
        load(f"local-dir:{tmp_path / 'features'}")


def test_weights_that_cannot_be_downloaded_name_the_remedy() -> None:
    with pytest.raises(TeacherError, match=r"cannot build tiny_vit_5m_224: .*give a local file: teacher\.checkpoint: "):
        load("tiny_vit_5m_224")
    with pytest.raises(TeacherError, match=r"cannot build hf-hub:nobody/nothing: .*give a local file: teacher\.checkpoint: "):
        load("hf-hub:nobody/nothing")


def test_default_classes_that_differ_from_the_checkpoint_name_the_remedy(checkpoint: Callable[..., str]) -> None:
    with pytest.raises(TeacherError, match=r"set teacher\.num_classes: 100 \(the model was built for 1000\)"):
        load("test_resnet", checkpoint("test_resnet", num_classes=100))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("test_resnett", r"no model 'test_resnett'\. Did you mean 'test_resnet'\?"),
        ("test_resnet.r161_in1k", r"no weights 'r161_in1k' of test_resnet\. Did you mean 'test_resnet\.r160_in1k'\?"),
        ("timm/test_resnet", r"cannot build timm/test_resnet: ValueError: .*hf-hub:timm/test_resnet"),
    ],
)
def test_unknown_name_is_refused(name: str, said: str) -> None:
    with pytest.raises(TeacherError, match=said):
        load(name)


def test_unknown_argument_is_refused(checkpoint: Callable[..., str]) -> None:
    with pytest.raises(TeacherError, match=r"unexpected keyword argument 'img_siz'.*Check teacher\.name and teacher\.kwargs"):
        load("test_vit", checkpoint("test_vit"), kwargs={"img_siz": 32})


@pytest.mark.parametrize(
    ("argument", "field"), [("pretrained", "checkpoint"), ("checkpoint_path", "checkpoint"), ("num_classes", "num_classes")]
)
def test_arguments_with_a_field_of_their_own_are_refused(argument: str, field: str) -> None:
    with pytest.raises(TeacherError, match=rf"teacher\.kwargs\.{argument} .*use teacher\.{field} instead"):
        load("test_vit", kwargs={argument: 1})


def test_view_of_another_size_than_the_network_takes_is_named(
    checkpoint: Callable[..., str], picture: Callable[..., Any]
) -> None:
    import numpy as np

    teacher = load("test_vit", checkpoint("test_vit", img_size=32), kwargs={"img_size": 32})
    with pytest.raises(TeacherError, match=r"failed on a batch of 1 views of 40 x 40 .*views\.size"):
        teacher.logits(np.asarray(picture(40, 40))[None])


COMPLETE = {"input_size": (3, 64, 48), "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}


def test_defaults_of_a_description_are_timms() -> None:
    preprocessing = timm_preprocessing(COMPLETE | {"crop_pct": None, "classifier": "head"}, name="x")
    assert preprocessing.view == EvaluationView(size=(64, 48), resize_size=(73, 54))
    assert preprocessing.normalization == Normalization(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"crop_mode": "border"}, r"crop_mode 'border' of teacher x cannot be rendered .*pretrained_cfg_overlay"),
        ({"input_size": (1, 64, 64)}, r"input_size of teacher x is \[1, 64, 64\]"),
        ({"input_size": None}, r"does not say input_size"),
        ({"mean": (0.5,)}, r"mean \[0\.5\]"),
        ({"std": (0.5, 0.5, 0.0)}, r"std above 0"),
        ({"interpolation": "bicubi"}, r"interpolation 'bicubi' .*Did you mean 'bicubic'"),
        ({"interpolation": "random"}, r"interpolation 'random' of teacher x cannot be rendered"),
    ],
)
def test_description_that_cannot_be_expressed_names_the_entry(change: dict[str, Any], said: str) -> None:
    with pytest.raises(TeacherError, match=said):
        timm_preprocessing(COMPLETE | change, name="x")
