"""Blocks of a unit cover every sample once, in order, and are as full as their limits allow."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.block_bounds import (
    BLOCK_TOKENS,
    MAX_BLOCK_SAMPLES,
    MAX_BLOCK_VALUE_ROWS,
    block_bounds,
    block_samples,
)


@pytest.mark.parametrize(
    ("num_samples", "num_tokens", "expected"),
    [
        (0, 128, 1),
        (1, 128, 1),
        (62, 128, 62),
        (63, 128, 32),
        (1000, 128, 59),
        (10, 8000, 1),
        (10, 65535, 1),
        (9000, 1, 4500),
        (8000, 1, 8000),
    ],
)
def test_blocks_of_pictures_are_even_shares_of_at_most_so_many_tokens(num_samples, num_tokens, expected):
    found = block_samples(num_samples=num_samples, num_tokens=num_tokens)
    assert found == expected
    assert found == 1 or found * num_tokens <= BLOCK_TOKENS
    assert found <= MAX_BLOCK_SAMPLES


LENGTHS = st.lists(st.one_of(st.integers(0, 40), st.integers(0, 2000), st.integers(0, 65535)), max_size=120)


@given(lengths=LENGTHS)
def test_blocks_of_texts_cover_every_sample_once_and_no_block_could_be_spared(lengths):
    counts = np.array(lengths, dtype=np.int64)
    bounds = block_bounds(counts)
    assert bounds[0] == 0
    assert bounds[-1] == len(counts)
    assert (np.diff(bounds) > 0).all()
    for first, last in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        of_block = counts[first:last]
        assert len(of_block) <= MAX_BLOCK_SAMPLES
        if len(of_block) > 1:
            assert of_block.sum() <= BLOCK_TOKENS
            assert (of_block * (of_block + 1) // 2).sum() < MAX_BLOCK_VALUE_ROWS
    # What takes samples as long as they fit needs no fewer blocks.
    greedy, tokens, pairs = len(counts) > 0, 0, 0
    for count in lengths:
        more = count * (count + 1) // 2
        if tokens and (tokens + count > BLOCK_TOKENS or pairs + more >= MAX_BLOCK_VALUE_ROWS):
            greedy, tokens, pairs = greedy + 1, 0, 0
        tokens, pairs = tokens + count, pairs + more
    assert len(bounds) - 1 <= greedy + lengths.count(0)


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([], [0]),
        ([128] * 62, [0, 62]),
        ([128] * 63, [0, 32, 63]),
        ([10] * 900, [0, 450, 900]),
        ([9000, 9000, 1], [0, 1, 2, 3]),
        ([5791, 2209], [0, 1, 2]),  # fewer than 8,000 tokens each, more than 2^24 pairs together
        ([0] * 8001, [0, 8000, 8001]),
        ([4000, 4000, 100, 100], [0, 1, 4]),
    ],
)
def test_blocks_of_texts_that_are_known(lengths, expected):
    assert block_bounds(np.array(lengths, dtype=np.int64)).tolist() == expected


def test_equal_texts_get_the_even_shares_that_pictures_get():
    bounds = block_bounds(np.full(1000, 128, dtype=np.int64))
    assert set(np.diff(bounds[:-1]).tolist()) == {block_samples(num_samples=1000, num_tokens=128)}


def test_a_large_unit_is_cut_at_once():
    lengths = np.random.default_rng(0).integers(1, 60, size=400_000)
    bounds = block_bounds(lengths)
    totals = np.add.reduceat(lengths, bounds[:-1])
    assert len(totals) == -(-int(lengths.sum()) // 7_990) or totals.mean() > 7_950
    assert totals.max() - np.median(totals) < 60
