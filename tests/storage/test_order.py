"""The order of an epoch: every row once, mixed inside windows, the same however it is cut and for ever."""

from __future__ import annotations

import pickle
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.order import EpochOrder

BLOCKS = st.lists(st.integers(0, 9), max_size=30)


def make(block_rows, *, seed=0, epoch=0, window_blocks=4):
    return EpochOrder(np.array(block_rows, dtype=np.int64), seed=seed, epoch=epoch, window_blocks=window_blocks)


def pairs(order, start=0, stop=None):
    block_ids, rows = order.slice(start, order.num_rows if stop is None else stop)
    assert block_ids.dtype == rows.dtype == np.int64
    return list(zip(block_ids.tolist(), rows.tolist(), strict=True))


@given(BLOCKS, st.integers(0, 2**63 - 1), st.integers(0, 2**32), st.integers(0, 12))
def test_every_row_comes_once(block_rows, seed, epoch, window_blocks):
    order = make(block_rows, seed=seed, epoch=epoch, window_blocks=window_blocks)
    assert order.num_rows == sum(block_rows)
    every = [(block, row) for block, count in enumerate(block_rows) for row in range(count)]
    found = pairs(order)
    assert sorted(found) == every
    if window_blocks == 0:
        assert found == every


@given(BLOCKS, st.integers(0, 12), st.lists(st.integers(0, 300), max_size=9))
def test_slices_are_parts_of_the_whole(block_rows, window_blocks, cuts):
    whole = pairs(make(block_rows, window_blocks=window_blocks))
    bounds = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    order = make(block_rows, window_blocks=window_blocks)
    pieces = list(pairwise(bounds))
    assert [pair for start, stop in pieces for pair in pairs(order, start, stop)] == whole
    # In any order of asking, and by a process that never asked for what lies before.
    assert all(pairs(order, start, stop) == whole[start:stop] for start, stop in reversed(pieces))
    assert all(pairs(make(block_rows, window_blocks=window_blocks), start, stop) == whole[start:stop] for start, stop in pieces)


@given(BLOCKS, st.integers(1, 12))
def test_a_window_holds_whole_blocks_and_only_its_own(block_rows, window_blocks):
    order = make(block_rows, window_blocks=window_blocks)
    position, seen = 0, []
    for index in range(-(-len(block_rows) // window_blocks)):
        block_ids, rows = order.window(index)
        held = sorted(set(block_ids.tolist()))
        assert len(held) <= window_blocks
        assert len(rows) == sum(block_rows[block] for block in held)
        for row in range(position, position + len(rows)):
            assert order.window_of(row) == index
        assert pairs(order, position, position + len(rows)) == list(zip(block_ids.tolist(), rows.tolist(), strict=True))
        position += len(rows)
        seen += held
    assert position == order.num_rows
    assert sorted(seen) == [block for block, count in enumerate(block_rows) if count]


def test_seeds_epochs_and_windows_each_make_another_order():
    orders = [
        pairs(make([7] * 20, seed=seed, epoch=epoch, window_blocks=window))
        for seed in (0, 1, 2**32, 2**63 - 1)
        for epoch in (0, 1, 2, 300)
        for window in (0, 4, 5)
    ]
    distinct = {tuple(order) for order in orders}
    assert len(distinct) == 4 * 4 * 2 + 1  # without shuffling there is one order


def test_windows_of_equal_size_are_mixed_differently():
    order = make([8] * 9, window_blocks=3)
    patterns = set()
    for index in range(3):
        block_ids, rows = order.window(index)
        place = {block: rank for rank, block in enumerate(dict.fromkeys(block_ids.tolist()))}
        patterns.add(tuple((place[block], row) for block, row in zip(block_ids.tolist(), rows.tolist(), strict=True)))
    assert len(patterns) == 3


def test_rows_are_mixed_evenly():
    # Where the first row of the first block lands, over many epochs, is spread over the whole epoch.
    places = [pairs(make([5] * 10, epoch=epoch, window_blocks=10)).index((0, 0)) for epoch in range(400)]
    counts = np.bincount(np.array(places) // 10, minlength=5)
    assert counts.min() > 50  # 80 expected; 8 is the standard deviation
    assert len(set(places)) == 50


def digits(order):
    block_ids, rows = order.slice(0, order.num_rows)
    return "".join(map(str, block_ids.tolist())), "".join(map(str, rows.tolist()))


def test_orders_never_change():
    # A checkpoint says (epoch, row) and nothing else: another order would be silently wrong data.
    assert digits(make([3, 2, 4, 1], seed=7, epoch=2, window_blocks=2)) == ("2222000113", "0321012010")
    assert digits(make([3, 2, 4, 1], seed=7, epoch=3, window_blocks=2)) == ("2200220113", "3212010100")
    assert digits(make([4, 5], seed=2**63 - 1, epoch=2**32, window_blocks=64)) == ("100101011", "101322304")


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (0, 11), (5, 4), (11, 11)])
def test_rows_beyond_the_epoch_are_an_error(start, stop):
    with pytest.raises(IndexError, match=f"rows \\[{start}, {stop}\\) leave the epoch's 10 rows"):
        make([3, 2, 4, 1]).slice(start, stop)


def test_empty_epochs_and_empty_slices():
    assert pairs(make([])) == []
    assert pairs(make([0, 0, 0])) == []
    assert pairs(make([3]), 3, 3) == []
    assert make([]).num_rows == 0


def test_a_copy_in_another_process_orders_alike():
    order = make([3, 2, 4, 1], seed=5)
    order.window(0)
    assert pairs(pickle.loads(pickle.dumps(order))) == pairs(order)
