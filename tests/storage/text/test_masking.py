"""Masks depend on (seed, key, view) and the sequence itself, and on nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.specs import MaskedTokensView
from storage.text.masking import mask_tokens
from storage.text.token_rows import TokenRows, concatenate_tokens, offsets_of

VOCABULARY = 1000
MASK = 4
GOLDEN = {
    "offsets": [0, 5, 6, 9],
    "positions": [1, 4, 6, 16, 19, 3, 5, 6, 11],
    "input_ids": [4, 4, 824, 30, 4, 4, 4, 4, 4],
    "whole_words": [12, 13, 14, 18, 19, 20, 1, 12, 13],
}


def view(**kwargs):
    return MaskedTokensView(
        tokenizer_sha256="0" * 64,
        vocabulary_size=VOCABULARY,
        layout="truncate",
        length=512,
        special_tokens=True,
        mask_token_id=MASK,
        **kwargs,
    )


def sequence(length, *, seed=0):
    """A framed sequence of content ids from 10, with special tokens at both ends."""
    ids = np.random.default_rng(seed).integers(10, VOCABULARY, length + 2).astype(np.uint32)
    ids[0], ids[-1] = 2, 3
    return TokenRows(offsets=np.array([0, length + 2]), token_ids=ids)


def masked(rows, *, keys=None, view_index=0, word_starts=None, **kwargs):
    keys = keys or [f"k{index}" for index in range(len(rows))]
    found = mask_tokens(
        rows,
        keys=keys,
        maskable=rows.token_ids >= 10,
        view=view(**kwargs),
        view_index=view_index,
        word_starts=word_starts,
    )
    TokenRows(offsets=rows.offsets, token_ids=rows.token_ids, masks=found).check(vocabulary_size=VOCABULARY)
    return found


def test_golden_values():
    # What these are may never change: student and teacher draw them on different machines and in different years.
    rows = concatenate_tokens([sequence(20, seed=1), sequence(3, seed=2), sequence(13, seed=3)])
    found = masked(rows, keys=["a.txt:1", "Käse@0", "z"], seed=7, view_index=2, mask_share=0.25)
    assert found.offsets.tolist() == GOLDEN["offsets"]
    assert found.positions.tolist() == GOLDEN["positions"]
    assert found.input_ids.tolist() == GOLDEN["input_ids"]
    starts = np.arange(len(rows.token_ids)) % 3 == 0
    found = masked(rows, keys=["a.txt:1", "Käse@0", "z"], seed=7, mask_share=0.25, word_starts=starts, whole_words=True)
    assert found.positions.tolist() == GOLDEN["whole_words"]


@given(
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=5),
    seed=st.integers(0, 2**63 - 1),
    view_index=st.integers(0, 99),
    mask_share=st.floats(0.01, 1),
    whole_words=st.booleans(),
    data=st.data(),
)
def test_a_mask_does_not_depend_on_its_neighbours(lengths, seed, view_index, mask_share, whole_words, data):
    parts = [sequence(length, seed=length) for length in lengths]
    rows = concatenate_tokens(parts)
    starts = np.array(data.draw(st.lists(st.booleans(), min_size=len(rows.token_ids), max_size=len(rows.token_ids))))
    keys = [f"document {index}@{length}" for index, length in enumerate(lengths)]
    options = {"seed": seed, "view_index": view_index, "mask_share": mask_share, "whole_words": whole_words}
    together = masked(rows, keys=keys, word_starts=starts, **options)
    for index, part in enumerate(parts):
        of_part = starts[rows.offsets[index] : rows.offsets[index + 1]]
        alone = masked(part, keys=[keys[index]], word_starts=of_part, **options)
        expected = together.take(np.array([index]))
        assert alone.positions.tolist() == expected.positions.tolist()
        assert alone.input_ids.tolist() == expected.input_ids.tolist()


@given(lengths=st.lists(st.integers(0, 200), min_size=1, max_size=6), mask_share=st.floats(0.001, 1), seed=st.integers(0, 99))
def test_each_sequence_has_its_exact_share(lengths, mask_share, seed):
    rows = concatenate_tokens([sequence(length, seed=length) for length in lengths])
    found = masked(rows, mask_share=mask_share, seed=seed)
    assert found.counts.tolist() == [min(length, max(1, round(mask_share * length))) for length in lengths]
    items = found.positions + np.repeat(rows.offsets[:-1], found.counts)
    assert (rows.token_ids[items] >= 10).all(), "special tokens are never masked"


def test_masks_of_other_views_seeds_and_keys_differ():
    rows = sequence(200)
    found = [
        masked(rows, keys=[key], seed=seed, view_index=view_index).positions.tolist()
        for key, seed, view_index in (("a", 0, 0), ("b", 0, 0), ("a", 1, 0), ("a", 0, 1))
    ]
    assert len({tuple(positions) for positions in found}) == 4


def test_shares_hold_in_expectation():
    rows = concatenate_tokens([sequence(100, seed=seed) for seed in range(400)])
    found = masked(rows)
    own = rows.token_ids[found.positions + np.repeat(rows.offsets[:-1], found.counts)]
    num_masked = len(found.positions)
    assert num_masked == 400 * 15
    is_mask, is_own = found.input_ids == MASK, found.input_ids == own
    # Four standard deviations; a random token is the mask or the token itself once in a thousand times.
    for share, expected in ((is_mask.mean(), 0.8), (is_own.mean(), 0.1), ((~is_mask & ~is_own).mean(), 0.1)):
        assert share == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / num_masked) + 1e-3)
    drawn = found.input_ids[~is_mask & ~is_own]
    assert np.histogram(drawn, bins=10, range=(0, VOCABULARY))[0].min() > 30, "random tokens are of the whole vocabulary"
    in_tenths = np.histogram(found.positions, bins=10, range=(1, 101))[0]
    assert abs(in_tenths - num_masked / 10).max() < 5 * np.sqrt(num_masked / 10), "no place is favoured"


@pytest.mark.parametrize(("replaced", "random", "kind"), [(1.0, 0.0, "mask"), (0.0, 0.0, "own"), (0.0, 1.0, "random")])
def test_shares_of_nothing_and_everything(replaced, random, kind):
    rows = sequence(400)
    found = masked(rows, replaced_share=replaced, random_share=random, mask_share=1.0)
    own = rows.token_ids[found.positions]
    assert len(found.positions) == 400
    if kind == "mask":
        assert (found.input_ids == MASK).all()
    elif kind == "own":
        assert (found.input_ids == own).all()
    else:
        assert (found.input_ids != own).mean() > 0.98


@given(seed=st.integers(0, 999), sizes=st.lists(st.integers(1, 6), min_size=1, max_size=60), mask_share=st.floats(0.05, 1))
def test_words_are_masked_whole(seed, sizes, mask_share):
    rows = sequence(sum(sizes))
    starts = np.zeros(len(rows.token_ids), dtype=np.bool_)
    starts[1 + offsets_of(np.array(sizes))[:-1]] = True
    found = masked(rows, seed=seed, mask_share=mask_share, whole_words=True, word_starts=starts)
    words = np.repeat(np.arange(len(sizes)), sizes)
    chosen = words[found.positions - 1]
    for word in set(chosen.tolist()):
        assert (chosen == word).sum() == sizes[word]
    wanted = max(1, round(mask_share * sum(sizes)))
    assert len(found.positions) <= wanted + max(sizes) / 2 or len(set(chosen.tolist())) == 1
    assert len(found.positions) >= wanted - max(sizes) / 2


def test_whole_words_keep_the_share_in_expectation():
    sizes = np.random.default_rng(0).integers(1, 5, 60)
    starts = np.zeros(sizes.sum() + 2, dtype=np.bool_)
    starts[1 + offsets_of(sizes)[:-1]] = True
    rows = concatenate_tokens([sequence(int(sizes.sum()))] * 300)
    found = masked(rows, whole_words=True, word_starts=np.tile(starts, 300))
    assert found.counts.mean() == pytest.approx(round(0.15 * sizes.sum()), abs=0.3)


def test_words_end_where_sequences_and_special_tokens_do():
    # Two sequences without a single word start: each run between special tokens is one word.
    ids = np.array([2, 10, 11, 3, 12, 3, 2, 13, 14, 3], dtype=np.uint32)
    rows = TokenRows(offsets=np.array([0, 6, 10]), token_ids=ids)
    starts = np.zeros(10, dtype=np.bool_)
    seen = set()
    for seed in range(40):
        found = masked(rows, seed=seed, whole_words=True, word_starts=starts, mask_share=0.4)
        seen.add(tuple(found.take(np.array([0])).positions.tolist()))
        assert found.take(np.array([1])).positions.tolist() == [1, 2]
    assert seen == {(1, 2), (4,)}


def test_sequences_of_special_tokens_have_no_mask():
    rows = concatenate_tokens([sequence(0), sequence(4), sequence(0)])
    assert masked(rows).counts.tolist() == [0, 1, 0]
    assert masked(sequence(0)).counts.tolist() == [0]


def test_no_sequences():
    rows = TokenRows(offsets=np.zeros(1, dtype=np.int64), token_ids=np.empty(0, dtype=np.uint32))
    assert len(masked(rows).positions) == 0
    assert len(masked(rows, whole_words=True, word_starts=np.empty(0, dtype=np.bool_)).positions) == 0


def test_whole_words_need_word_starts():
    with pytest.raises(ValueError, match="word start"):
        masked(sequence(5), whole_words=True)
    with pytest.raises(ValueError, match="2 keys"):
        masked(sequence(5), keys=["a", "b"])
