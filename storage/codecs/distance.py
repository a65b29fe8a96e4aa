"""How far apart two sparse distributions of the same samples are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from storage.soft_labels import SoftLabels

_LEAST = 1e-12
"""Probabilities below count as this in a divergence: a codec's zero is no certainty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Distances:
    """Distances of rows, both sides with their rest spread evenly over the classes they do not name.

    Attributes:
        total_variation: float64 [rows], half the sum of differences of probabilities, in [0, 1].
        kl: float64 [rows], KL(one || other) in nats.
        same_top: bool [rows], whether both name the same class as most probable; where several are, whether they share one.
    """

    total_variation: npt.NDArray[np.float64]
    kl: npt.NDArray[np.float64]
    same_top: npt.NDArray[np.bool_]


def distances(one: SoftLabels, other: SoftLabels) -> Distances:
    """Compare rows pair by pair. Sparse: no row of all classes is built.

    Raises:
        ValueError: other numbers of rows or classes.
    """
    if (len(one), one.num_classes) != (len(other), other.num_classes):
        raise ValueError(
            f"{len(one)} rows of {one.num_classes} classes cannot be compared with {len(other)} of {other.num_classes}"
        )
    num_rows, num_classes = len(one), np.uint64(one.num_classes)
    keys = [_keys(side) for side in (one, other)]
    union = np.unique(np.concatenate(keys))
    row_of = (union // num_classes).astype(np.int64)
    unnamed = one.num_classes - np.bincount(row_of, minlength=num_rows).astype(np.float64)
    spreads = [_spread(side) for side in (one, other)]
    probs = []
    for side, side_keys, spread in zip((one, other), keys, spreads, strict=True):
        dense = spread[row_of]
        dense[np.searchsorted(union, side_keys)] = side.probs[side.probs > 0]
        probs.append(dense)
    apart = _row_sums(np.abs(probs[0] - probs[1]), row_of=row_of, num_rows=num_rows)
    apart += unnamed * np.abs(spreads[0] - spreads[1])
    kl = _row_sums(_kl_terms(probs[0], probs[1]), row_of=row_of, num_rows=num_rows)
    kl += unnamed * _kl_terms(spreads[0], spreads[1])
    tops = [side >= _row_max(side, row_of=row_of, num_rows=num_rows)[row_of] for side in probs]
    shared = np.bincount(row_of[tops[0] & tops[1]], minlength=num_rows) > 0
    unknown = np.bincount(row_of, minlength=num_rows) == 0
    return Distances(total_variation=np.minimum(apart / 2, 1.0), kl=np.maximum(kl, 0.0), same_top=shared | unknown)


def top_class(rows: SoftLabels) -> npt.NDArray[np.int64]:
    """Return int64 [rows], the most probable class of each row; -1 where none is kept."""
    if not rows.probs.shape[1]:
        return np.full(len(rows), -1, dtype=np.int64)
    best = rows.probs.argmax(axis=1)
    picked = np.arange(len(rows)), best
    return np.where(rows.probs[picked] > 0, rows.class_ids[picked].astype(np.int64), -1)


def _keys(rows: SoftLabels) -> npt.NDArray[np.uint64]:
    """Return row * classes + class of every kept entry, in storage order."""
    starts = np.arange(len(rows), dtype=np.uint64)[:, None] * np.uint64(rows.num_classes)
    keys: npt.NDArray[np.uint64] = (starts + rows.class_ids.astype(np.uint64))[rows.probs > 0]
    return keys


def _spread(rows: SoftLabels) -> npt.NDArray[np.float64]:
    others = rows.num_classes - (rows.probs > 0).sum(axis=1)
    spread: npt.NDArray[np.float64] = np.divide(rows.rest, others, out=np.zeros(len(rows)), where=others > 0)
    return spread


def _kl_terms(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    terms = one * (np.log(np.maximum(one, _LEAST)) - np.log(np.maximum(other, _LEAST)))
    return np.asarray(terms, dtype=np.float64)


def _row_sums(values: npt.NDArray[np.float64], *, row_of: npt.NDArray[np.int64], num_rows: int) -> npt.NDArray[np.float64]:
    # Of no values numpy makes integers, weights or not.
    return np.bincount(row_of, weights=values, minlength=num_rows).astype(np.float64)


def _row_max(values: npt.NDArray[np.float64], *, row_of: npt.NDArray[np.int64], num_rows: int) -> npt.NDArray[np.float64]:
    most = np.zeros(num_rows)
    np.maximum.at(most, row_of, values)
    return most
