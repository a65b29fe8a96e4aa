"""Vectors as float16: the low bytes of all numbers, then the high ones, which hold sign and exponent and compress."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from storage.codecs.columns import Bytes, pack, unpack
from storage.errors import FormatError

_EXPONENT_BITS = 0x7C


def to_float16(values: npt.NDArray[np.floating], *, name: str) -> npt.NDArray[np.float16]:
    """Return numbers rounded to float16.

    Raises:
        FormatError: NaN, an infinity, or a number that rounds to one.
    """
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16, copy=False)
    if not np.isfinite(halves).all():
        found = values[~np.isfinite(halves)][0]
        why = "is more than float16 holds (65504); store this target as int8" if np.isfinite(found) else "is no number"
        raise FormatError(f"tensor {name} holds {found:g}, which {why}")
    return halves


def encode(values: npt.NDArray[np.floating], *, name: str) -> dict[str, Bytes]:
    """Return the streams of a tensor.

    Args:
        values: [rows, width].
        name: of the tensor, for messages.

    Raises:
        FormatError: a number that float16 cannot hold.
    """
    patterns = np.ascontiguousarray(to_float16(values, name=name)).view(np.uint16).reshape(-1)
    return {str(index): plane for index, plane in enumerate(pack(patterns, num_bits=16))}


def stream_lengths(num_rows: int, *, width: int) -> dict[str, int]:
    """Return the bytes of each stream."""
    return {"0": num_rows * width, "1": num_rows * width}


def decode(streams: Mapping[str, Bytes], *, num_rows: int, width: int, name: str) -> npt.NDArray[np.float16]:
    """Return float16 [rows, width].

    Raises:
        FormatError: streams that `encode` cannot have made.
    """
    low, high = streams["0"], streams["1"]
    patterns = unpack([low, high], count=num_rows * width, num_bits=16)
    if (high & _EXPONENT_BITS).max(initial=0) == _EXPONENT_BITS:
        raise FormatError(f"tensor {name} holds NaN or an infinity")
    return patterns.view(np.float16).reshape(num_rows, width)
