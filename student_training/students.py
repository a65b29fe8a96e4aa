"""The student: any timm network, and what it does with pixels."""

from __future__ import annotations

import contextlib
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import timm
import torch
from timm.data.config import resolve_data_config
from timm.models import load_state_dict
from torch import nn

from storage.config.students import StudentConfig
from storage.config.training import PreprocessingConfig
from storage.errors import ConfigError
from storage.naming import did_you_mean, nearest
from storage.specs import EvaluationView, Interpolation, Normalization, Size, ViewSpec

_OWN_ARGUMENTS = ("num_classes", "pretrained", "checkpoint_path")
_HUB_SCHEMES = ("hf-hub:", "hf_hub:", "local-dir:")


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocessing:
    """What a student expects: pixels of a size, normalised; and how evaluation pictures come to that size.

    Attributes:
        size: height and width of the input.
        mean: channel means of pixels in 0..1.
        std: channel deviations of pixels in 0..1.
        interpolation: resampling of evaluation pictures.
        crop_fraction: share of the resized evaluation picture that the centre crop keeps.
        resize: whether evaluation pictures keep their aspect ratio.
    """

    size: Size
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Interpolation
    crop_fraction: float
    resize: Literal["shorter_edge", "squash"]

    @property
    def normalization(self) -> Normalization:
        """What comes before the first layer."""
        return Normalization(mean=self.mean, std=self.std)

    def evaluation_view(self) -> EvaluationView:
        """Return the view of evaluation pictures, as timm's evaluation transform cuts it."""
        resize_size = tuple(math.floor(length / self.crop_fraction) for length in self.size)
        return EvaluationView(
            size=self.size, resize=self.resize, resize_size=cast("Size", resize_size), interpolation=self.interpolation
        )

    def to_timm(self) -> dict[str, Any]:
        """Return the arguments of `timm.data.create_transform` that give the same input."""
        return {
            "input_size": [3, *self.size],
            "mean": list(self.mean),
            "std": list(self.std),
            "interpolation": self.interpolation,
            "crop_pct": self.crop_fraction,
            "crop_mode": "squash" if self.resize == "squash" else "center",
        }


def resolve_num_classes(config: StudentConfig, *, num_classes: int, must_match: bool) -> int:
    """Return the classes of the student's head.

    Args:
        config: the student.
        num_classes: classes of the targets.
        must_match: whether each class of the head needs a target; a head for hard labels may be wider than they are.

    Raises:
        ConfigError: the head does not fit the targets.
    """
    if config.num_classes is None or config.num_classes == num_classes:
        return num_classes
    if must_match or config.num_classes < num_classes:
        raise ConfigError(
            f"training.student.num_classes is {config.num_classes} but the targets are over {num_classes} classes: the student "
            f"cannot be compared with them; leave num_classes out, or set it to {num_classes}"
        )
    return config.num_classes


def create_student(config: StudentConfig, *, num_classes: int) -> nn.Module:
    """Return the network on the CPU, with fresh, pretrained or checkpoint weights; draws from torch's global generator.

    Raises:
        ConfigError: timm does not know the name, or the arguments or weights do not fit it.
    """
    check_name(config.name)
    taken = sorted(set(_OWN_ARGUMENTS) & set(config.kwargs))
    if taken:
        raise ConfigError(
            f"training.student.kwargs holds {taken[0]!r}, which Decant sets itself; use training.student.num_classes, pretrained "
            "and checkpoint instead"
        )
    if config.checkpoint is not None and config.pretrained:
        raise ConfigError(
            "training.student.checkpoint and pretrained: true are both given, and only one of them can be the start; drop one"
        )
    if config.checkpoint is not None and not Path(config.checkpoint).is_file():
        raise ConfigError(
            f"training.student.checkpoint: there is no file {config.checkpoint!r}; give the path of a safetensors file or a "
            "state dict"
        )
    try:
        model: nn.Module = timm.create_model(config.name, pretrained=config.pretrained, num_classes=num_classes, **config.kwargs)
        if config.checkpoint is not None:
            _load_checkpoint(model, config.checkpoint)
    except Exception as error:  # timm, torch and the hub each raise their own
        start = f" from {config.checkpoint!r}" if config.checkpoint else " with pretrained weights" if config.pretrained else ""
        raise ConfigError(
            f"student {config.name!r} with {num_classes} classes and arguments {config.kwargs} cannot be made{start}: "
            f"{type(error).__name__}: {_shorten(str(error))}. Check training.student"
        ) from error
    return model


