"""The one renderer that teacher and student share: pixels are a pure function of picture, parameters and this version."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import xxhash
from PIL import Image

from storage.errors import SampleError
from storage.specs import Interpolation, Size
from storage.views.params import ViewParams

RENDERER_VERSION: Final = 1
"""Raised whenever the same parameters would give other pixels; part of every view spec."""

_RESAMPLING: Final[dict[Interpolation, Image.Resampling]] = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}


def render(
    image: Image.Image, params: ViewParams, *, interpolation: Interpolation, size: Size | None = None
) -> npt.NDArray[np.uint8]:
    """Return one view of an RGB picture, uint8 [height, width, 3].

    Pixel for pixel what torchvision's `resized_crop` and `CenterCrop` give on the same picture. `size` renders the same
    field of view at another height and width; everything else stays.

    Raises:
        SampleError: the picture is not RGB, or is smaller than the box.
    """
    if image.mode != "RGB":
        raise SampleError(
            f"picture has mode {image.mode}; views are rendered from RGB only. Convert it first: image.convert('RGB')"
        )
    right, bottom = params.left + params.width, params.top + params.height
    if right > image.width or bottom > image.height:
        raise SampleError(
            f"box ends at column {right}, row {bottom} but the picture has {image.width} x {image.height} pixels: these "
            "parameters were drawn for another picture. Draw them from this picture's width and height"
        )
    resize_size = params.resize_size
    if size is None:
        size = params.size
    elif size != params.size:
        resize_size = (
            _scaled(resize_size[0], numerator=size[0], denominator=params.size[0]),
            _scaled(resize_size[1], numerator=size[1], denominator=params.size[1]),
        )
    # Cut, then resize: `Image.resize(box=...)` would let pixels from outside the box into the filter.
    if (params.width, params.height) != image.size:
        image = image.crop((params.left, params.top, right, bottom))
    image = image.resize((resize_size[1], resize_size[0]), _RESAMPLING[interpolation])
    if resize_size != size:
        top = _centre_offset(resize_size[0], length=size[0])
        left = _centre_offset(resize_size[1], length=size[1])
        image = image.crop((left, top, left + size[1], top + size[0]))
    pixels = np.array(image)
    return np.ascontiguousarray(pixels[:, ::-1]) if params.flip else pixels


def view_digest(pixels: npt.NDArray[np.uint8]) -> int:
    """Return the xxh3-64 over the shape (three little-endian uint32) and the bytes of a view, uint8 [height, width, 3]."""
    state = xxhash.xxh3_64(np.array(pixels.shape, dtype="<u4").tobytes())
    state.update(np.ascontiguousarray(pixels).data)
    return state.intdigest()


def _centre_offset(available: int, *, length: int) -> int:
    """Return where a centred window begins, negative where it is padded; torchvision's rounding of odd margins."""
    return round((available - length) / 2) if length <= available else -((length - available) // 2)


def _scaled(length: int, *, numerator: int, denominator: int) -> int:
    return max(1, (2 * length * numerator + denominator) // (2 * denominator))
