"""Regrouped by length, an epoch still holds every row once, batch by batch the same for any number of readers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.order import EpochOrder
from storage.streams.length_groups import LengthGroups


def make_groups(sizes, *, seed, epoch, window_blocks, batch_size):
    order = EpochOrder(np.array(sizes, dtype=np.int64), seed=seed, epoch=epoch, window_blocks=window_blocks)
    return order, LengthGroups(order, batch_size=batch_size, lengths=lengths_of)


def lengths_of(block_ids, rows):
    return (block_ids * 31 + rows * 17) % 23


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=8),
    st.integers(0, 2**32),
    st.integers(0, 3),
    st.integers(1, 4),
    st.integers(1, 7),
    st.data(),
)
def test_every_row_comes_once_wherever_slices_are_cut(sizes, seed, epoch, window_blocks, batch_size, data):
    order, groups = make_groups(sizes, seed=seed, epoch=epoch, window_blocks=window_blocks, batch_size=batch_size)
    whole = np.stack(groups.slice(0, order.num_rows), axis=1)
    expected = [(block, row) for block, size in enumerate(sizes) for row in range(size)]
    assert sorted(map(tuple, whole.tolist())) == expected
    start = data.draw(st.integers(0, order.num_rows))
    stop = data.draw(st.integers(start, order.num_rows))
    _, anew = make_groups(sizes, seed=seed, epoch=epoch, window_blocks=window_blocks, batch_size=batch_size)
    assert np.stack(anew.slice(start, stop), axis=1).tolist() == whole[start:stop].tolist()


def test_batches_hold_like_lengths_and_change_with_the_epoch():
    sizes = [20] * 12

    def spread(groups):
        batches = [lengths_of(*groups.slice(start, start + 8)) for start in range(0, 240, 8)]
        return float(np.mean([batch.max() - batch.min() for batch in batches])), [int(batch.max()) for batch in batches]

    order, groups = make_groups(sizes, seed=1, epoch=0, window_blocks=4, batch_size=8)
    width, longest = spread(groups)
    assert width < 0.3 * spread(order)[0]
    assert longest != sorted(longest)
    _, later = make_groups(sizes, seed=1, epoch=1, window_blocks=4, batch_size=8)
    assert spread(later)[1] != longest
    with pytest.raises(IndexError, match="leave the epoch's 240 rows"):
        groups.slice(239, 241)


def test_the_longest_rows_are_not_those_that_fill_no_batch_of_any_epoch():
    """A training drops what fills no batch: of 21 rows in batches of 8 five, which would be the same ones every time."""
    seen: set[int] = set()
    for epoch in range(12):
        _, groups = make_groups([21], seed=1, epoch=epoch, window_blocks=1, batch_size=8)
        seen |= set(groups.slice(0, 16)[1].tolist())
    assert len(seen) == 21
