"""A transformers image processor as an evaluation view and a normalisation, proved against the processor itself."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipelines.teachers.base import Preprocessing, describe
from storage.errors import TeacherError
from storage.specs import EvaluationView, Interpolation, Normalization, Size
from storage.views import draw_view_params, render

_INTERPOLATIONS: dict[int, Interpolation] = {
    Image.Resampling.NEAREST.value: "nearest",
    Image.Resampling.LANCZOS.value: "lanczos",
    Image.Resampling.BILINEAR.value: "bilinear",
    Image.Resampling.BICUBIC.value: "bicubic",
    Image.Resampling.BOX.value: "box",
    Image.Resampling.HAMMING.value: "hamming",
}
_CONVNEXT_SQUASH_EDGE = 384
"""From this edge on ConvNeXT's processor resizes without a crop."""
_TOLERANCE_LEVELS = 3.0
"""Of 255, on the proving picture: resampling differs by one or two levels there, a crop that is off by one pixel by seven."""


def transformers_preprocessing(processor: Any, *, name: str) -> Preprocessing:
    """Return what an image processor does, from its attributes; then compare both on two pictures.

    Where the margin of a centre crop is odd, all of Decant's views round as torchvision does (to even); processors round down,
    so every fourth picture is cropped one pixel beside theirs.

    Raises:
        TeacherError: a field cannot be expressed (the message names it), or the processor does something its fields do not say.
    """
    for field in ("do_pad", "do_flip_channel_order", "do_color_quantize"):
        if getattr(processor, field, None):
            raise _inexpressible(name, field, True)
    if not getattr(processor, "do_resize", None):
        raise _inexpressible(name, "do_resize", False)
    resize, resize_size, size = _geometry(processor, name=name)
    view = EvaluationView(size=size, resize=resize, resize_size=resize_size, interpolation=_interpolation(processor, name=name))
    preprocessing = Preprocessing(view=view, normalization=_normalization(processor, name=name))
    for height, width in ((300, 400), (400, 300)):
        _prove(preprocessing, processor, name=name, height=height, width=width)
    return preprocessing


def _geometry(processor: Any, *, name: str) -> tuple[Any, Size, Size]:
    """Return resize mode, resize size and view size."""
    kind = type(processor).__name__
    size = dict(getattr(processor, "size", None) or {})
    crop = dict(processor.crop_size or {}) if getattr(processor, "do_center_crop", None) else None
    if crop is not None and set(crop) != {"height", "width"}:
        raise _inexpressible(name, "crop_size", crop)
    crop_size = (crop["height"], crop["width"]) if crop is not None else None
    crop_pct = getattr(processor, "crop_pct", None)
    if set(size) == {"shortest_edge"}:
        edge = size["shortest_edge"]
        if kind.startswith("ConvNext"):
            if edge >= _CONVNEXT_SQUASH_EDGE:
                return "squash", (edge, edge), crop_size or (edge, edge)
            return "shorter_edge", _square(edge / crop_pct), crop_size or (edge, edge)
        if crop_size is None:
            raise _inexpressible(name, "size", f"{size} without do_center_crop (every picture would have its own size)")
        if kind.startswith("PoolFormer") and crop_pct is not None:
            return "shorter_edge", _square(edge / crop_pct), crop_size
        if kind.startswith("Levit"):
            return "shorter_edge", _square(256 / 224 * edge), crop_size
        return "shorter_edge", _square(edge), crop_size
    if set(size) == {"height", "width"}:
        resize_size = (size["height"], size["width"])
        return "squash", resize_size, crop_size or resize_size
    raise _inexpressible(name, "size", size)


def _square(edge: float) -> Size:
    return math.floor(edge), math.floor(edge)


def _interpolation(processor: Any, *, name: str) -> Interpolation:
    resample = getattr(processor, "resample", None)
    if resample is None:
        return "bilinear"
    if not isinstance(resample, int) or int(resample) not in _INTERPOLATIONS:
        raise _inexpressible(name, "resample", resample)
    return _INTERPOLATIONS[int(resample)]


