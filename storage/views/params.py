"""Parameters of a view: drawn or derived first, from the picture's size alone; pixels are rendered from them later."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from storage.errors import SampleError
from storage.specs import EvaluationView, RandomResizedCropView, Size, ViewSpec
from storage.views.random import view_uniforms

CROP_TRIES = 10
"""Crops that are tried before the central one is taken, as in torchvision."""
UNIFORMS_PER_TRY = 4
NUM_UNIFORMS = 1 + CROP_TRIES * UNIFORMS_PER_TRY
"""Uniforms of a random resized crop: flip, then area, aspect ratio, top and left of every try, used or not."""
MAX_RESIZED_PIXELS = 178_956_970
"""Largest picture an evaluation view may be resized to before its centre is cut out (Pillow's own limit for pictures)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewParams:
    """One view in whole pixels: cut the box out, resize it to `resize_size`, take the centre of `size`, mirror.

    Attributes:
        left: first column of the box in the source picture.
        top: first row of the box in the source picture.
        width: columns of the box, at least 1.
        height: rows of the box, at least 1.
        resize_size: height and width to which the box is resized.
        size: height and width of the view; where larger than `resize_size` it is padded with 0.
        flip: whether the view is mirrored left to right, last of all.
    """

    left: int
    top: int
    width: int
    height: int
    resize_size: Size
    size: Size
    flip: bool


def draw_view_params(spec: ViewSpec, *, key: str, view_index: int, width: int, height: int) -> ViewParams:
    """Return the parameters of one view of a picture of `width` x `height` pixels.

    A pure function of its arguments. `key` and `view_index` choose the random numbers; an evaluation view has none.

    Raises:
        SampleError: the picture is so elongated that resizing its shorter edge makes it too large to hold.
    """
    if isinstance(spec, RandomResizedCropView):
        return _draw_random_resized_crop(spec, key=key, view_index=view_index, width=width, height=height)
    return _derive_evaluation(spec, width=width, height=height)


def _draw_random_resized_crop(spec: RandomResizedCropView, *, key: str, view_index: int, width: int, height: int) -> ViewParams:
    uniforms = view_uniforms(spec.seed, key=key, view_index=view_index, count=NUM_UNIFORMS).tolist()
    left, top, box_width, box_height = _draw_box(spec, uniforms=uniforms[1:], width=width, height=height)
    return ViewParams(
        left=left,
        top=top,
        width=box_width,
        height=box_height,
        resize_size=spec.size,
        size=spec.size,
        flip=uniforms[0] < spec.flip_probability,
    )


def _draw_box(spec: RandomResizedCropView, *, uniforms: Sequence[float], width: int, height: int) -> tuple[int, int, int, int]:
    """Return left, top, width and height as `torchvision.transforms.RandomResizedCrop.get_params` draws them."""
    area = width * height
    log_low, log_high = math.log(spec.ratio[0]), math.log(spec.ratio[1])
    for first in range(0, CROP_TRIES * UNIFORMS_PER_TRY, UNIFORMS_PER_TRY):
        area_draw, ratio_draw, top_draw, left_draw = uniforms[first : first + UNIFORMS_PER_TRY]
        target_area = area * (spec.scale[0] + area_draw * (spec.scale[1] - spec.scale[0]))
        aspect_ratio = math.exp(log_low + ratio_draw * (log_high - log_low))
        box_width = round(math.sqrt(target_area * aspect_ratio))
        box_height = round(math.sqrt(target_area / aspect_ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(top_draw * (height - box_height + 1))
            left = int(left_draw * (width - box_width + 1))
            return left, top, box_width, box_height
    box_width, box_height = width, height
    if width / height < spec.ratio[0]:
        # At least one pixel: torchvision rounds to an empty crop when a picture is thinner than half the ratio asks for.
        box_height = max(1, round(width / spec.ratio[0]))
    elif width / height > spec.ratio[1]:
        box_width = max(1, round(height * spec.ratio[1]))
    return (width - box_width) // 2, (height - box_height) // 2, box_width, box_height


def _derive_evaluation(spec: EvaluationView, *, width: int, height: int) -> ViewParams:
    resize_size = spec.resize_size
    if spec.resize == "shorter_edge":
        resize_size = _keep_ratio(spec.resize_size, width=width, height=height)
        if resize_size[0] * resize_size[1] > MAX_RESIZED_PIXELS:
            raise SampleError(
                f"picture of {width} x {height} pixels (width x height) becomes {resize_size[1]} x {resize_size[0]} when its "
                f"shorter edge is resized to {min(resize_size)}, more than {MAX_RESIZED_PIXELS} pixels: it gets no view. Crop "
                "the picture, or leave it out"
            )
    return ViewParams(left=0, top=0, width=width, height=height, resize_size=resize_size, size=spec.size, flip=False)


def _keep_ratio(target: Size, *, width: int, height: int) -> Size:
    """Return height and width of the smallest picture of the same shape that covers `target`.

    Rounds as torchvision's `Resize(edge)` does for a square target, and as timm's `ResizeKeepRatio` for any other.
    """
    if target[0] == target[1]:
        edge = target[0]
        return (int(edge * height / width), edge) if width <= height else (edge, int(edge * width / height))
    ratio = min(height / target[0], width / target[1])
    return round(height / ratio), round(width / ratio)
