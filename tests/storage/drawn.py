"""Drawn rows, of every shape that a codec must carry."""

from __future__ import annotations

import numpy as np

from storage.codecs import DrawnLabels
from tests.storage.rows import draw_ids

DRAWN_SHAPES = ("spread", "peaked", "one")


def make_drawn(rng, *, num_rows, num_classes, shares, shape):
    """Rows of `shares` shares. spread: as many classes as there can be. peaked: a few have most. one: a single class has all."""
    ids, counts, entries = [], [], []
    for _ in range(num_rows):
        most = min(shares, num_classes)
        num = {"spread": most, "peaked": 1 + int(rng.integers(most)), "one": 1}[shape]
        weights = rng.dirichlet(np.full(num, 0.3))
        row = 1 + rng.multinomial(shares - num, weights)
        ids.append(np.sort(draw_ids(rng, num_classes=num_classes, entries=num)))
        counts.append(row)
        entries.append(num)
    return DrawnLabels(
        offsets=np.concatenate([[0], np.cumsum(entries)]).astype(np.int64),
        class_ids=np.concatenate([*ids, np.zeros(0)]).astype(np.uint32),
        counts=np.concatenate([*counts, np.zeros(0)]).astype(np.uint32),
    )