def _normalization(processor: Any, *, name: str) -> Normalization:
    """Fold rescaling, its offset and the normalisation into (pixels / 255 - mean) / std."""
    scale = 255 * (processor.rescale_factor if getattr(processor, "do_rescale", None) else 1.0)
    offset = 1.0 if getattr(processor, "do_rescale", None) and getattr(processor, "rescale_offset", None) else 0.0
    mean: tuple[float, ...] = (0.0,) * 3
    std: tuple[float, ...] = (1.0,) * 3
    if getattr(processor, "do_normalize", None):
        mean, std = _channels(processor.image_mean, name=name), _channels(processor.image_std, name=name)
    # EfficientNet's processor divides by the deviation once more.
    twice = std if getattr(processor, "include_top", None) else (1.0,) * 3
    return Normalization(
        mean=tuple((value + offset) / scale for value in mean),
        std=tuple(value * again / scale for value, again in zip(std, twice, strict=True)),
    )


def _channels(values: Any, *, name: str) -> tuple[float, ...]:
    channels = (float(values),) * 3 if isinstance(values, int | float) else tuple(map(float, values))
    if len(channels) != 3:
        raise _inexpressible(name, "image_mean or image_std", list(channels))
    return channels


def _prove(preprocessing: Preprocessing, processor: Any, *, name: str, height: int, width: int) -> None:
    """Compare with the processor on a smooth picture whose channels, edges and corners all differ."""
    rows, columns = (axis / length for axis, length in zip(np.mgrid[0:height, 0:width], (height, width), strict=True))
    waves = [np.cos(2 * np.pi * (2 * phase + 0.1)) for phase in (rows, columns, (rows + columns) / 2)]
    image = Image.fromarray((127.5 + 127.5 * np.stack(waves, axis=-1)).astype(np.uint8))
    pixels = _render_as_processors_do(image, preprocessing.view)
    mean, std = (np.array(values) for values in (preprocessing.normalization.mean, preprocessing.normalization.std))
    try:
        theirs = np.asarray(processor(images=image, return_tensors="np")["pixel_values"][0], dtype=np.float64).transpose(1, 2, 0)
    except Exception as error:
        raise TeacherError(f"image processor of {name} fails on a plain RGB picture: {describe(error)}") from error
    if theirs.shape != pixels.shape:
        raise _unlike(name, processor, f"gives {list(theirs.shape)} where its fields say {list(pixels.shape)}")
    difference = float(np.abs((theirs * std + mean) * 255 - pixels).max())
    if difference > _TOLERANCE_LEVELS:
        raise _unlike(name, processor, f"gives pixels that differ by up to {difference:.1f} of 255 from what its fields say")


def _render_as_processors_do(image: Image.Image, view: EvaluationView) -> npt.NDArray[np.uint8]:
    """Render an evaluation view, but round odd margins of the crop down."""
    params = draw_view_params(view, key="", view_index=0, width=image.width, height=image.height)
    top, left = ((resized - length) // 2 for resized, length in zip(params.resize_size, params.size, strict=True))
    if top < 0 or left < 0:
        return render(image, params, interpolation=view.interpolation)
    whole = render(image, dataclasses.replace(params, size=params.resize_size), interpolation=view.interpolation)
    return whole[top : top + params.size[0], left : left + params.size[1]]


def _inexpressible(name: str, field: str, value: object) -> TeacherError:
    return TeacherError(
        f"image processor of {name}: {field} = {value} cannot be rendered by Decant. Wrap the model in a factory teacher that "
        "says its own preprocessing, or change preprocessor_config.json"
    )


def _unlike(name: str, processor: Any, what: str) -> TeacherError:
    return TeacherError(
        f"image processor {type(processor).__name__} of {name} {what}: labels would not be of the pictures the teacher was made "
        "for. Wrap the model in a factory teacher that says its own preprocessing"
    )
