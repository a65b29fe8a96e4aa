"""How far stored rows are from what the teacher said."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from storage.codecs.ranked import RankedLabels
from storage.codecs.sampled import DrawnLabels
from storage.soft_labels import SoftLabels

_NO_MASS = 1e-30
"""Less mass adds nothing to a divergence, and what is stored of it may be 0: float32 ends at 1e-45."""


def codec_kl(rows: RankedLabels | DrawnLabels, stored: SoftLabels) -> npt.NDArray[np.float64]:
    """Return float64 [rows], KL(exact selection || stored) in nats, both with their rest spread evenly over other classes.

    Truncation to the selection is not counted: this is what the codec adds to it. Sparse: no row of all classes is built.
    Of drawn labels 0: they are stored as they were drawn, and how far a draw is from its distribution is no loss but noise.
    """
    if isinstance(rows, DrawnLabels):
        return np.zeros(len(rows))
    num_rows, entries = rows.class_ids.shape
    num_classes = stored.num_classes
    exact = np.exp(rows.log_probs.astype(np.float64))
    row_ids = np.arange(num_rows, dtype=np.uint64)[:, None] * np.uint64(num_classes)
    exact_keys = (row_ids + rows.class_ids).reshape(-1)
    kept = stored.probs > 0
    stored_keys = (row_ids + stored.class_ids.astype(np.uint64))[kept]
    order = np.argsort(stored_keys)
    num_others = num_classes - kept.sum(axis=1)
    spread = np.divide(stored.rest, num_others, out=np.zeros(num_rows), where=num_others > 0).astype(np.float64)
    estimate: npt.NDArray[np.float64] = np.repeat(spread, entries)
    if len(stored_keys):
        places = np.minimum(np.searchsorted(stored_keys[order], exact_keys), len(stored_keys) - 1)
        found = stored_keys[order][places] == exact_keys
        estimate[found] = stored.probs[kept][order][places][found]
    stored_probs = estimate.reshape(num_rows, entries)
    with np.errstate(divide="ignore", invalid="ignore"):
        kl: npt.NDArray[np.float64] = np.where(exact > _NO_MASS, exact * (rows.log_probs - np.log(stored_probs)), 0.0).sum(axis=1)
        rest = np.exp(rows.log_rest.astype(np.float64))
        if num_classes > entries:
            log_spread = rows.log_rest - np.log(num_classes - entries)
            kl += np.where(rest > _NO_MASS, rest * (log_spread - np.log(spread)), 0.0)
    return np.asarray(np.maximum(kl, 0.0))
