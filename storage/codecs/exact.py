"""The exact codec: class ids by rank, float16 log-probabilities as row deltas, float16 log of the rest mass.

Log-probabilities are at most 0 and fall along a row, so the bit patterns of their float16 magnitudes rise along it: deltas are
small and never negative. They are stored rank by rank, all rows' first deltas before all second ones: neighbours are then alike,
and adding them up is one vector addition a rank.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from storage.codecs.columns import Bytes, bits_needed, pack, plane_lengths, row_spans, unpack
from storage.codecs.ranked import RankedLabels
from storage.codecs.stored import StoredRows
from storage.errors import FormatError
from storage.soft_labels import SoftLabels, as_ids
from storage.specs import SoftLabelsSpec

_MAGNITUDE = 0x7FFF
_INFINITY = 0x7C00


def _probability_table() -> npt.NDArray[np.float32]:
    magnitudes = np.arange(_INFINITY + 1, dtype=np.uint16).view(np.float16).astype(np.float64)
    return np.exp(-magnitudes).astype(np.float32)


_PROBABILITY = _probability_table()
"""float32 [31745], exp(-m) for every float16 magnitude m up to infinity."""


def _magnitudes(log_probs: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    # A float32 log-softmax may end an ulp above 0; a magnitude has no sign.
    with np.errstate(over="ignore"):
        return np.minimum(log_probs, 0).astype(np.float16).view(np.uint16) & np.uint16(_MAGNITUDE)


def encode(rows: RankedLabels, *, spec: SoftLabelsSpec) -> dict[str, Bytes]:
    """Return the streams of a block of rows."""
    quantised = StoredRows(class_ids=rows.class_ids, values=_magnitudes(rows.log_probs), rest=_magnitudes(rows.log_rest))
    return write(quantised, spec=spec)


def write(rows: StoredRows, *, spec: SoftLabelsSpec) -> dict[str, Bytes]:
    """Return the streams of quantised rows."""
    ids = rows.class_ids.reshape(-1).astype(np.uint32)
    deltas = np.ascontiguousarray(np.diff(rows.values, axis=1, prepend=np.uint16(0)).T).reshape(-1)
    streams = {f"ids{i}": plane for i, plane in enumerate(pack(ids, num_bits=bits_needed(spec.num_classes - 1)))}
    streams |= {f"deltas{i}": plane for i, plane in enumerate(pack(deltas, num_bits=16))}
    streams |= {f"rest{i}": plane for i, plane in enumerate(pack(rows.rest, num_bits=16))}
    return streams


def stream_lengths(num_rows: int, *, spec: SoftLabelsSpec) -> dict[str, int]:
    """Return the bytes of every stream of a block, all of which follow from its shape."""
    count = num_rows * spec.max_entries
    lengths = {f"ids{i}": n for i, n in enumerate(plane_lengths(count, num_bits=bits_needed(spec.num_classes - 1)))}
    return lengths | {"deltas0": count, "deltas1": count, "rest0": num_rows, "rest1": num_rows}


def read(streams: Mapping[str, Bytes], *, num_rows: int, spec: SoftLabelsSpec) -> StoredRows:
    """Return the quantised rows of a block.

    Raises:
        FormatError: streams that `encode` cannot have made.
    """
    entries = spec.max_entries
    count = num_rows * entries
    num_bits = bits_needed(spec.num_classes - 1)
    ids = unpack([streams[f"ids{i}"] for i in range(-(-num_bits // 8))], count=count, num_bits=num_bits)
    if count and int(ids.max()) >= spec.num_classes:
        raise FormatError(f"class id {int(ids.max())} is outside the {spec.num_classes} classes")
    by_rank = unpack([streams["deltas0"], streams["deltas1"]], count=count, num_bits=16).reshape(entries, num_rows)
    for rank in range(1, entries):
        np.add(by_rank[rank], by_rank[rank - 1], out=by_rank[rank])
    rest_magnitudes = unpack([streams["rest0"], streams["rest1"]], count=num_rows, num_bits=16)
    # Deltas that wrap would fall; a valid row ends at its largest magnitude.
    largest = max(int(by_rank.max(initial=0)), int(rest_magnitudes.max(initial=0)))
    if largest > _INFINITY:
        raise FormatError(f"float16 bit pattern {largest:#06x} is NaN")
    return StoredRows(class_ids=ids.reshape(num_rows, entries), values=by_rank.T, rest=rest_magnitudes)


def decode(streams: Mapping[str, Bytes], *, num_rows: int, spec: SoftLabelsSpec) -> SoftLabels:
    """Return the rows of a block; probabilities and rest are scaled by the rounding of their sum to be a distribution.

    Raises:
        FormatError: streams that `encode` cannot have made.
    """
    stored = read(streams, num_rows=num_rows, spec=spec)
    probs = np.empty(stored.values.shape, dtype=np.float32)
    for span in row_spans(probs.shape):
        # Transposed as indices, not as the uint16 they are: `take` would make them so in a pass of its own.
        magnitudes = stored.values[span].astype(np.intp, order="C")
        # mode: the default checks every index a second time.
        _PROBABILITY.take(magnitudes, mode="clip", out=probs[span])
    rest = _PROBABILITY.take(stored.rest, mode="clip")
    total = np.einsum("ij->i", probs)
    total += rest
    if num_rows and not float(total.min()) > 0.5:
        raise FormatError("a row's probabilities and rest mass sum to less than one half")
    scale = np.float32(1) / total
    probs *= scale[:, None]
    rest *= scale
    return SoftLabels(
        class_ids=as_ids(stored.class_ids, num_classes=spec.num_classes),
        probs=probs,
        rest=rest,
        num_classes=spec.num_classes,
    )
