"""Rows such as teachers give, of every shape that a codec must carry."""

from __future__ import annotations

import numpy as np

from storage.codecs import RankedLabels

SHAPES = ("flat", "peaked", "steep", "one_hot")


def draw_ids(rng, *, num_classes, entries):
    """Distinct class ids of one row in random order; the first and the last class are often among them."""
    if num_classes <= max(8192, 4 * entries):
        return rng.permutation(num_classes)[:entries]
    ids = np.zeros(0, dtype=np.int64)
    while len(ids) < entries:
        drawn = rng.integers(0, num_classes, size=2 * entries)
        ids = np.unique(np.concatenate([drawn, rng.choice([0, num_classes - 1], size=1)]))
    keep = ids[-entries:] if rng.integers(2) else ids[:entries]
    return rng.permutation(keep)


def make_rows(rng, *, num_rows, num_classes, entries, shape):
    """Rows in rank order whose rest is spread over classes that are no more probable than the kept ones.

    flat: all classes alike. peaked: probabilities fall over a few nats. steep: they fall below what float32 can hold.
    one_hot: all mass in one class, nothing anywhere else.
    """
    ids = np.empty((num_rows, entries), dtype=np.uint32)
    for row in range(num_rows):
        ids[row] = draw_ids(rng, num_classes=num_classes, entries=entries)
    falls = {"flat": 0.0, "peaked": 0.5, "steep": 20.0, "one_hot": 0.0}[shape]
    logs = -np.cumsum(rng.exponential(falls, size=(num_rows, entries)), axis=1)
    num_others = num_classes - entries
    with np.errstate(divide="ignore"):
        share = np.ones(num_rows) if shape == "flat" else rng.uniform(size=num_rows)
        rest = logs[:, -1] + np.log(min(num_others, 2.0**33) * share) if num_others else np.full(num_rows, -np.inf)
    if shape == "peaked" and num_others:
        rest = np.minimum(rest, logs[:, 0] + 2)
    if shape == "one_hot":
        logs[:, 1:] = -np.inf
        rest[:] = -np.inf
    total = np.logaddexp.reduce(np.concatenate([logs, rest[:, None]], axis=1), axis=1)
    return RankedLabels(
        class_ids=ids,
        log_probs=(logs - total[:, None]).astype(np.float32),
        log_rest=(rest - total).astype(np.float32),
    )


def dense_selection(rows, *, num_classes):
    """float64 [rows, classes]: kept classes as they are, the rest evenly over all others; one entry at a time."""
    dense = np.zeros((len(rows), num_classes))
    num_others = num_classes - rows.class_ids.shape[1]
    for row in range(len(rows)):
        if num_others:
            dense[row, :] = np.exp(np.float64(rows.log_rest[row])) / num_others
        for class_id, log_prob in zip(rows.class_ids[row], rows.log_probs[row], strict=True):
            dense[row, class_id] = np.exp(np.float64(log_prob))
    return dense
