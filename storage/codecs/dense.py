"""The dense codec: float16 log-probabilities of all classes, in class order."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from storage.codecs.columns import Bytes, pack, unpack
from storage.codecs.ranked import RankedLabels
from storage.codecs.stored import StoredRows
from storage.errors import FormatError
from storage.soft_labels import SoftLabels, as_ids
from storage.specs import SoftLabelsSpec

_MAGNITUDE = 0x7FFF
_INFINITY = 0x7C00

MAX_VALUES = 1 << 28
"""Probabilities of one block: 512 MB stored, 2 GB decoded."""


def encode(rows: RankedLabels) -> dict[str, Bytes]:
    """Return the streams of a block of rows, all classes of which are ranked.

    Raises:
        FormatError: a class twice in a row, or more than `MAX_VALUES` probabilities.
    """
    num_rows, num_classes = rows.class_ids.shape
    if num_rows * num_classes > MAX_VALUES:
        raise FormatError(
            f"{num_rows} rows of {num_classes} classes are more than a block of dense labels may hold ({MAX_VALUES} "
            "probabilities); choose target.codec.kind: threshold or sampled, whose expected values are the probabilities"
        )
    with np.errstate(over="ignore"):
        ranked = np.minimum(rows.log_probs, 0).astype(np.float16).view(np.uint16) & np.uint16(_MAGNITUDE)
    # No log-probability has this pattern: what is left of it was never written.
    magnitudes = np.full((num_rows, num_classes), _MAGNITUDE, dtype=np.uint16)
    np.put_along_axis(magnitudes, rows.class_ids.astype(np.int64), ranked, axis=1)
    if int(magnitudes.max(initial=0)) > _INFINITY:
        raise FormatError("a row ranks a class twice")
    everything = np.broadcast_to(np.arange(num_classes), magnitudes.shape)
    return write(StoredRows(class_ids=everything, values=magnitudes, rest=np.zeros(num_rows, dtype=np.uint16)))


def write(rows: StoredRows) -> dict[str, Bytes]:
    """Return the streams of quantised rows."""
    flat = np.ascontiguousarray(rows.values).reshape(-1)
    return {f"logs{i}": plane for i, plane in enumerate(pack(flat, num_bits=16))}


def stream_lengths(num_rows: int, *, spec: SoftLabelsSpec) -> dict[str, int]:
    """Return the bytes of every stream of a block, all of which follow from its shape."""
    count = min(num_rows * spec.num_classes, MAX_VALUES)
    return {"logs0": count, "logs1": count}


def _magnitudes(streams: Mapping[str, Bytes], *, num_rows: int, spec: SoftLabelsSpec) -> npt.NDArray[np.uint16]:
    count = num_rows * spec.num_classes
    flat = unpack([streams["logs0"], streams["logs1"]], count=count, num_bits=16)
    if int(flat.max(initial=0)) > _INFINITY:
        raise FormatError(f"float16 bit pattern {int(flat.max()):#06x} is NaN")
    return flat.astype(np.uint16, copy=False).reshape(num_rows, spec.num_classes)


def _all_classes(num_rows: int, *, spec: SoftLabelsSpec) -> npt.NDArray[np.int64]:
    """Return int64 [rows, classes], every class in order; nothing as long as the classes where there are no rows."""
    if not num_rows:
        return np.empty((0, spec.num_classes), dtype=np.int64)
    return np.broadcast_to(np.arange(spec.num_classes), (num_rows, spec.num_classes))


def read(streams: Mapping[str, Bytes], *, num_rows: int, spec: SoftLabelsSpec) -> StoredRows:
    """Return the quantised rows of a block; every row has all classes, in class order.

    Raises:
        FormatError: streams that `encode` cannot have made.
    """
    values = _magnitudes(streams, num_rows=num_rows, spec=spec)
    everything = _all_classes(num_rows, spec=spec)
    return StoredRows(class_ids=everything, values=values, rest=np.zeros(num_rows, dtype=np.uint16))


def decode(streams: Mapping[str, Bytes], *, num_rows: int, spec: SoftLabelsSpec) -> SoftLabels:
    """Return the rows of a block, scaled by the rounding of their sum to be a distribution; nothing is left for the rest.

    Raises:
        FormatError: streams that `encode` cannot have made.
    """
    probs = np.exp(-_magnitudes(streams, num_rows=num_rows, spec=spec).view(np.float16).astype(np.float32))
    totals = probs.sum(axis=1, dtype=np.float64)
    if num_rows and not float(totals.min()) > 0.5:
        raise FormatError("a row's probabilities sum to less than one half")
    probs /= totals.astype(np.float32)[:, None]
    # Every class is kept, and a kept entry is above 0.
    np.maximum(probs, np.finfo(np.float32).tiny, out=probs)
    return SoftLabels(
        class_ids=as_ids(np.ascontiguousarray(_all_classes(num_rows, spec=spec)), num_classes=spec.num_classes),
        probs=probs,
        rest=np.zeros(num_rows, dtype=np.float32),
        num_classes=spec.num_classes,
    )
