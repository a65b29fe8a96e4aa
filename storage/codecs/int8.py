"""Vectors as int8 times a float16 scale, which some numbers share: x is about q * scale, q from -127 to 127.

Without groups, a scale belongs to one channel of up to 256 successive rows: fit for channels that are large in every row. With
groups, it belongs to so many successive channels of one row: fit for rows that are large where others are not.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from storage.codecs.columns import Bytes
from storage.errors import FormatError

RUN_ROWS = 256
"""Rows that share the scales of channels. In more rows a channel's largest number is further out, and the steps are wider."""

LARGEST = 127
_MAX_SCALE = np.float32(65504)


def _num_scales(num_rows: int, *, width: int, group: int | None) -> int:
    return -(-num_rows // RUN_ROWS) * width if group is None else num_rows * -(-width // group)


def _shared_maxima(magnitudes: npt.NDArray[np.float32], *, group: int | None) -> npt.NDArray[np.float32]:
    num_rows, width = magnitudes.shape
    if group is None:
        if not num_rows:
            return np.zeros((0, width), dtype=np.float32)
        return np.maximum.reduceat(magnitudes, np.arange(0, num_rows, RUN_ROWS), axis=0)
    return np.maximum.reduceat(magnitudes, np.arange(0, width, group), axis=1)


def _apply(values: npt.NDArray[np.float32], scales: npt.NDArray[np.float32], *, group: int | None, by: np.ufunc) -> None:
    """Multiply or divide numbers [rows, width] by the scales they share, in place."""
    num_rows, width = values.shape
    # What fills whole runs or groups goes at once, what is left over apart.
    if group is None:
        whole = num_rows // RUN_ROWS
        split = whole * RUN_ROWS
        runs = values[:split].reshape(whole, RUN_ROWS, width)
        by(runs, scales[:whole, None], out=runs)
        if split < num_rows:
            by(values[split:], scales[whole:], out=values[split:])
        return
    if width % group == 0:
        groups = values.reshape(num_rows, width // group, group)
        by(groups, scales[:, :, None], out=groups)
    else:
        # No more than twice the numbers, however much wider than a row its groups are.
        by(values, np.repeat(scales, min(group, width), axis=1)[:, :width], out=values)


def encode(values: npt.NDArray[np.floating], *, group: int | None, name: str) -> dict[str, Bytes]:
    """Return the streams of a tensor. No number is off by more than half its scale.

    A scale is 1/127 of the largest number that shares it, rounded up to float16.

    Args:
        values: [rows, width].
        group: channels of a row that share a scale; None: a scale for each channel of 256 rows.
        name: of the tensor, for messages.

    Raises:
        FormatError: NaN, an infinity, or a number beyond 127 times what float16 holds.
    """
    with np.errstate(over="ignore"):
        numbers = values.astype(np.float32)
    magnitudes = np.abs(numbers)
    maxima = _shared_maxima(magnitudes, group=group)
    wanted = maxima / np.float32(LARGEST)
    # Compared so that NaN fails.
    if not (wanted <= _MAX_SCALE).all():
        found = values[~(magnitudes <= LARGEST * _MAX_SCALE)][0]
        why = "is more than int8 with a float16 scale holds" if np.isfinite(found) else "is no number"
        raise FormatError(f"tensor {name} holds {found:g}, which {why}")
    scales = wanted.astype(np.float16)
    # Rounded up: with a smaller scale the largest number would need a 128th step.
    scales = np.where(scales < wanted, np.nextafter(scales, np.float16(np.inf)), scales)
    divisors = scales.astype(np.float32)
    divisors[divisors == 0] = 1
    _apply(numbers, divisors, group=group, by=np.divide)
    quantised = np.rint(numbers, out=numbers).astype(np.int8)
    return {"values": quantised.reshape(-1).view(np.uint8), "scales": np.ascontiguousarray(scales).reshape(-1).view(np.uint8)}


def stream_lengths(num_rows: int, *, width: int, group: int | None) -> dict[str, int]:
    """Return the bytes of each stream."""
    return {"values": num_rows * width, "scales": 2 * _num_scales(num_rows, width=width, group=group)}


def decode(streams: Mapping[str, Bytes], *, num_rows: int, width: int, group: int | None, name: str) -> npt.NDArray[np.float32]:
    """Return float32 [rows, width].

    Raises:
        FormatError: streams that `encode` cannot have made.
    """
    stored, stored_scales = streams["values"], streams["scales"]
    expected = stream_lengths(num_rows, width=width, group=group)
    if len(stored) != expected["values"] or len(stored_scales) != expected["scales"]:
        raise FormatError(
            f"{len(stored)} bytes of numbers, {len(stored_scales)} of scales for {num_rows} rows of tensor {name}, {width} wide"
        )
    quantised = stored.view(np.int8).reshape(num_rows, width)
    if quantised.min(initial=0) < -LARGEST:
        raise FormatError(f"tensor {name} holds -128 for a number that is stored in -{LARGEST} to {LARGEST} steps")
    patterns = stored_scales.view(np.uint16)
    # In their order bit patterns of float16 are all positive numbers, infinity, NaN, all negative ones.
    if patterns.max(initial=0) >= 0x7C00:
        raise FormatError(f"a scale of tensor {name} is negative, infinite or NaN")
    per_row = width if group is None else -(-width // group)
    numbers = quantised.astype(np.float32)
    _apply(numbers, patterns.view(np.float16).astype(np.float32).reshape(-1, per_row), group=group, by=np.multiply)
    return numbers
