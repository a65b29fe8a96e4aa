"""Rows that are filled into a block later give the bytes of a block that had them from the start."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.codecs import RankedLabels
from storage.errors import FormatError
from storage.label_blocks import decode_label_block, encode_label_block, fill_label_block
from storage.specs import CompactCodec, ExactCodec, SoftLabelsSpec
from tests.storage.rows import SHAPES, make_rows


def take(rows, chosen):
    return RankedLabels(class_ids=rows.class_ids[chosen], log_probs=rows.log_probs[chosen], log_rest=rows.log_rest[chosen])


@settings(max_examples=100)
@given(
    states=st.lists(st.sampled_from(["there", "filled", "dead"]), min_size=1, max_size=150),
    size=st.sampled_from([(1, 1), (10, 3), (1000, 30), (70_000, 4), (2**31 + 5, 2)]),
    codec=st.sampled_from([ExactCodec(), CompactCodec(), CompactCodec(levels=9)]),
    shape=st.sampled_from(SHAPES),
    seed=st.integers(0, 2**32),
)
def test_a_filled_block_is_the_block_of_all_rows(states, size, codec, shape, seed):
    num_classes, k = size
    spec = SoftLabelsSpec(num_classes=num_classes, k=k, codec=codec)
    states = np.array(states)
    rng = np.random.default_rng(seed)
    rows = make_rows(rng, num_rows=len(states), num_classes=num_classes, entries=k, shape=shape)
    digests = rng.integers(1, 2**64, size=len(states), dtype=np.uint64)

    def block(present, digests):
        return encode_label_block(
            take(rows, present), spec=spec, view=1, first_sample=5, present=present, key_hash=7, view_digests=digests
        )

    there, filled = states == "there", states == "filled"
    old = block(there, np.where(filled, np.uint64(0), digests))
    new = fill_label_block(
        old, take(rows, filled), offsets=np.flatnonzero(filled), view_digests=np.where(filled, digests, 0), origin="test"
    )
    assert new == block(there | filled, digests)
    before, after = (decode_label_block(data, origin="test") for data in (old, new))
    kept = np.isin(after.positions, before.positions)
    np.testing.assert_array_equal(after.soft_labels.rest[kept], before.soft_labels.rest)


def test_a_row_that_is_there_is_not_overwritten():
    spec = SoftLabelsSpec(num_classes=10, k=3, codec=CompactCodec())
    rows = make_rows(np.random.default_rng(0), num_rows=2, num_classes=10, entries=3, shape="peaked")
    present = np.array([True, False, True])
    digests = np.ones(3, dtype=np.uint64)
    data = encode_label_block(rows, spec=spec, view=0, first_sample=0, present=present, key_hash=7, view_digests=digests)
    with pytest.raises(FormatError, match="sample 2 of a block has a row already"):
        fill_label_block(data, rows, offsets=np.array([1, 2]), view_digests=digests, origin="test")
