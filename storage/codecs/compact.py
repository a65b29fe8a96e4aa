"""The compact codec: classes as a set, probabilities on a square-root grid.

q = round(S sqrt(p)) in one byte; classes with q = 0 fall to the rest; p' = q^2 / (sum q^2 + q_rest^2). With d the error of
sqrt(p), KL(p || p') = 2 sum d^2 to second order: a grid uniform in sqrt(p) is the KL-optimal one. The order of near-equal classes
is noise that the values say again, so classes are stored ascending, as steps from one to the next (the first from 0).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.codecs.columns import Bytes, bits_needed, pack, plane_lengths, unpack
from storage.codecs.ranked import RankedLabels
from storage.errors import FormatError
from storage.soft_labels import SoftLabels, as_ids
from storage.specs import CompactCodec, SoftLabelsSpec

_MAX_NARROW_CLASSES = 2**24
"""More classes than this need steps of four bytes, which leave no room for a level in a word of four."""

_DROPPED = np.uint64(2**64 - 1)
_SQUARES = (np.arange(256, dtype=np.float32) ** 2).astype(np.float32)


def grid_levels(log_probs: npt.NDArray[np.float32], *, levels: int) -> npt.NDArray[np.uint8]:
    """Return q = round(levels * sqrt(p)) of log-probabilities, uint8."""
    roots = np.exp(np.minimum(log_probs, np.float32(0)) * np.float32(0.5))
    return np.rint(np.float32(levels) * roots).astype(np.uint8)


def _count_bits(spec: SoftLabelsSpec) -> int:
    return 8 if spec.max_entries <= 255 else 16


def encode(rows: RankedLabels, *, spec: SoftLabelsSpec) -> dict[str, Bytes]:
    """Return the streams of a block of rows."""
    assert isinstance(spec.codec, CompactCodec)
    levels = grid_levels(rows.log_probs, levels=spec.codec.levels)
    kept = levels > 0
    packed = (rows.class_ids.astype(np.uint64) << np.uint64(8)) | levels
    packed[~kept] = _DROPPED
    packed.sort(axis=1)
    present = packed != _DROPPED
    counts = present.sum(axis=1)
    steps = np.diff((packed >> np.uint64(8)).astype(np.int64), axis=1, prepend=0)[present].astype(np.uint32)
    # The rest is what the kept classes leave, dropped ones included; it is never rounded away while there is some.
    dropped = np.where(kept, np.float32(0), np.exp(np.minimum(rows.log_probs, 0))).sum(axis=1)
    rest = np.exp(np.minimum(rows.log_rest, 0)) + dropped
    rest_levels = np.rint(spec.codec.levels * np.sqrt(np.minimum(rest, 1)))
    rest_levels = np.where(rest > 0, np.maximum(rest_levels, 1), 0).astype(np.uint8)
    step_bits = 8 * max(1, -(-int(steps.max(initial=0)).bit_length() // 8))
    streams = {f"counts{i}": plane for i, plane in enumerate(pack(counts.astype(np.uint16), num_bits=_count_bits(spec)))}
    streams |= {f"steps{i}": plane for i, plane in enumerate(pack(steps, num_bits=step_bits))}
    streams["levels"] = (packed[present] & np.uint64(0xFF)).astype(np.uint8)
    streams["rest"] = rest_levels
    return streams


def stream_lengths(num_rows: int, *, spec: SoftLabelsSpec) -> dict[str, int]:
    """Return the most bytes each stream of a block may have."""
    most = num_rows * spec.max_entries
    counts = {f"counts{i}": n for i, n in enumerate(plane_lengths(num_rows, num_bits=_count_bits(spec)))}
    step_planes = -(-bits_needed(spec.num_classes - 1) // 8)
    return counts | {f"steps{i}": most for i in range(step_planes)} | {"levels": most, "rest": num_rows}


def _rectangle(
    planes: list[Bytes], levels: Bytes, *, counts: npt.NDArray[Any], entries: int, wide: bool
) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32]]:
    """Return steps (int32, int64 if wide) and levels of ragged rows as [rows, entries], padded with zeros."""
    total = len(levels)
    # Level and step travel in one word, level lowest, so that one copy of row windows pads both.
    width = 8 if wide else 4
    columns = np.zeros((total + entries, width), dtype=np.uint8)
    columns[:total, 0] = levels
    for index, plane in enumerate(planes):
        columns[:total, index + 1] = plane
    words: npt.NDArray[Any] = columns.reshape(-1).view(np.uint64 if wide else np.uint32)
    if total == len(counts) * entries:
        padded = words[:total].reshape(len(counts), entries)
    else:
        starts = np.zeros(len(counts), dtype=np.int64)
        np.cumsum(counts[:-1], out=starts[1:])
        # Windows of `entries` words at every place; the last one ends with the array.
        windows = np.ndarray((total + 1, entries), dtype=words.dtype, buffer=words, strides=(width, width))
        padded = windows[starts]
        padded *= np.arange(entries, dtype=counts.dtype) < counts[:, None]
    squares = (padded & 0xFF).astype(np.float32)
    padded >>= 8
    return padded.view(np.int64 if wide else np.int32), squares


def decode(streams: Mapping[str, Bytes], *, num_rows: int, spec: SoftLabelsSpec) -> SoftLabels:
    """Return the rows of a block, classes ascending, as wide as its fullest row.

    Raises:
        FormatError: streams that `encode` cannot have made.
    """
    count_bits = _count_bits(spec)
    counts = unpack([streams[f"counts{i}"] for i in range(count_bits // 8)], count=num_rows, num_bits=count_bits)
    levels, rest_levels = streams["levels"], streams["rest"]
    total, entries = int(counts.sum(dtype=np.int64)), int(counts.max(initial=0))
    if total != len(levels) or entries > spec.max_entries or len(rest_levels) != num_rows:
        raise FormatError(f"{num_rows} rows announce {total} entries, at most {entries} a row; {len(levels)} are there")
    if total and not levels.min():
        raise FormatError("a kept class has level 0")
    wide = spec.num_classes > _MAX_NARROW_CLASSES
    planes = [streams[f"steps{i}"] for i in range(sum(name.startswith("steps") for name in streams))]
    if not 1 <= len(planes) <= (4 if wide else 3) or any(len(plane) != total for plane in planes):
        raise FormatError(f"{[len(plane) for plane in planes]} bytes of steps for {total} entries")
    steps, squares = _rectangle(planes, levels, counts=counts, entries=entries, wide=wide)
    ids = np.cumsum(steps, axis=1, out=steps)
    if ids.size and (int(ids.max()) >= spec.num_classes or int(ids.min()) < 0):
        raise FormatError(f"class ids from {int(ids.min())} to {int(ids.max())} leave the {spec.num_classes} classes")
    np.multiply(squares, squares, out=squares)
    rest = _SQUARES.take(rest_levels)
    mass = np.einsum("ij->i", squares)
    mass += rest
    if num_rows and not float(mass.min()) > 0:
        raise FormatError("a row has neither kept classes nor rest mass")
    scale = np.float32(1) / mass
    squares *= scale[:, None]
    rest *= scale
    class_ids = as_ids(ids, num_classes=spec.num_classes)
    return SoftLabels(class_ids=class_ids, probs=squares, rest=rest, num_classes=spec.num_classes)
