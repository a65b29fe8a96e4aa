"""Token sequences as bytes: they come back, and no other sequence passes for one of them."""

from __future__ import annotations

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import FormatError
from storage.text.token_rows import TokenRows, offsets_of
from storage.text.token_streams import (
    MAX_BLOCK_TOKENS,
    MAX_SEQUENCE_TOKENS,
    decode_tokens,
    encode_tokens,
    id_bits,
    token_checksums,
    token_stream_lengths,
)
from tests.storage.targets import VOCABULARY, make_tokens, tokens_as_lists


def sizes_of(tokens):
    num_masked = None if tokens.masks is None else len(tokens.masks.positions)
    return {"num_tokens": len(tokens.token_ids), "num_masked": num_masked}


def decode(streams, tokens, *, vocabulary_size=VOCABULARY, **changes):
    sizes = {"num_sequences": len(tokens), **sizes_of(tokens), "vocabulary_size": vocabulary_size, **changes}
    return decode_tokens(streams, **sizes)


@settings(max_examples=100)
@given(
    st.lists(st.integers(1, 40), max_size=9), st.booleans(), st.sampled_from([1, 2, 256, 30522, 65536, 65537, 2**24 + 1, 2**32])
)
def test_sequences_come_back(lengths, masked, vocabulary_size):
    tokens = make_tokens(lengths, masked=masked, vocabulary_size=vocabulary_size)
    streams = encode_tokens(tokens, vocabulary_size=vocabulary_size)
    expected = token_stream_lengths(len(tokens), **sizes_of(tokens), vocabulary_size=vocabulary_size)
    assert {name: len(stream) for name, stream in streams.items()} == expected
    found = decode(streams, tokens, vocabulary_size=vocabulary_size)
    assert tokens_as_lists(found) == tokens_as_lists(tokens)
    assert (found.token_ids.dtype, found.offsets.dtype) == (np.uint32, np.int64)
    assert (found.masks is None) == (not masked)


@pytest.mark.parametrize(
    ("vocabulary_size", "bits"), [(1, 16), (2**16, 16), (2**16 + 1, 24), (2**24, 24), (2**24 + 1, 32), (2**32, 32)]
)
def test_ids_take_whole_bytes_at_least_two(vocabulary_size, bits):
    assert id_bits(vocabulary_size) == bits


def test_checksums_cover_ids_masked_places_and_what_stood_there():
    tokens = make_tokens([5, 8])
    expected = []
    for ids, positions, inputs in tokens_as_lists(tokens):
        pairs = [number for pair in zip(positions, inputs, strict=True) for number in pair]
        data = np.array([*ids, *pairs], dtype="<u4").tobytes()
        expected.append(xxhash.xxh3_64_intdigest(data) % 2**32)
    assert token_checksums(tokens).tolist() == expected


def test_the_longest_sequence_and_one_too_long():
    tokens = make_tokens([MAX_SEQUENCE_TOKENS, 1])
    streams = encode_tokens(tokens, vocabulary_size=VOCABULARY)
    assert tokens_as_lists(decode(streams, tokens)) == tokens_as_lists(tokens)
    with pytest.raises(FormatError, match="a sequence of 65536 tokens, 65536 in a block; at most 65535 and"):
        encode_tokens(make_tokens([MAX_SEQUENCE_TOKENS + 1]), vocabulary_size=VOCABULARY)
    ids = np.zeros(MAX_BLOCK_TOKENS + 1, dtype=np.uint32)
    many = TokenRows(offsets=offsets_of(np.array([65535] * 64 + [65])), token_ids=ids)
    with pytest.raises(FormatError, match="4194305 in a block"):
        encode_tokens(many, vocabulary_size=VOCABULARY)


def test_what_is_no_sequences_is_not_written():
    with pytest.raises(FormatError, match="outside the vocabulary of 10 tokens"):
        encode_tokens(make_tokens([5]), vocabulary_size=10)


def test_any_other_number_in_a_stream_is_refused():
    tokens = make_tokens([5, 8, 1])
    streams = encode_tokens(tokens, vocabulary_size=VOCABULARY)
    for name, stream in streams.items():
        for place in range(len(stream)):
            for bit in range(8):
                changed = stream.copy()
                changed[place] ^= 1 << bit
                with pytest.raises(FormatError):
                    decode({**streams, name: changed}, tokens)


def test_tokens_moved_from_one_sequence_to_the_next_are_refused():
    tokens = make_tokens([5, 8], masked=False)
    streams = encode_tokens(tokens, vocabulary_size=VOCABULARY)
    with pytest.raises(FormatError, match="sequence 0 of the block is not the one that was written"):
        decode({**streams, "lengths0": np.array([6, 7], dtype=np.uint8)}, tokens)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"num_sequences": 2}, "planes of"),
        ({"num_sequences": 4}, "planes of"),
        ({"num_tokens": 13}, "lengths sum to 14, the block has 13 tokens"),
        ({"num_tokens": 15}, "lengths sum to 14, the block has 15 tokens"),
        ({"num_masked": 5}, "mask_counts sum to 6, the block has 5 masked tokens"),
        ({"vocabulary_size": 10}, "outside the vocabulary"),
        ({"vocabulary_size": 70_000}, "stream 'mask_inputs2' is missing"),
    ],
)
def test_other_sizes_are_refused(changes, problem):
    tokens = make_tokens([5, 8, 1], seed=1)
    assert len(tokens.masks.positions) == 6
    streams = encode_tokens(tokens, vocabulary_size=VOCABULARY)
    with pytest.raises(FormatError, match=problem):
        decode(streams, tokens, **changes)


def test_missing_streams_are_refused():
    tokens = make_tokens([5, 8, 1])
    streams = encode_tokens(tokens, vocabulary_size=VOCABULARY)
    for name in streams:
        with pytest.raises(FormatError, match=f"stream '{name}' is missing; the block holds"):
            decode({other: stream for other, stream in streams.items() if other != name}, tokens)
