"""TinyViT's records as rows: what is a distribution, what is none and why."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from storage.codecs.ranked import RankedLabels

_RELATIVE_ROUNDING = 2.0**-11
_ABSOLUTE_ROUNDING = 2.0**-25
"""float16 is off by at most 2^-11 of a value, or by 2^-25 where it is subnormal."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvertedRecords:
    """Records as rows.

    Attributes:
        rows: of the records that are distributions, in order.
        valid: bool [records].
        reasons: why a record is none, by its place.
        num_clipped: rows whose probabilities sum to more than 1 by no more than float16 rounds: their rest is 0.
    """

    rows: RankedLabels
    valid: npt.NDArray[np.bool_]
    reasons: dict[int, str]
    num_clipped: int


def convert(records: npt.NDArray[np.void], *, num_classes: int) -> ConvertedRecords:
    """Return records as log-probabilities with their rest, 1 - sum.

    Where all classes are named there is no rest, and the rounding of the sum is divided out.
    """
    probs = records["probs"].astype(np.float64)
    ids = records["class_ids"].astype(np.int64)
    k = probs.shape[1]
    with np.errstate(invalid="ignore"):
        sums = probs.sum(axis=1)
        most = 1 + _RELATIVE_ROUNDING + k * _ABSOLUTE_ROUNDING
        ordered = np.sort(ids, axis=1)
        faults = {
            "a probability is NaN or infinite": ~np.isfinite(probs).all(axis=1),
            "a probability is negative": (probs < 0).any(axis=1),
            "probabilities sum to more than 1": sums > most,
            "probabilities rise along the record": (probs[:, 1:] > probs[:, :-1]).any(axis=1),
            f"a class id is outside the {num_classes} classes": (ids >= num_classes).any(axis=1),
            "a class is named twice": (ordered[:, 1:] == ordered[:, :-1]).any(axis=1),
        }
        if k == num_classes:
            faults["probabilities of all classes sum to less than 1"] = sums < 2 - most
    valid = ~np.any(list(faults.values()), axis=0)
    reasons: dict[int, str] = {}
    for place in np.flatnonzero(~valid).tolist():
        reason = next(reason for reason, faulty in faults.items() if faulty[place])
        reasons[place] = f"{reason} ({sums[place]:.6g})" if "sum" in reason else reason
    kept, totals = probs[valid], sums[valid]
    clipped = totals > 1
    if k == num_classes:
        kept = kept / totals[:, None]
        totals = np.ones(len(totals))
    with np.errstate(divide="ignore"):
        rows = RankedLabels(
            class_ids=ids[valid].astype(np.uint32),
            log_probs=np.log(kept).astype(np.float32),
            log_rest=np.log(np.maximum(1 - totals, 0)).astype(np.float32),
        )
    return ConvertedRecords(rows=rows, valid=valid, reasons=reasons, num_clipped=int(clipped.sum()))
