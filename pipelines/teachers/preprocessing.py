"""timm's description of preprocessing (`pretrained_cfg`, `resolve_data_config`) as an evaluation view and a normalisation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, get_args

from pipelines.teachers.base import Preprocessing
from storage.errors import TeacherError
from storage.naming import did_you_mean
from storage.specs import EvaluationView, Interpolation, Normalization

_DEFAULTS: Mapping[str, Any] = {"crop_pct": 0.875, "crop_mode": "center", "interpolation": "bicubic"}
"""timm's own, for a config that leaves them out."""
_REQUIRED = ("input_size", "mean", "std")


def timm_preprocessing(data_config: Mapping[str, Any], *, name: str) -> Preprocessing:
    """Return what `timm.data.create_transform(is_training=False)` does for a data config.

    Args:
        data_config: `input_size` (3, height, width), `mean` and `std` of three channels of pixels in 0..1, and optionally
            `crop_pct` (0.875), `crop_mode` (center, squash) and `interpolation` (bicubic). Further keys are ignored.
        name: of the teacher, for messages.

    Raises:
        TeacherError: an entry is missing or cannot be expressed; the message names it.
    """
    missing = [key for key in _REQUIRED if data_config.get(key) is None]
    if missing:
        raise TeacherError(
            f"preprocessing of teacher {name} does not say {', '.join(missing)}: its pictures cannot be rendered. Give "
            "input_size (3, height, width), mean and std"
        )
    entries = {key: value for key, value in data_config.items() if value is not None}
    crop_pct, crop_mode, interpolation = (entries.get(key, default) for key, default in _DEFAULTS.items())
    input_size, mean, std = tuple(entries["input_size"]), tuple(entries["mean"]), tuple(entries["std"])
    if len(input_size) != 3 or input_size[0] != 3:
        raise TeacherError(
            f"input_size of teacher {name} is {list(input_size)}, but views are RGB: it must be [3, height, width]"
        )
    if len(mean) != 3 or len(std) != 3 or not all(value > 0 for value in std):
        raise TeacherError(f"mean {list(mean)} and std {list(std)} of teacher {name} must be three numbers each, std above 0")
    if crop_mode not in ("center", "squash"):
        raise TeacherError(
            f"crop_mode {crop_mode!r} of teacher {name} cannot be rendered (center and squash can). Override it: timm teachers "
            "take teacher.kwargs.pretrained_cfg_overlay: {crop_mode: center}"
        )
    if interpolation not in get_args(Interpolation):
        raise TeacherError(
            f"interpolation {interpolation!r} of teacher {name} cannot be "
            f"rendered.{did_you_mean(interpolation, get_args(Interpolation))}"
        )
    height, width = int(input_size[1]), int(input_size[2])
    return Preprocessing(
        view=EvaluationView(
            size=(height, width),
            resize="squash" if crop_mode == "squash" else "shorter_edge",
            resize_size=(math.floor(height / crop_pct), math.floor(width / crop_pct)),
            interpolation=interpolation,
        ),
        normalization=Normalization(mean=tuple(map(float, mean)), std=tuple(map(float, std))),
    )
