"""The codec of drawn labels: which classes were drawn, and how often each.

A row is a whole number of equal shares of the probability mass, dealt out to classes so that a class's expected share is its
probability. `SampledCodec` deals by independent draws (RS-KD), `ThresholdCodec` by systematic ones; what is stored is the same.
Classes ascend; each is stored as the step from the one before, the first from -1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.codecs import bits
from storage.codecs.columns import Bytes, pack, plane_lengths, unpack
from storage.codecs.stored import StoredRows, check_rectangle
from storage.errors import FormatError
from storage.soft_labels import SoftLabels, as_ids
from storage.specs import SampledCodec, SoftLabelsSpec, ThresholdCodec


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawnLabels:
    """Classes drawn from a teacher's distribution, rows end to end.

    Attributes:
        offsets: int64 [rows + 1], where the entries of each row begin.
        class_ids: uint32 [entries], ascending inside a row.
        counts: uint32 [entries], how often each was drawn, at least once; they sum to `num_shares` in every row.
    """

    offsets: npt.NDArray[np.int64]
    class_ids: npt.NDArray[np.uint32]
    counts: npt.NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def take(self, rows: npt.NDArray[np.integer]) -> DrawnLabels:
        """Return some rows, in the order asked for."""
        entries = np.diff(self.offsets)[rows]
        offsets = np.concatenate([[0], np.cumsum(entries)]).astype(np.int64)
        places = np.arange(offsets[-1]) + np.repeat(self.offsets[rows] - offsets[:-1], entries)
        return DrawnLabels(offsets=offsets, class_ids=self.class_ids[places], counts=self.counts[places])

    def top_ids(self) -> npt.NDArray[np.int64]:
        """Return int64 [rows], the class drawn most often, of equal ones the first."""
        if not len(self):
            return np.zeros(0, dtype=np.int64)
        # By count, then by falling place, in one number: the largest of a row is its first most frequent entry.
        size = np.int64(len(self.counts) + 1)
        ranks = self.counts.astype(np.int64) * size + (size - 1 - np.arange(len(self.counts)))
        places = size - 1 - np.maximum.reduceat(ranks, self.offsets[:-1]) % size
        top_ids: npt.NDArray[np.int64] = self.class_ids[places].astype(np.int64)
        return top_ids

    def check(self, *, num_classes: int, shares: int) -> None:
        """Refuse what was not drawn from a distribution.

        Raises:
            FormatError: an id outside the classes or not above the one before, a class that was not drawn, or counts that do not
                sum to `shares`.
        """
        num_entries = len(self.class_ids)
        counts_of_rows = np.diff(self.offsets)
        if self.offsets[0] != 0 or self.offsets[-1] != num_entries or len(self.counts) != num_entries:
            raise FormatError(f"{num_entries} classes with {len(self.counts)} counts in rows that end at {self.offsets[-1]}")
        if not len(self):
            return
        if (counts_of_rows < 1).any():
            raise FormatError("a row without any class; such rows must become dead letters before they are encoded")
        if int(self.class_ids.max()) >= num_classes:
            raise FormatError(f"class id {int(self.class_ids.max())} is outside the {num_classes} classes")
        steps = np.diff(self.class_ids.astype(np.int64), prepend=-1)
        steps[self.offsets[:-1]] = 1
        if (steps < 1).any():
            raise FormatError("class ids do not ascend along a row")
        sums = np.add.reduceat(self.counts.astype(np.int64), self.offsets[:-1])
        if (self.counts < 1).any() or (sums != shares).any():
            worst = int(sums[np.abs(sums - shares).argmax()])
            raise FormatError(f"counts of a row sum to {worst}, of {shares} draws; each class was drawn at least once")


def concatenate_drawn(parts: list[DrawnLabels]) -> DrawnLabels:
    """Put rows behind each other.

    Raises:
        ValueError: no parts.
    """
    entries = np.concatenate([np.diff(part.offsets) for part in parts])
    return DrawnLabels(
        offsets=np.concatenate([[0], np.cumsum(entries)]).astype(np.int64),
        class_ids=np.concatenate([part.class_ids for part in parts]),
        counts=np.concatenate([part.counts for part in parts]),
    )


def num_shares(codec: SampledCodec | ThresholdCodec) -> int:
    """Return the equal shares of the mass of a row."""
    return codec.draws if isinstance(codec, SampledCodec) else codec.levels**2


def _shares(spec: SoftLabelsSpec) -> int:
    assert isinstance(spec.codec, SampledCodec | ThresholdCodec)
    return num_shares(spec.codec)


def _bits(most: int) -> int:
    return 8 if most <= 255 else 16


def encode(rows: DrawnLabels, *, spec: SoftLabelsSpec) -> dict[str, Bytes]:
    """Return the streams of a block of rows.

    Raises:
        FormatError: rows that were not drawn as the spec says.
    """
    shares = _shares(spec)
    rows.check(num_classes=spec.num_classes, shares=shares)
    steps = np.diff(rows.class_ids.astype(np.int64), prepend=-1)
    steps[rows.offsets[:-1]] = rows.class_ids[rows.offsets[:-1]].astype(np.int64) + 1
    lengths, below = bits.split(steps.view(np.uint64))
    entries = np.diff(rows.offsets).astype(np.uint16)
    streams = {f"entries{i}": plane for i, plane in enumerate(pack(entries, num_bits=_bits(spec.max_entries)))}
    streams |= {"step_lengths": lengths, "step_bits": below}
    streams |= {f"counts{i}": plane for i, plane in enumerate(pack(rows.counts, num_bits=_bits(shares)))}
    return streams


def write(rows: StoredRows, *, spec: SoftLabelsSpec) -> dict[str, Bytes]:
    """Return the streams of rows as `read` gave them."""
    drawn = rows.values > 0
    offsets = np.concatenate([[0], np.cumsum(drawn.sum(axis=1))]).astype(np.int64)
    labels = DrawnLabels(
        offsets=offsets, class_ids=rows.class_ids[drawn].astype(np.uint32), counts=rows.values[drawn].astype(np.uint32)
    )
    return encode(labels, spec=spec)


def stream_lengths(num_rows: int, *, spec: SoftLabelsSpec) -> dict[str, int]:
    """Return the most bytes each stream of a block may have."""
    shares = _shares(spec)
    most = num_rows * spec.max_entries
    entries = {f"entries{i}": n for i, n in enumerate(plane_lengths(num_rows, num_bits=_bits(spec.max_entries)))}
    counts = {f"counts{i}": n for i, n in enumerate(plane_lengths(most, num_bits=_bits(shares)))}
    # The largest step is from -1 to the last class.
    below = (spec.num_classes.bit_length() - 1) * most
    return entries | {"step_lengths": most, "step_bits": -(-below // 8)} | counts


def decode_drawn(streams: Mapping[str, Bytes], *, num_rows: int, spec: SoftLabelsSpec) -> DrawnLabels:
    """Return the rows of a block as they were drawn.

    Raises:
        FormatError: streams that `encode` cannot have made.
    """
    shares = _shares(spec)
    entry_bits, count_bits = _bits(spec.max_entries), _bits(shares)
    entries = unpack([streams[f"entries{i}"] for i in range(entry_bits // 8)], count=num_rows, num_bits=entry_bits)
    ends = np.cumsum(entries, dtype=np.int64)
    total = int(ends[-1]) if num_rows else 0
    lengths = streams["step_lengths"]
    if len(lengths) != total or (num_rows and not 0 < int(entries.min()) <= int(entries.max()) <= spec.max_entries):
        raise FormatError(f"{num_rows} rows announce {total} entries, each 1 to {spec.max_entries}; {len(lengths)} are there")
    counts = unpack([streams[f"counts{i}"] for i in range(count_bits // 8)], count=total, num_bits=count_bits)
    steps = bits.join(lengths, streams["step_bits"])
    offsets = np.concatenate([np.zeros(1, dtype=np.int64), ends])
    if not num_rows:
        return DrawnLabels(offsets=offsets, class_ids=np.zeros(0, dtype=np.uint32), counts=np.zeros(0, dtype=np.uint32))
    sums = np.cumsum(steps)
    before = np.concatenate([np.zeros(1, dtype=np.int64), sums[ends[:-1] - 1]]) + 1
    largest = int((sums[ends - 1] - before).max())
    if largest >= spec.num_classes:
        raise FormatError(f"class id {largest} is outside the {spec.num_classes} classes")
    if int(counts.min()) < 1 or (np.add.reduceat(counts, offsets[:-1], dtype=np.int64) != shares).any():
        raise FormatError(f"counts of a row do not sum to {shares}")
    return DrawnLabels(
        offsets=offsets,
        class_ids=(sums - np.repeat(before, entries)).astype(np.uint32),
        counts=counts.astype(np.uint32),
    )


def _rectangle(values: npt.NDArray[Any], *, used: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    padded = np.zeros(used.shape, dtype=values.dtype)
    padded[used] = values
    return padded


def _used(rows: DrawnLabels) -> npt.NDArray[np.bool_]:
    entries = np.diff(rows.offsets)
    fullest = int(entries.max(initial=0))
    check_rectangle(len(rows), entries=fullest)
    used: npt.NDArray[np.bool_] = np.arange(fullest) < entries[:, None]
    return used


def read(streams: Mapping[str, Bytes], *, num_rows: int, spec: SoftLabelsSpec) -> StoredRows:
    """Return the rows of a block, classes ascending, as wide as its fullest row; values are counts.

    Raises:
        FormatError: streams that `encode` cannot have made.
    """
    rows = decode_drawn(streams, num_rows=num_rows, spec=spec)
    used = _used(rows)
    return StoredRows(
        class_ids=_rectangle(rows.class_ids, used=used),
        values=_rectangle(rows.counts, used=used),
        rest=np.zeros(num_rows, dtype=np.uint8),
    )


def decode(streams: Mapping[str, Bytes], *, num_rows: int, spec: SoftLabelsSpec) -> SoftLabels:
    """Return the rows of a block, classes ascending, as wide as its fullest row; nothing is left for the rest.

    Raises:
        FormatError: streams that `encode` cannot have made.
    """
    rows = decode_drawn(streams, num_rows=num_rows, spec=spec)
    used = _used(rows)
    probs = rows.counts.astype(np.float32) / np.float32(_shares(spec))
    return SoftLabels(
        class_ids=_rectangle(as_ids(rows.class_ids, num_classes=spec.num_classes), used=used),
        probs=_rectangle(probs, used=used),
        rest=np.zeros(num_rows, dtype=np.float32),
        num_classes=spec.num_classes,
    )