def _load_checkpoint(model: nn.Module, path: str) -> None:
    """Load weights, in timm's names or in those of the model's authors. What else the file holds is never run as code."""
    state = load_state_dict(path, weights_only=True)
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is not None and state.keys() != model.state_dict().keys():
        with contextlib.suppress(Exception):  # a filter that meets weights of any other model: the error below says more
            state = convert(dict(state), model)
    model.load_state_dict(state)


def resolve_preprocessing(config: PreprocessingConfig, *, model: nn.Module, view: ViewSpec) -> Preprocessing:
    """Return what the student does with pixels: as the config says, else the views' size and timm's defaults of the model."""
    defaults = _data_config(model)
    known: Interpolation = defaults["interpolation"] if defaults["interpolation"] in get_args(Interpolation) else "bicubic"
    return Preprocessing(
        size=config.size or view.size,
        mean=config.mean or tuple(defaults["mean"]),
        std=config.std or tuple(defaults["std"]),
        interpolation=config.interpolation or known,
        crop_fraction=config.crop_fraction or defaults["crop_pct"],
        resize="squash" if defaults["crop_mode"] == "squash" else "shorter_edge",
    )


def check_student(model: nn.Module, *, name: str, size: Size, num_classes: int) -> None:
    """Run one grey picture through the student, so that a wrong size shows before any work starts. Leaves it in train mode.

    Raises:
        ConfigError: the student does not take pictures of this size, or does not give one logit a class.
    """
    model.eval()
    try:
        with torch.no_grad():
            output = model(torch.zeros(1, 3, *size))
    except Exception as error:  # every network has its own way to refuse a size
        expected = _data_config(model)["input_size"][1:]
        raise ConfigError(
            f"student {name!r} cannot take pictures of {size[0]} x {size[1]} pixels ({type(error).__name__}: "
            f"{_shorten(str(error))}); its default is {expected[0]} x {expected[1]}. Set training.preprocessing.size to a size "
            "it takes, or training.student.kwargs (img_size) to that of the views"
        ) from error
    finally:
        model.train()
    shape = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
    if shape != (1, num_classes):
        raise ConfigError(
            f"student {name!r} gives {shape} for one picture where logits of shape {(1, num_classes)} are needed; check "
            "training.student.kwargs (features_only, global_pool, ...)"
        )


def _data_config(model: nn.Module) -> dict[str, Any]:
    """Return timm's description of a model's input: input_size, mean, std, interpolation, crop_pct, crop_mode."""
    config: dict[str, Any] = resolve_data_config(pretrained_cfg=model.pretrained_cfg)  # type: ignore[no-untyped-call]
    return config


def check_name(name: str) -> None:
    """Check that timm knows a student, and the weights that its name may end with.

    Raises:
        ConfigError: it does not.
    """
    if name.startswith(_HUB_SCHEMES):
        return
    architecture, _, tag = name.partition(".")
    if timm.is_model(architecture):
        try:
            timm.get_pretrained_cfg(name, allow_unregistered=True)
        except RuntimeError as error:
            known = timm.list_pretrained(f"{architecture}.*")
            raise ConfigError(
                f"training.student.name: timm {timm.__version__} has no weights {tag!r} of {architecture}."
                f"{did_you_mean(name, known)} Or leave out .{tag}, for fresh weights"
            ) from error
        return
    match = nearest(name, timm.list_models())
    hint = f"Did you mean {match!r}?" if match else "timm.list_models() lists the names it knows."
    raise ConfigError(f"training.student.name: timm {timm.__version__} has no model {name!r}. {hint}")


def _shorten(text: str, *, limit: int = 400) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[:limit] + " ..."
