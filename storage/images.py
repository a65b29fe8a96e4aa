"""Decode a stored picture to 8-bit RGB: the same pixels wherever and however often it is done.

This is Pillow's `Image.open(...).convert("RGB")`, as in timm's and torchvision's pipelines: alpha and transparency are dropped,
not composited, and colour profiles are ignored. It differs in two ways: EXIF orientation is applied, and grey pictures of more
than 8 bits are scaled to 8 bits, where Pillow would clip them to white.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from storage.errors import SampleError


class _Tiff(TiffImageFile):
    """TIFF without the check against Pillow's global limit; `decode_image` has checked its own by then."""

    def load_prepare(self) -> None:
        if self._im is None:
            self.im = Image.new(self.mode, self._tile_size).im
        super().load_prepare()


# Image.open warns and refuses by a limit that is global to the process, and tries every plugin, even that of Ghostscript.
_FORMATS: tuple[tuple[str, type[ImageFile.ImageFile], tuple[bytes, ...]], ...] = (
    ("JPEG", JpegImageFile, (b"\xff\xd8\xff",)),
    ("PNG", PngImageFile, (b"\x89PNG\r\n\x1a\n",)),
    ("WebP", WebPImageFile, (b"RIFF",)),
    ("GIF", GifImageFile, (b"GIF87a", b"GIF89a")),
    ("BMP", BmpImageFile, (b"BM",)),
    ("TIFF", _Tiff, (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    ("PPM", PpmImageFile, (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"Pf")),
)

_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_image(data: bytes, *, max_pixels: int) -> Image.Image:
    """Return the picture as an RGB image of 8 bits a channel, upright, without metadata.

    JPEG, PNG, WebP, GIF, BMP, TIFF and PPM are read, by their first bytes; of an animation the first frame. Deeper grey pictures:
    16 bits keep their high byte, as Pillow does with 16-bit RGB; 32-bit integers are read as 16 bits if they fit; floats in 0..1
    are multiplied by 255; any other range is stretched from its least to its greatest value.

    Args:
        data: the stored bytes.
        max_pixels: a larger picture is refused by its header, before memory for its pixels is taken.

    Raises:
        SampleError: the data are empty, of no known format, truncated, damaged or too large.
    """
    if not data:
        raise SampleError("the picture is empty (0 bytes)")
    name, reader = _identify(data)
    try:
        image = reader(io.BytesIO(data))
    except MemoryError:
        raise
    except Exception as error:  # on damaged data Pillow's plugins raise nearly anything
        raise SampleError(f"the {name} is truncated or damaged, its header cannot be read: {error}") from error
    with image:
        width, height = image.size
        if width * height > max_pixels:
            raise SampleError(
                f"{width} x {height} pixels exceed the limit of {max_pixels} (decompression bomb?); "
                "raise max_image_pixels if it is real"
            )
        try:
            image.load()
            return _upright(_to_rgb(image), orientation=_orientation(image))
        except (SampleError, MemoryError):
            raise
        except Exception as error:  # as above
            raise SampleError(f"the {name} is truncated or damaged: {error}") from error


def _identify(data: bytes) -> tuple[str, type[ImageFile.ImageFile]]:
    for name, reader, starts in _FORMATS:
        if data.startswith(starts) and (name != "WebP" or data[8:12] == b"WEBP"):
            return name, reader
    known = ", ".join(name for name, _, _ in _FORMATS)
    raise SampleError(f"not an image: the data start with {data[:8]!r}, which is none of {known}")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_to_8_bits(np.asarray(image))).convert("RGB")
    # With a transparency of bytes Pillow converts the same way, but warns.
    image.info.pop("transparency", None)
    rgb = image.convert("RGB")
    rgb.info = {}
    return rgb


def _to_8_bits(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    if not np.isfinite(values).all():
        raise SampleError("the picture holds NaN or infinite values")
    low, high = values.min(), values.max()
    if values.dtype.kind in "ui" and low >= 0 and high <= 65535:
        return (values.astype(np.uint16) >> 8).astype(np.uint8)
    reals = values.astype(np.float64)
    if values.dtype.kind == "f" and low >= 0 and high <= 1:
        return np.rint(reals * 255).astype(np.uint8)
    span = float(high) - float(low)
    return np.rint((reals - float(low)) * 255 / (span or 1)).astype(np.uint8)


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except MemoryError:
        raise
    except Exception:  # damaged EXIF says nothing about the pixels
        return 1
    return value if isinstance(value, int) else 1


def _upright(image: Image.Image, *, orientation: int) -> Image.Image:
    transposition = _TRANSPOSITIONS.get(orientation)
    return image.transpose(transposition) if transposition is not None else image
