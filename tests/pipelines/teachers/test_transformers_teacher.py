"""What is particular to transformers teachers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from pipelines.teachers import Teacher, load_teacher
from pipelines.teachers.transformers_preprocessing import transformers_preprocessing
from storage.config import TeacherConfig
from storage.errors import TeacherError
from storage.views import draw_view_params, render


@pytest.fixture
def folder(tmp_path: Path, shake: Callable[..., Any]) -> Path:
    config = transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        layer_type="basic",
        num_labels=3,
        id2label={0: "cat", 1: "dog", 2: "eel"},
    )
    shake(transformers.ResNetForImageClassification(config)).save_pretrained(tmp_path / "model")
    transformers.ConvNextImageProcessor(size={"shortest_edge": 32}).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def load(name: Path | str, **fields: Any) -> Teacher:
    return load_teacher(TeacherConfig(kind="transformers", name=str(name), device="cpu", **fields))


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_class_names_are_the_configs(folder: Path) -> None:
    teacher = load(folder)
    assert teacher.class_names == ("cat", "dog", "eel")
    edit(folder / "config.json", lambda config: config.update(id2label={"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}))
    assert load(folder).class_names is None


def test_convnext_rule_sets_the_view(folder: Path) -> None:
    view = load(folder).preprocessing.view
    assert (view.size, view.resize, view.resize_size, view.interpolation) == ((32, 32), "shorter_edge", (36, 36), "bicubic")


def test_identity_ignores_version_names_and_place(folder: Path, tmp_path: Path) -> None:
    spec = load(folder).spec
    assert spec.architecture.startswith("ResNetForImageClassification@")

    def relabel(config: dict[str, Any]) -> None:
        config.update(
            transformers_version="9.9.9", _name_or_path="/somewhere", architectures=None, id2label={"0": "a", "1": "b", "2": "c"}
        )

    edit(folder / "config.json", relabel)
    folder = folder.rename(tmp_path / "moved")
    assert load(folder).spec == spec


def test_identity_sees_the_config_and_its_overrides(folder: Path) -> None:
    before = load(folder).spec.architecture
    overridden = load(folder, kwargs={"hidden_act": "gelu"}).spec.architecture
    edit(folder / "config.json", lambda config: config.update(hidden_act="gelu"))
    edited = load(folder).spec.architecture
    assert len({before, overridden, edited}) == 3


def test_checkpoint_takes_the_place_of_the_weights(
    folder: Path, shake: Callable[..., Any], save_state: Callable[..., str]
) -> None:
    own = load(folder)
    module = shake(transformers.AutoModelForImageClassification.from_pretrained(folder), seed=4)
    other = load(folder, checkpoint=save_state(module.state_dict(), folder / "other.pt"))
    assert other.spec.weights_sha256 != own.spec.weights_sha256
    assert other.spec.architecture == own.spec.architecture
    (folder / "model.safetensors").unlink()
    same = load(folder, checkpoint=str(folder / "other.pt"))
    assert same.spec == other.spec


def test_checkpoint_with_other_classes(folder: Path, save_state: Callable[..., str]) -> None:
    config = transformers.AutoConfig.from_pretrained(folder, num_labels=5)
    state = transformers.AutoModelForImageClassification.from_config(config).state_dict()
    path = save_state(state, folder / "five.safetensors")
    with pytest.raises(TeacherError, match=r"set teacher\.num_classes: 5 \(the model was built for 3\)"):
        load(folder, checkpoint=path)
    teacher = load(folder, checkpoint=path, num_classes=5)
    assert teacher.spec.num_classes == 5
    assert teacher.class_names is None


def test_place_and_revision_of_the_files_are_no_identity(folder: Path, tmp_path: Path) -> None:
    there = load(folder, kwargs={"cache_dir": str(tmp_path / "cache"), "revision": "main", "token": "secret"})
    assert there.spec == load(folder).spec
    (tmp_path / "outer").mkdir()
    folder.rename(tmp_path / "outer" / "inner")
    assert load(tmp_path / "outer", kwargs={"subfolder": "inner"}).spec == there.spec


def test_attention_implementation_can_be_chosen(folder: Path) -> None:
    assert load(folder, kwargs={"attn_implementation": "eager"}).spec.architecture.endswith('{"attn_implementation":"eager"}')


@pytest.mark.parametrize("with_checkpoint", [False, True])
def test_unknown_override_is_refused(folder: Path, with_checkpoint: bool) -> None:
    checkpoint = str(folder / "model.safetensors") if with_checkpoint else None
    with pytest.raises(TeacherError, match=r"teacher\.kwargs\.hidden_akt is no entry .*Did you mean 'hidden_act'\?"):
        load(folder, checkpoint=checkpoint, kwargs={"hidden_akt": "gelu"})


def test_low_precision_files_lose_nothing_more(folder: Path, tmp_path: Path) -> None:
    module = transformers.AutoModelForImageClassification.from_pretrained(folder).half()
    module.save_pretrained(tmp_path / "half")
    transformers.AutoImageProcessor.from_pretrained(folder).save_pretrained(tmp_path / "half")
    stored = load(tmp_path / "half")
    assert stored.dtype == torch.float32
    module.float().save_pretrained(tmp_path / "full")
    transformers.AutoImageProcessor.from_pretrained(folder).save_pretrained(tmp_path / "full")
    assert load(tmp_path / "full").spec == stored.spec


def test_checkpoint_is_not_rounded_to_the_precision_of_the_config(folder: Path) -> None:
    expected = load(folder).spec
    edit(folder / "config.json", lambda config: config.update(dtype="float16"))
    assert load(folder, checkpoint=str(folder / "model.safetensors")).spec == expected


def test_weights_without_a_classifier_are_refused(folder: Path) -> None:
    module = transformers.AutoModelForImageClassification.from_pretrained(folder)
    module.resnet.save_pretrained(folder)
    with pytest.raises(TeacherError, match=r"lack 2 tensors of ResNetForImageClassification \(classifier.*would be random"):
        load(folder)


def test_name_that_leads_nowhere_is_explained(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=r"cannot load the model of nobody/nothing: .*or a local folder with config\.json"):
        load("nobody/nothing")
    with pytest.raises(TeacherError, match=r"cannot load the model of .*empty"):
        load(tmp_path / "empty")


def test_folder_without_an_image_processor_is_explained(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(TeacherError, match=r"cannot load the image processor of .*preprocessor_config\.json"):
        load(folder)


@pytest.mark.parametrize(
    ("argument", "field"), [("dtype", "precision"), ("torch_dtype", "precision"), ("num_labels", "num_classes")]
)
def test_arguments_with_a_field_of_their_own_are_refused(folder: Path, argument: str, field: str) -> None:
    with pytest.raises(TeacherError, match=rf"teacher\.kwargs\.{argument} .*use teacher\.{field} instead"):
        load(folder, kwargs={argument: "bfloat16"})


EXPRESSIBLE = [
    ("BeitImageProcessor", {}),
    ("BitImageProcessor", {}),
    ("CLIPImageProcessor", {}),
    ("CLIPImageProcessor", {"size": {"shortest_edge": 20}, "crop_size": {"height": 32, "width": 24}}),
    ("ConvNextImageProcessor", {}),
    ("ConvNextImageProcessor", {"size": {"shortest_edge": 224}}),
    ("DeiTImageProcessor", {}),
    ("EfficientNetImageProcessor", {}),
    ("EfficientNetImageProcessor", {"rescale_offset": True, "rescale_factor": 1 / 127.5, "include_top": False}),
    ("LevitImageProcessor", {}),
    ("LevitImageProcessor", {"size": {"height": 200, "width": 240}, "crop_size": {"height": 192, "width": 224}}),
    ("MobileNetV1ImageProcessor", {}),
    ("MobileNetV2ImageProcessor", {}),
    ("PoolFormerImageProcessor", {}),
    ("PoolFormerImageProcessor", {"crop_pct": None}),
    ("PvtImageProcessor", {}),
    ("SiglipImageProcessor", {}),
    ("ViTImageProcessor", {"size": {"height": 96, "width": 128}, "resample": 1}),
    ("ViTImageProcessor", {"resample": 0, "image_mean": 0.25, "image_std": 0.5}),
    ("ViTImageProcessor", {"do_normalize": False}),
    ("ViTImageProcessor", {"do_normalize": False, "do_rescale": False}),
]


@pytest.mark.parametrize(("kind", "fields"), EXPRESSIBLE)
@pytest.mark.parametrize(("width", "height"), [(400, 300), (300, 400)])
def test_view_and_normalisation_equal_the_processor(
    kind: str, fields: dict[str, Any], width: int, height: int, picture: Callable[..., Image.Image]
) -> None:
    preprocessing = transformers_preprocessing(getattr(transformers, kind)(**fields), name="x")
    image = picture(width, height)
    params = draw_view_params(preprocessing.view, key="", view_index=0, width=width, height=height)
    assert all((resized - length) % 4 != 3 for resized, length in zip(params.resize_size, params.size, strict=True))
    mean, std = np.array(preprocessing.normalization.mean), np.array(preprocessing.normalization.std)
    ours = (render(image, params, interpolation=preprocessing.view.interpolation) / 255 - mean) / std
    theirs = getattr(transformers, f"{kind}Pil")(**fields)(images=image, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(ours, theirs.transpose(1, 2, 0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "fields", "said"),
    [
        ("MobileViTImageProcessor", {}, "do_flip_channel_order = True"),
        ("DonutImageProcessor", {}, "do_pad = True"),
        ("ImageGPTImageProcessor", {}, "do_color_quantize = True"),
        ("Siglip2ImageProcessor", {}, "size = {}"),
        ("TextNetImageProcessor", {}, r"size = \{'shortest_edge': 640\} without do_center_crop"),
        ("ViTImageProcessor", {"size": {"shortest_edge": 20, "longest_edge": 40}}, r"size = \{.*'longest_edge': 40"),
        ("ViTImageProcessor", {"do_resize": False}, "do_resize = False"),
        ("ViTImageProcessor", {"image_mean": [0.5]}, r"image_mean or image_std = \[0\.5\]"),
        ("ViTImageProcessor", {"resample": 9}, "resample = 9"),
        ("PerceiverImageProcessor", {}, r"gives \[224, 224, 3\] where its fields say \[256, 256, 3\]"),
        ("PPLCNetImageProcessor", {}, "gives pixels that differ by up to"),
    ],
)
def test_processor_that_cannot_be_expressed_names_the_field(kind: str, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(TeacherError, match=said):
        transformers_preprocessing(getattr(transformers, kind)(**fields), name="x")


class _ShiftedProcessor(transformers.ViTImageProcessor):
    """Cuts four pixels off one side before it resizes, and says nothing of it in its fields."""

    def resize(self, image: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return super().resize(image[..., 4:], *args, **kwargs)


def test_processor_that_does_something_unsaid_is_found_out() -> None:
    with pytest.raises(TeacherError, match=r"_ShiftedProcessor of x gives pixels that differ by up to"):
        transformers_preprocessing(_ShiftedProcessor(), name="x")
