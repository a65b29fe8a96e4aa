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

from storage.codecs.columns import Bytes, bits_needed, pack, plane_lengths, row_spans, unpack
from storage.codecs.ranked import RankedLabels
from storage.codecs.stored import StoredRows, check_rectangle
from storage.errors import FormatError
from storage.soft_labels import SoftLabels
from storage.specs import CompactCodec, SoftLabelsSpec

_FULL = 7 / 8
"""From this share of kept entries on, rows are stored equally wide: no larger, and faster to read."""

_SQUARES = (np.arange(256, dtype=np.float32) ** 2).astype(np.float32)


def grid_levels(log_probs: npt.NDArray[np.float32], *, levels: int) -> npt.NDArray[np.uint8]:
    """Return q = round(levels * sqrt(p)) of log-probabilities, uint8."""
    roots = np.exp(np.minimum(log_probs, np.float32(0)) * np.float32(0.5))
    return np.rint(np.float32(levels) * roots).astype(np.uint8)


def _count_bits(spec: SoftLabelsSpec) -> int:
    return 8 if spec.max_entries <= 255 else 16


def _max_step_planes(spec: SoftLabelsSpec) -> int:
    return -(-bits_needed(spec.num_classes - 1) // 8)


def encode(rows: RankedLabels, *, spec: SoftLabelsSpec) -> dict[str, Bytes]:
    """Return the streams of a block of rows."""
    assert isinstance(spec.codec, CompactCodec)
    levels = np.empty(rows.class_ids.shape, dtype=np.uint8)
    rest_levels = np.empty(len(rows), dtype=np.uint8)
    for span in row_spans(rows.class_ids.shape):
        levels[span], rest_levels[span] = _quantise(rows.log_probs[span], rows.log_rest[span], levels=spec.codec.levels)
    return write(StoredRows(class_ids=rows.class_ids, values=levels, rest=rest_levels), spec=spec)


def _quantise(
    log_probs: npt.NDArray[np.float32], log_rest: npt.NDArray[np.float32], *, levels: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Return the levels of entries and of the rest."""
    found = grid_levels(log_probs, levels=levels)
    # The rest is what the kept classes leave, dropped ones included; it is never rounded away while there is some.
    dropped = np.zeros(found.shape, dtype=np.float32)
    np.exp(np.minimum(log_probs, 0), out=dropped, where=found == 0)
    rest = np.exp(np.minimum(log_rest, 0)) + dropped.sum(axis=1)
    rest_levels = np.rint(levels * np.sqrt(np.minimum(rest, 1)))
    return found, np.where(rest > 0, np.maximum(rest_levels, 1), 0).astype(np.uint8)


def write(rows: StoredRows, *, spec: SoftLabelsSpec) -> dict[str, Bytes]:
    """Return the streams of quantised rows, whose classes may come in any order."""
    spans = row_spans(rows.values.shape)
    words = [_sorted_words(rows.class_ids[span], levels=rows.values[span], num_classes=spec.num_classes) for span in spans]
    counts = np.concatenate([np.zeros(0, dtype=np.int64), *(np.count_nonzero(_used(run), axis=1) for run in words)])
    width = int(counts.max(initial=0))
    full = bool(counts.sum() >= _FULL * width * len(rows))
    flat = [_steps_and_levels(run[:, :width], equally_wide=full) for run in words]
    steps = np.concatenate([np.zeros(0, dtype=np.uint32), *(run_steps for run_steps, _ in flat)])
    levels = np.concatenate([np.zeros(0, dtype=np.uint8), *(run_levels for _, run_levels in flat)])
    step_bits = 8 * max(1, -(-int(steps.max(initial=0)).bit_length() // 8))
    streams: dict[str, Bytes] = {}
    if not full:
        streams |= {f"counts{i}": plane for i, plane in enumerate(pack(counts.astype(np.uint16), num_bits=_count_bits(spec)))}
    streams |= {f"steps{i}": plane for i, plane in enumerate(pack(steps, num_bits=step_bits))}
    streams["wide_levels" if full else "levels"] = levels
    streams["rest"] = rows.rest
    return streams


def _sorted_words(
    class_ids: npt.NDArray[Any], *, levels: npt.NDArray[np.uint8], num_classes: int
) -> npt.NDArray[np.unsignedinteger]:
    """Return class * 256 + level of each entry, rows ascending; where nothing is kept, the largest number, which no class has."""
    word: type[np.uint32 | np.uint64] = np.uint32 if num_classes < 2**24 else np.uint64
    packed: npt.NDArray[np.unsignedinteger] = class_ids.astype(word)
    np.left_shift(packed, word(8), out=packed)
    np.bitwise_or(packed, levels, out=packed)
    np.putmask(packed, levels == 0, np.iinfo(word).max)
    packed.sort(axis=1)
    return packed


def _used(words: npt.NDArray[np.unsignedinteger]) -> npt.NDArray[np.bool_]:
    used: npt.NDArray[np.bool_] = words != np.iinfo(words.dtype).max
    return used


def _steps_and_levels(
    words: npt.NDArray[np.unsignedinteger], *, equally_wide: bool
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint8]]:
    """Return the steps and levels of sorted words, flat; of unused ones zeros, or nothing unless rows are to be equally wide."""
    used = _used(words)
    class_ids = words >> np.array(8, dtype=words.dtype)
    steps = class_ids.astype(np.uint32)
    np.subtract(class_ids[:, 1:], class_ids[:, :-1], out=steps[:, 1:], casting="unsafe")
    levels = words.astype(np.uint8)
    if not equally_wide:
        return steps[used], levels[used]
    np.putmask(steps, ~used, 0)
    np.putmask(levels, ~used, 0)
    return steps.reshape(-1), levels.reshape(-1)


def stream_lengths(num_rows: int, *, spec: SoftLabelsSpec) -> dict[str, int]:
    """Return the most bytes each stream of a block may have."""
    most = num_rows * spec.max_entries
    counts = {f"counts{i}": n for i, n in enumerate(plane_lengths(num_rows, num_bits=_count_bits(spec)))}
    steps = {f"steps{i}": most for i in range(_max_step_planes(spec))}
    return counts | steps | {"levels": most, "wide_levels": most, "rest": num_rows}


def _kept(counts: npt.NDArray[Any], *, entries: int) -> npt.NDArray[np.uint8]:
    """Return uint8 [rows, entries], all bits set in the first `counts` entries of a row and none in the others."""
    if entries <= 255:
        # One row for each count there can be, gathered: numpy pays for every row it compares.
        return np.negative(np.tri(entries + 1, entries, -1, dtype=np.uint8)).take(counts, axis=0, mode="clip")
    return np.negative((np.arange(entries, dtype=counts.dtype) < counts[:, None]).view(np.uint8))


def _padded(planes: list[Bytes], *, counts: npt.NDArray[Any]) -> list[Bytes]:
    """Return each plane of ragged rows as uint8 [rows, entries of the fullest], padded with zeros."""
    ends = np.cumsum(counts, dtype=np.int64)
    num_rows, total, entries = len(counts), int(ends[-1]), int(counts.max())
    starts = ends - counts
    fitting = np.minimum(starts, total - entries)
    cut_short = np.flatnonzero((starts > fitting) & (counts > 0)).tolist()
    kept = _kept(counts, entries=entries)
    padded = []
    for plane in planes:
        # A window of `entries` bytes at every place, as one item: whole items are copied several times faster than rows of bytes.
        windows = np.ndarray((total - entries + 1,), dtype=f"V{entries}", buffer=plane, strides=(1,))
        rows = windows[fitting].view(np.uint8).reshape(num_rows, entries)
        for row in cut_short:
            rows[row, : counts[row]] = plane[starts[row] : ends[row]]
        padded.append(np.bitwise_and(rows, kept, out=rows))
    return padded


def _rectangles(streams: Mapping[str, Bytes], *, num_rows: int, spec: SoftLabelsSpec) -> list[Bytes]:
    """Return the planes of steps, then the levels, each uint8 [rows, entries]; unused entries are zeros."""
    wide = "wide_levels" in streams
    levels = streams["wide_levels" if wide else "levels"]
    planes = [*(streams[f"steps{i}"] for i in range(sum(name.startswith("steps") for name in streams))), levels]
    total = len(levels)
    if not 2 <= len(planes) <= 1 + _max_step_planes(spec) or any(len(plane) != total for plane in planes):
        raise FormatError(f"{[len(plane) for plane in planes[:-1]]} bytes of steps for {total} entries")
    if wide:
        entries = total // num_rows if num_rows else 0
        if entries * num_rows != total or entries > spec.max_entries:
            raise FormatError(f"{total} entries are no {num_rows} rows of equally many, at most {spec.max_entries}")
        return [plane.reshape(num_rows, entries) for plane in planes]
    count_bits = _count_bits(spec)
    counts = unpack([streams[f"counts{i}"] for i in range(count_bits // 8)], count=num_rows, num_bits=count_bits)
    announced, entries = int(counts.sum(dtype=np.int64)), int(counts.max(initial=0))
    if announced != total or not 0 < entries <= spec.max_entries:
        raise FormatError(f"{num_rows} rows announce {announced} entries, at most {entries} a row; {total} are there")
    check_rectangle(num_rows, entries=entries)
    if not levels.all():
        raise FormatError("a kept class has level 0")
    return _padded(planes, counts=counts)


def _running_sums(planes: list[Bytes], *, num_classes: int) -> npt.NDArray[np.int32] | npt.NDArray[np.int64]:
    """Return the sums of steps along each row, all inside the classes: int32 [rows, entries], int64 where ids need it.

    A 64-bit word carries the sums of four rows (two, one where ids take over 15, 31 bits), so that one addition serves them all.
    Ids and steps leave the top bit of a lane free: the first sum that is no class is seen before any can run into the next lane.
    """
    num_rows, entries = planes[0].shape
    lane = np.dtype(np.uint16 if num_classes <= 2**15 else np.uint32 if num_classes <= 2**31 else np.uint64)
    if len(planes) == lane.itemsize and int(planes[-1].max(initial=0)) >= 128:
        raise FormatError(f"a step between classes is above the {num_classes} classes")
    num_lanes = 8 // lane.itemsize
    lane_rows = -(-num_rows // num_lanes)
    words = np.zeros((lane_rows, entries), dtype=np.uint64)
    lanes_as_bytes = words.view(np.uint8).reshape(lane_rows, entries, num_lanes, lane.itemsize)
    spans = [slice(index * lane_rows, min((index + 1) * lane_rows, num_rows)) for index in range(num_lanes)]
    for index, span in enumerate(spans):
        for byte, plane in enumerate(planes):
            rows = plane[span]
            lanes_as_bytes[: len(rows), :, index, byte] = rows
    lanes = np.cumsum(words, axis=1, out=words).view(lane).reshape(lane_rows, entries, num_lanes)
    if int(lanes.max(initial=0)) >= num_classes:
        raise FormatError(f"class id {int(lanes.max())} is outside the {num_classes} classes")
    sums = np.empty((num_rows, entries), dtype=np.int32 if num_classes <= 2**31 else np.int64)
    for index, span in enumerate(spans):
        sums[span] = lanes[: span.stop - span.start, :, index]
    return sums


def read(streams: Mapping[str, Bytes], *, num_rows: int, spec: SoftLabelsSpec) -> StoredRows:
    """Return the quantised rows of a block, classes ascending, as wide as its fullest row.

    Raises:
        FormatError: streams that `encode` cannot have made.
    """
    rest_levels = streams["rest"]
    if len(rest_levels) != num_rows:
        raise FormatError(f"{len(rest_levels)} rest masses for {num_rows} rows")
    *step_planes, kept_levels = _rectangles(streams, num_rows=num_rows, spec=spec)
    class_ids = _running_sums(step_planes, num_classes=spec.num_classes)
    return StoredRows(class_ids=class_ids, values=kept_levels, rest=rest_levels)


def decode(streams: Mapping[str, Bytes], *, num_rows: int, spec: SoftLabelsSpec) -> SoftLabels:
    """Return the rows of a block, classes ascending, as wide as its fullest row.

    Raises:
        FormatError: streams that `encode` cannot have made.
    """
    stored = read(streams, num_rows=num_rows, spec=spec)
    squares = stored.values.astype(np.float32)
    np.multiply(squares, squares, out=squares)
    rest = _SQUARES.take(stored.rest, mode="clip")
    mass = np.einsum("ij->i", squares)
    mass += rest
    if num_rows and not float(mass.min()) > 0:
        raise FormatError("a row has neither kept classes nor rest mass")
    scale = np.float32(1) / mass
    squares *= scale[:, None]
    rest *= scale
    return SoftLabels(class_ids=stored.class_ids, probs=squares, rest=rest, num_classes=spec.num_classes)
