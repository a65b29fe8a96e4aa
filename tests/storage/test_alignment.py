"""How many rows each sample has: one rule for writers and readers."""

from __future__ import annotations

import numpy as np
import pytest

from storage.alignment import rows_per_sample
from storage.errors import FormatError
from tests.storage.targets import TARGETS

LENGTHS = np.array([1, 2, 7], dtype=np.int64)
MASKED = np.array([0, 1, 3], dtype=np.int64)
EXPECTED = {
    "labels of a view": [1, 1, 1],
    "labels of masked tokens": [0, 1, 3],
    "labels of all tokens": [1, 2, 7],
    "labels of next tokens, sampled": [0, 1, 6],
    "labels of next tokens, by threshold": [0, 1, 6],
    "labels of next tokens, dense": [0, 1, 6],
    "hidden states": [1, 2, 7],
    "hidden states of first tokens": [1, 1, 1],
    "hidden states, mean": [1, 1, 1],
    "attention": [1, 2, 7],
    "relations": [1, 3, 28],
    "embeddings": [1, 1, 1],
}


@pytest.mark.parametrize("name", TARGETS)
def test_rows_follow_from_tokens_and_masks(name):
    counts = rows_per_sample(TARGETS[name], lengths=LENGTHS, mask_counts=MASKED)
    assert counts.tolist() == EXPECTED[name]
    assert counts.dtype == np.int64
    assert rows_per_sample(TARGETS[name], lengths=LENGTHS[:0], mask_counts=MASKED[:0]).tolist() == []


def test_masked_tokens_need_masks():
    with pytest.raises(FormatError, match="labels of masked tokens, of sequences without masks"):
        rows_per_sample(TARGETS["labels of masked tokens"], lengths=LENGTHS, mask_counts=None)
