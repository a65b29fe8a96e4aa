"""Token sequences as values: taking, joining and masking are what they are one sequence at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import FormatError
from storage.text.token_rows import TokenRows, concatenate_tokens, offsets_of, spans
from tests.storage.targets import VOCABULARY, make_tokens, tokens_as_lists

lengths_of = st.lists(st.integers(1, 12), max_size=9)


def choices(data, num):
    return np.array(data.draw(st.lists(st.integers(0, num - 1), max_size=2 * num) if num else st.just([])), dtype=np.int64)


@settings(max_examples=100)
@given(st.lists(st.integers(0, 5), max_size=9), st.data())
def test_spans_are_the_items_of_runs(counts, data):
    offsets = offsets_of(np.array(counts, dtype=np.int64))
    assert offsets.tolist() == [sum(counts[:index]) for index in range(len(counts) + 1)]
    rows = choices(data, len(counts))
    expected = [item for row in rows.tolist() for item in range(sum(counts[:row]), sum(counts[: row + 1]))]
    assert spans(offsets, rows).tolist() == expected


@settings(max_examples=100)
@given(lengths_of, st.booleans(), st.data())
def test_taking_is_taking_sequence_by_sequence(lengths, masked, data):
    tokens = make_tokens(lengths, masked=masked, seed=1)
    rows = choices(data, len(lengths))
    taken = tokens.take(rows)
    taken.check(vocabulary_size=VOCABULARY)
    assert tokens_as_lists(taken) == [tokens_as_lists(tokens)[row] for row in rows.tolist()]
    assert taken.lengths.tolist() == [lengths[row] for row in rows.tolist()]


@settings(max_examples=50)
@given(st.lists(lengths_of, min_size=1, max_size=4), st.booleans())
def test_joining_puts_sequences_behind_each_other(parts, masked):
    tokens = [make_tokens(lengths, masked=masked, seed=index) for index, lengths in enumerate(parts)]
    joined = concatenate_tokens(tokens)
    joined.check(vocabulary_size=VOCABULARY)
    assert (joined.masks is not None) == masked
    assert tokens_as_lists(joined) == [sequence for part in tokens for sequence in tokens_as_lists(part)]


def test_joining_nothing_or_some_with_masks_is_refused():
    for parts in ([], [make_tokens([3]), make_tokens([3], masked=False)]):
        with pytest.raises(ValueError, match="cannot put"):
            concatenate_tokens(parts)


@settings(max_examples=50)
@given(lengths_of, st.booleans())
def test_inputs_are_the_text_with_what_stands_in_masked_places(lengths, masked):
    tokens = make_tokens(lengths, masked=masked, seed=2)
    before = tokens.token_ids.copy()
    expected = []
    for ids, positions, inputs in tokens_as_lists(tokens):
        seen = list(ids)
        for position, token in zip(positions, inputs, strict=True):
            seen[position] = token
        expected += seen
    assert tokens.inputs().tolist() == expected
    assert np.array_equal(tokens.token_ids, before)
    places = tokens.masked_items()
    assert np.array_equal(tokens.inputs()[places], np.zeros(0) if tokens.masks is None else tokens.masks.input_ids)


def test_the_largest_id_is_that_of_the_vocabulary():
    tokens = TokenRows(offsets=offsets_of(np.array([1])), token_ids=np.array([2**32 - 1], dtype=np.uint32))
    tokens.check(vocabulary_size=2**32)
    with pytest.raises(FormatError, match="token id 4294967295 is outside the vocabulary of 4294967295 tokens"):
        tokens.check(vocabulary_size=2**32 - 1)


def ints(*values):
    return np.array(values, dtype=np.int64)


def masks_of(tokens, **changes):
    return replace(tokens, masks=replace(tokens.masks, **changes))


GOOD = replace(
    make_tokens([4, 3]),
    masks=replace(
        make_tokens([4, 3]).masks, offsets=ints(0, 2, 3), positions=ints(1, 3, 0), input_ids=np.array([1, 2, 3], dtype=np.uint32)
    ),
)


@pytest.mark.parametrize(
    ("tokens", "problem"),
    [
        (replace(GOOD, offsets=ints(0, 4, 6)), "7 tokens in sequences"),
        (replace(GOOD, offsets=ints(0, 7, 7)), "sequences of 0 and more"),
        (replace(GOOD, offsets=ints(0, 8, 7)), "sequences of -1 and more"),
        (replace(GOOD, token_ids=GOOD.token_ids + np.uint32(VOCABULARY)), "outside the vocabulary"),
        (masks_of(GOOD, input_ids=np.array([1, 2, VOCABULARY], dtype=np.uint32)), "token id 300 is outside"),
        (masks_of(GOOD, offsets=ints(0, 3)), "masks of 1 sequences for 2 sequences"),
        (masks_of(GOOD, offsets=ints(0, 2, 4)), "masks of 2 sequences for 2"),
        (masks_of(GOOD, input_ids=np.array([1, 2], dtype=np.uint32)), "2 inputs at 3 masked positions"),
        (masks_of(GOOD, positions=ints(3, 1, 0)), "do not ascend"),
        (masks_of(GOOD, positions=ints(1, 1, 0)), "do not ascend"),
        (masks_of(GOOD, positions=ints(1, 4, 0)), "leave their sequence"),
        (masks_of(GOOD, positions=ints(1, 3, 3)), "leave their sequence"),
        (masks_of(GOOD, positions=ints(-1, 3, 0)), "leave their sequence"),
        (masks_of(GOOD, positions=ints(1, 3, -1)), "leave their sequence"),
    ],
)
def test_what_is_no_sequences_is_refused(tokens, problem):
    GOOD.check(vocabulary_size=VOCABULARY)
    with pytest.raises(FormatError, match=problem):
        tokens.check(vocabulary_size=VOCABULARY)
