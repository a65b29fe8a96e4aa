"""What holds for every kind of teacher."""

from __future__ import annotations

import abc
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torchvision import transforms
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from pipelines.teachers import LOADERS, Teacher, load_teacher
from storage.config import TeacherConfig
from storage.config.teacher import TextTeacher
from storage.errors import TeacherError
from storage.views import draw_view_params, render

NUM_CLASSES = 7


class TeacherContract(abc.ABC):
    """Subclasses save one tiny network, and run it in its framework's own way."""

    kind: str

    @abc.abstractmethod
    def save(self, folder: Path, *, file_format: str, seed: int = 0) -> TeacherConfig:
        """Save the network with weights that depend on `seed` alone."""

    @abc.abstractmethod
    def plain_logits(self, config: TeacherConfig, image: Image.Image) -> torch.Tensor:
        """Return float32 [1, C] without any of Decant's code."""

    @pytest.fixture(autouse=True)
    def _tools(
        self,
        shake: Callable[..., Any],
        save_state: Callable[..., str],
        tmp_path: Path,
        picture: Callable[..., Image.Image],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        self.shake, self.save_state, self.picture = shake, save_state, picture
        (tmp_path / "decant_tiny_factory.py").write_text(FACTORY)
        monkeypatch.syspath_prepend(tmp_path)

    @pytest.fixture
    def config(self, tmp_path: Path) -> TeacherConfig:
        return self.save(tmp_path / "base", file_format="safetensors")

    def views(self, teacher: Teacher, *images: Image.Image) -> np.ndarray:
        view = teacher.preprocessing.view
        return np.stack(
            [
                render(
                    image,
                    draw_view_params(view, key="", view_index=0, width=image.width, height=image.height),
                    interpolation=view.interpolation,
                )
                for image in images
            ]
        )

    @pytest.mark.parametrize(("width", "height"), [(120, 80), (60, 90), (40, 40)])
    def test_logits_equal_the_plain_network_on_the_plain_picture(self, config: TeacherConfig, width: int, height: int) -> None:
        teacher, image = load_teacher(config), self.picture(width, height)
        logits = teacher.logits(self.views(teacher, image))
        assert logits.dtype == torch.float32
        assert logits.shape == (1, NUM_CLASSES)
        assert logits.device == teacher.device
        plain = self.plain_logits(config, image)
        assert plain.std() > 1e-2
        torch.testing.assert_close(logits, plain, rtol=0, atol=1e-5)

    def test_batch_order_and_company_do_not_matter(self, config: TeacherConfig) -> None:
        teacher = load_teacher(config)
        views = self.views(teacher, *(self.picture(50, 50, seed=seed) for seed in range(4)))
        logits = teacher.logits(views)
        torch.testing.assert_close(teacher.logits(views[::-1]), logits.flip(0), rtol=0, atol=1e-5)
        torch.testing.assert_close(teacher.logits(views[2:3]), logits[2:3], rtol=0, atol=1e-5)
        assert (logits[0] - logits[1]).abs().max() > 1e-3

    def test_same_batch_gives_the_same_bits(self, config: TeacherConfig) -> None:
        teacher = load_teacher(config)
        views = self.views(teacher, *(self.picture(50, 50, seed=seed) for seed in range(3)))
        assert torch.equal(teacher.logits(views), teacher.logits(views.copy()))

    def test_read_only_views_are_taken(self, config: TeacherConfig) -> None:
        teacher = load_teacher(config)
        views = self.views(teacher, self.picture(50, 50))
        expected = teacher.logits(views)
        views.flags.writeable = False
        assert torch.equal(teacher.logits(views), expected)

    def test_spec_is_stable_across_file_formats_and_places(self, config: TeacherConfig, tmp_path: Path) -> None:
        elsewhere = self.save(tmp_path / "elsewhere", file_format="pt")
        first, second = load_teacher(config), load_teacher(elsewhere)
        assert first.spec == second.spec
        assert first.spec.fingerprint() == second.spec.fingerprint()
        assert first.spec.kind == self.kind
        assert first.spec.num_classes == NUM_CLASSES
        assert str(tmp_path) not in first.spec.architecture

    def test_other_weights_are_another_teacher(self, config: TeacherConfig, tmp_path: Path) -> None:
        other = load_teacher(self.save(tmp_path / "other", file_format="safetensors", seed=1)).spec
        spec = load_teacher(config).spec
        assert other.weights_sha256 != spec.weights_sha256
        assert other.model_copy(update={"weights_sha256": spec.weights_sha256}) == spec

    def test_pickled_config_loads_the_same_teacher(self, config: TeacherConfig) -> None:
        travelled = pickle.loads(pickle.dumps(config))
        assert load_teacher(travelled).spec == load_teacher(config).spec

    @pytest.mark.parametrize("precision", ["bf16", "fp16"])
    def test_low_precision_is_close_and_another_teacher(self, config: TeacherConfig, precision: str) -> None:
        full, low = load_teacher(config), load_teacher(config.model_copy(update={"precision": precision}))
        views = self.views(full, self.picture(70, 50), self.picture(50, 70, seed=1))
        logits, expected = low.logits(views), full.logits(views)
        assert logits.dtype == torch.float32
        assert not torch.equal(logits, expected)
        assert (logits - expected).abs().max() < 0.1 * expected.abs().max()
        assert low.spec.precision == precision
        assert low.spec.weights_sha256 == full.spec.weights_sha256
        assert low.spec.fingerprint() != full.spec.fingerprint()

    def test_teacher_is_frozen_and_its_logits_fit_a_loss(self, config: TeacherConfig) -> None:
        teacher = load_teacher(config)
        logits = teacher.logits(self.views(teacher, self.picture(50, 50)))
        assert not logits.requires_grad
        student = torch.zeros(1, NUM_CLASSES, requires_grad=True)
        (student * logits).sum().backward()
        assert student.grad is not None
        torch.testing.assert_close(student.grad, logits)

    def test_wrong_number_of_classes_is_refused(self, config: TeacherConfig) -> None:
        with pytest.raises(TeacherError, match=r"num_classes: 7"):
            load_teacher(config.model_copy(update={"num_classes": 9}))

    def test_views_that_are_not_rendered_pixels_are_refused(self, config: TeacherConfig) -> None:
        teacher = load_teacher(config)
        for views in (np.zeros((1, 32, 32, 3), np.float32), np.zeros((32, 32, 3), np.uint8), np.zeros((1, 3, 32, 32), np.uint8)):
            with pytest.raises(TeacherError, match=r"takes rendered views, uint8 \[batch, height, width, 3\]"):
                teacher.logits(views)

    def test_missing_device_is_refused_before_anything_is_loaded(self, config: TeacherConfig) -> None:
        nowhere = config.model_copy(update={"device": "cuda:99", "checkpoint": "/does/not/exist"})
        with pytest.raises(TeacherError, match=r"teacher\.device is cuda:99"):
            load_teacher(nowhere)


class TestTimm(TeacherContract):
    kind = "timm"
    kwargs = {"img_size": 32, "patch_size": 8}

    def save(self, folder: Path, *, file_format: str, seed: int = 0) -> TeacherConfig:
        folder.mkdir()
        module = self.shake(timm.create_model("test_vit", num_classes=NUM_CLASSES, **self.kwargs), seed=seed)
        checkpoint = self.save_state(module.state_dict(), folder / f"weights.{file_format}")
        return TeacherConfig(kind="timm", name="test_vit", checkpoint=checkpoint, num_classes=NUM_CLASSES, kwargs=self.kwargs)

    def plain_logits(self, config: TeacherConfig, image: Image.Image) -> torch.Tensor:
        module = timm.create_model("test_vit", num_classes=NUM_CLASSES, checkpoint_path=config.checkpoint, **self.kwargs).eval()
        transform = create_transform(**resolve_data_config({"img_size": 32}, model=module), is_training=False)
        with torch.no_grad():
            return module(transform(image)[None])


class TestTransformers(TeacherContract):
    kind = "transformers"

    def save(self, folder: Path, *, file_format: str, seed: int = 0) -> TeacherConfig:
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        config = ViTConfig(image_size=32, patch_size=8, num_labels=NUM_CLASSES, **sizes)
        module = self.shake(ViTForImageClassification(config), seed=seed)
        module.save_pretrained(folder)
        ViTImageProcessor(size={"height": 32, "width": 32}, resample=3).save_pretrained(folder)
        if file_format == "pt":
            (folder / "model.safetensors").unlink()
            torch.save(module.state_dict(), folder / "pytorch_model.bin")
        return TeacherConfig(kind="transformers", name=str(folder))

    def plain_logits(self, config: TeacherConfig, image: Image.Image) -> torch.Tensor:
        module = AutoModelForImageClassification.from_pretrained(config.name).eval()
        processor = AutoImageProcessor.from_pretrained(config.name, backend="pil")
        with torch.no_grad():
            return module(**processor(images=image, return_tensors="pt")).logits


FACTORY = """
import torch

class Net(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, width, 5, stride=2)
        self.norm = torch.nn.BatchNorm2d(width)
        self.head = torch.nn.Linear(width, 7)

    def forward(self, pixels):
        return self.head(torch.relu(self.norm(self.conv(pixels))).mean((2, 3)))

def net(width=8):
    return Net(width), {"input_size": (3, 24, 32), "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25), "crop_pct": 0.8}
"""


class TestFactory(TeacherContract):
    kind = "factory"

    def module(self) -> torch.nn.Module:
        namespace: dict[str, Any] = {}
        exec(FACTORY, namespace)
        return namespace["Net"](16)

    def save(self, folder: Path, *, file_format: str, seed: int = 0) -> TeacherConfig:
        folder.mkdir()
        checkpoint = self.save_state(self.shake(self.module(), seed=seed).state_dict(), folder / f"weights.{file_format}")
        return TeacherConfig(kind="factory", name="decant_tiny_factory:net", kwargs={"width": 16}, checkpoint=checkpoint)

    def plain_logits(self, config: TeacherConfig, image: Image.Image) -> torch.Tensor:
        # Resize so that (30, 40) is covered, the rest cut off around the centre.
        ratio = min(image.height / 30, image.width / 40)
        transform = transforms.Compose(
            [
                transforms.Resize(
                    (round(image.height / ratio), round(image.width / ratio)), transforms.InterpolationMode.BICUBIC
                ),
                transforms.CenterCrop((24, 32)),
                transforms.ToTensor(),
                transforms.Normalize((0.4, 0.5, 0.6), (0.2, 0.3, 0.25)),
            ]
        )
        module = self.shake(self.module()).eval()
        with torch.no_grad():
            return module(transform(image)[None])


def test_every_kind_is_under_the_contract() -> None:
    assert {suite.kind for suite in TeacherContract.__subclasses__()} == set(LOADERS) - set(get_args(TextTeacher))


def test_unknown_kind_names_the_nearest() -> None:
    config = TeacherConfig.model_construct(kind="tim", name="test_vit", device="cpu")
    with pytest.raises(TeacherError, match=r"no teacher of kind 'tim'. Did you mean 'timm'\?"):
        load_teacher(config)
