"""The block of any target: rows stay with their samples and tokens, and nothing else passes."""

from __future__ import annotations

import tracemalloc
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.alignment import rows_per_sample
from storage.block_bounds import MAX_BLOCK_SAMPLES
from storage.block_fields import DIGEST_STRIDE
from storage.blocks import encode_block
from storage.codecs import values as value_codecs
from storage.errors import FormatError
from storage.features import FeatureRows
from storage.soft_labels import SoftLabels
from storage.target_blocks import decode_target_block, encode_target_block
from tests.storage.targets import OF_PICTURES, TARGETS, VOCABULARY, make_tokens, make_values, take_values, tokens_as_lists
from tests.storage.test_label_blocks import reheaded, restreamed

TOKENS_PER_PICTURE = 5


def is_masked(name):
    return name == "labels of masked tokens"


def make_text_block(name, present, *, view=2, first_sample=40, seed=0, lengths=None):
    """A block of texts, and what it was made of."""
    target, present = TARGETS[name], np.asarray(present, dtype=bool)
    if lengths is None:
        lengths = np.random.default_rng(seed).integers(1, 9, size=int(present.sum())).tolist()
    tokens = make_tokens(lengths, masked=is_masked(name), seed=seed)
    counts = counts_of(target, tokens)
    values = make_values(target, num_rows=int(counts.sum()), seed=seed)
    data = encode_target_block(
        values,
        target=target,
        view=view,
        first_sample=first_sample,
        present=present,
        key_hash=0xAB,
        tokens=tokens,
        vocabulary_size=VOCABULARY,
    )
    return data, tokens, values


def counts_of(target, tokens):
    return rows_per_sample(target, lengths=tokens.lengths, mask_counts=None if tokens.masks is None else tokens.masks.counts)


def make_picture_block(name, present, *, view=2, first_sample=40, seed=0):
    target, present = TARGETS[name], np.asarray(present, dtype=bool)
    lengths = np.full(int(present.sum()), TOKENS_PER_PICTURE)
    values = make_values(target, num_rows=int(rows_per_sample(target, lengths=lengths, mask_counts=None).sum()), seed=seed)
    digests = np.random.default_rng(seed).integers(1, 2**64, size=len(present), dtype=np.uint64)
    data = encode_target_block(
        values,
        target=target,
        view=view,
        first_sample=first_sample,
        present=present,
        key_hash=0xAB,
        tokens_per_picture=TOKENS_PER_PICTURE,
        view_digests=digests,
    )
    return data, digests, values


def assert_same_values(found, expected):
    assert type(found) is type(expected)
    if isinstance(found, FeatureRows):
        assert list(found.tensors) == list(expected.tensors)
        assert all(np.array_equal(found.tensors[name], expected.tensors[name]) for name in found.tensors)
        return
    for field in fields(SoftLabels):
        assert np.array_equal(getattr(found, field.name), getattr(expected, field.name))


def stored(values, target):
    return value_codecs.decode(value_codecs.encode(values, target=target), num_rows=len(values), target=target)


presences = st.lists(st.booleans(), min_size=1, max_size=70)


@settings(max_examples=120)
@given(st.sampled_from(sorted(TARGETS)), presences, st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1), st.integers(0, 99))
def test_rows_of_texts_come_back_with_their_tokens(name, present, view, first_sample, seed):
    target = TARGETS[name]
    data, tokens, values = make_text_block(name, present, view=view, first_sample=first_sample, seed=seed)
    block = decode_target_block(data, origin="here")
    assert (block.target, block.view, block.first_sample, block.num_samples) == (target, view, first_sample, len(present))
    assert (block.key_hash, block.view_digests, len(block)) == (0xAB, None, sum(present))
    assert block.positions.tolist() == [first_sample + offset for offset, alive in enumerate(present) if alive]
    assert tokens_as_lists(block.tokens) == tokens_as_lists(tokens)
    assert (block.tokens.masks is not None) == is_masked(name)
    counts = counts_of(target, tokens)
    assert np.diff(block.row_offsets).tolist() == counts.tolist()
    assert_same_values(block.values, stored(values, target))
    assert make_text_block(name, present, view=view, first_sample=first_sample, seed=seed)[0] == data


@pytest.mark.parametrize("name", TARGETS)
def test_each_sample_has_its_own_rows(name):
    target = TARGETS[name]
    data, tokens, values = make_text_block(name, [True, False, True, True])
    block = decode_target_block(data, origin="here")
    start = 0
    for index, count in enumerate(counts_of(target, tokens).tolist()):
        rows = np.arange(start, start + count)
        mine = np.arange(block.row_offsets[index], block.row_offsets[index + 1])
        if isinstance(block.values, FeatureRows):
            assert_same_values(block.values.take(mine), block.values.take(rows))
        else:
            # Alone, what is drawn is as wide as it needs to be.
            alone = stored(take_values(values, rows), target).densify()
            assert block.values.take(mine).densify() == pytest.approx(alone, abs=1e-6)
        start += count
    assert start == len(values)


@settings(max_examples=60)
@given(st.sampled_from(OF_PICTURES), presences, st.integers(0, 99))
def test_rows_of_pictures_come_back_with_their_digests(name, present, seed):
    target = TARGETS[name]
    data, digests, values = make_picture_block(name, present, seed=seed)
    block = decode_target_block(data, origin="here")
    offsets = [offset for offset, alive in enumerate(present) if alive]
    assert (block.target, block.num_samples, block.tokens) == (target, len(present), None)
    assert block.positions.tolist() == [40 + offset for offset in offsets]
    assert block.view_digests.tolist() == [int(digests[o]) if o % DIGEST_STRIDE == 0 else 0 for o in offsets]
    lengths = np.full(len(offsets), TOKENS_PER_PICTURE)
    assert np.diff(block.row_offsets).tolist() == rows_per_sample(target, lengths=lengths, mask_counts=None).tolist()
    assert_same_values(block.values, stored(values, target))


@pytest.mark.parametrize("name", TARGETS)
def test_dead_letters_only(name):
    data, _, _ = make_text_block(name, [False] * 9)
    block = decode_target_block(data, origin="here")
    assert (block.num_samples, len(block), len(block.values), len(block.tokens), block.row_offsets.tolist()) == (9, 0, 0, 0, [0])


def test_whole_blocks_carry_no_bitmap():
    assert b'"present"' not in make_text_block("embeddings", [True] * 9)[0]
    assert b'"present"' in make_text_block("embeddings", [True] * 8 + [False])[0]


@pytest.mark.parametrize("name", TARGETS)
def test_a_row_too_many_or_too_few_is_not_written(name):
    target = TARGETS[name]
    tokens = make_tokens([3, 5, 2], masked=is_masked(name), seed=3)
    num_rows = int(counts_of(target, tokens).sum())
    assert num_rows >= 2
    for wrong in (num_rows - 1, num_rows + 1, num_rows - 3, num_rows + 3):
        with pytest.raises(
            FormatError, match=rf"{max(wrong, 0)} rows of {target.kind} for 3 samples whose tokens have {num_rows}: rows and"
        ):
            encode_target_block(
                make_values(target, num_rows=max(wrong, 0)),
                target=target,
                view=0,
                first_sample=0,
                present=np.ones(3, dtype=bool),
                key_hash=0,
                tokens=tokens,
                vocabulary_size=VOCABULARY,
            )


@pytest.mark.parametrize("present", [[True] * 4, [True, True, False], []])
def test_sequences_of_other_samples_are_not_written(present):
    tokens = make_tokens([3, 5, 2], masked=False)
    with pytest.raises(FormatError, match=f"tokens of 3 samples, {sum(present)} are present"):
        encode_target_block(
            make_values(TARGETS["embeddings"], num_rows=sum(present)),
            target=TARGETS["embeddings"],
            view=0,
            first_sample=0,
            present=np.array(present, dtype=bool),
            key_hash=0,
            tokens=tokens,
            vocabulary_size=VOCABULARY,
        )


def encode_pictures(*, num_rows, num_digests=3, tokens_per_picture=TOKENS_PER_PICTURE, name="hidden states"):
    return encode_target_block(
        make_values(TARGETS[name], num_rows=num_rows),
        target=TARGETS[name],
        view=0,
        first_sample=0,
        present=np.array([True, False, True]),
        key_hash=0,
        tokens_per_picture=tokens_per_picture,
        view_digests=np.zeros(num_digests, dtype=np.uint64),
    )


def test_pictures_of_other_numbers_of_rows_or_digests_are_not_written():
    encode_pictures(num_rows=2 * TOKENS_PER_PICTURE)
    for num_rows in (0, 1, 2 * TOKENS_PER_PICTURE - 1, 2 * TOKENS_PER_PICTURE + 1, 3 * TOKENS_PER_PICTURE):
        with pytest.raises(FormatError, match="are not aligned"):
            encode_pictures(num_rows=num_rows)
    with pytest.raises(FormatError, match="2 view digests for 3 samples"):
        encode_pictures(num_rows=2 * TOKENS_PER_PICTURE, num_digests=2)
    with pytest.raises(FormatError, match="0 tokens a picture"):
        encode_pictures(num_rows=2, tokens_per_picture=0, name="embeddings")


def test_a_block_is_of_texts_or_of_pictures():
    values = make_values(TARGETS["embeddings"], num_rows=1)
    options = {"target": TARGETS["embeddings"], "view": 0, "first_sample": 0, "present": np.array([True]), "key_hash": 0}
    for half in ({}, {"tokens": make_tokens([2])}, {"vocabulary_size": 3}, {"tokens_per_picture": 1}):
        with pytest.raises(ValueError, match="of texts .* or of pictures"):
            encode_target_block(values, **options, **half)


@pytest.mark.parametrize("name", TARGETS)
def test_every_flipped_byte_and_truncation_is_refused(name):
    data, _, _ = make_text_block(name, [True, False, True])
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        with pytest.raises(FormatError, match="^here: "):
            decode_target_block(bytes(damaged), origin="here")
        with pytest.raises(FormatError, match="^here: "):
            decode_target_block(data[:place], origin="here")


HIDDEN = TARGETS["hidden states"].to_json()
NEXT = TARGETS["labels of next tokens, sampled"].to_json()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"kind": "soft_labels"}, "not a block of targets but of 'soft_labels'"),
        ({"kind": None}, "not a block of targets but of None"),
        ({"target": None}, "'target'; a newer release may have written it"),
        ({"target": 3}, "a newer release"),
        ({"target": {**HIDDEN, "codec": {"kind": "int8", "version": 2}}}, "a newer release"),
        ({"target": {**HIDDEN, "kind": "gradients"}}, "a newer release"),
        ({"target": {**HIDDEN, "layers": [0]}}, "hidden.2/values' of .* is more than its rows allow"),
        ({"target": {**HIDDEN, "layers": [0, 2, 4]}}, "'hidden.4/values' is missing"),
        ({"target": {**HIDDEN, "width": 7}}, "bytes of numbers"),
        ({"target": {**HIDDEN, "width": 5}}, "is more than its rows allow"),
        ({"target": {**HIDDEN, "tokens": "first"}}, "12 rows of hidden_states for 3 samples whose tokens have 3"),
        ({"target": NEXT}, "hidden.0/values' of .* is more than its rows allow"),
        ({"view": -1}, "view -1 of a block"),
        ({"view": True}, "view True of a block"),
        ({"first_sample": 2**31}, "first_sample 2147483648 of a block"),
        ({"num_samples": MAX_BLOCK_SAMPLES + 1}, "num_samples 8001 of a block"),
        ({"num_samples": 2}, "num_present 3 of a block"),
        ({"num_samples": 3}, "'present' of 1 bytes is more than its rows allow"),
        ({"num_samples": 9}, "3 samples are present, 3 are stored"),
        ({"num_present": 2}, "is more than its rows allow"),
        ({"num_present": 4}, "'present' of 1 bytes is more than its rows allow"),
        ({"num_rows": 11}, "is more than its rows allow"),
        ({"num_rows": 13}, "13 rows of hidden_states for 3 samples whose tokens have 12: rows and tokens are not aligned"),
        ({"num_rows": 2**40}, "num_rows 1099511627776 of a block"),
        ({"num_tokens": 11}, "is more than its rows allow"),
        ({"num_tokens": 13}, "the block has 13 tokens"),
        ({"num_tokens": 2**40}, "num_tokens 1099511627776 of a block"),
        ({"num_masked": 1}, "'mask_counts0' is missing"),
        ({"num_masked": "1"}, "num_masked '1' of a block"),
        ({"vocabulary_size": 3}, "outside the vocabulary of 3 tokens"),
        ({"vocabulary_size": 2**33}, "vocabulary_size 8589934592 of a block"),
        ({"vocabulary_size": None}, "tokens_per_picture None of a block"),
        ({"vocabulary_size": None, "tokens_per_picture": 4}, "'lengths0' of 3 bytes is more than its rows allow"),
        ({"key_hash": None}, "key hash None"),
        ({"key_hash": "0x000000000000ab"}, "key hash '0x"),
    ],
)
def test_headers_that_cannot_be_are_refused_and_say_where(changes, problem):
    data, _, _ = make_text_block("hidden states", [True, True, False, True], lengths=[3, 4, 5])
    assert reheaded(data) == data
    with pytest.raises(FormatError, match=f"(?s)^here: .*({problem})"):
        decode_target_block(reheaded(data, **changes), origin="here")


@pytest.mark.parametrize(
    ("name", "target", "problem"),
    [
        ("labels of all tokens", {"positions": "next"}, "12 rows of soft_labels for 3 samples whose tokens have 9"),
        ("labels of next tokens, dense", {"positions": "all"}, "9 rows of soft_labels for 3 samples whose tokens have 12"),
        ("labels of next tokens, dense", {"positions": "masked"}, "labels of masked tokens, of sequences without masks"),
        ("labels of masked tokens", {"positions": "all"}, "are not aligned"),
        ("labels of a view", {"positions": "all"}, "3 rows of soft_labels for 3 samples whose tokens have 12"),
    ],
)
def test_labels_of_other_positions_are_refused_when_read(name, target, problem):
    data, _, _ = make_text_block(name, [True, True, False, True], lengths=[3, 4, 5])
    with pytest.raises(FormatError, match=problem):
        decode_target_block(reheaded(data, target={**TARGETS[name].to_json(), **target}), origin="here")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"present": np.uint8([0b0011])}, "2 samples are present, 3 are stored"),
        ({"present": None}, "0 samples are present"),
        ({"lengths0": None}, "stream 'lengths0' is missing"),
        ({"tokens0": None}, "stream 'tokens0' is missing"),
        ({"hidden.2/scales": None}, "stream 'hidden.2/scales' is missing"),
        ({"hidden.4/scales": np.zeros(2, dtype=np.uint8)}, "'hidden.4/scales' of 2 bytes is more than its rows allow"),
        ({"view_digests": np.zeros(8, dtype=np.uint8)}, "'view_digests' of 8 bytes is more than its rows allow"),
        ({"lengths0": np.uint8([4, 3, 5])}, "sequence 0 of the block is not the one that was written"),
        ({"mask_counts0": np.zeros(3, dtype=np.uint8)}, "'mask_counts0' of 3 bytes is more than its rows allow"),
    ],
)
def test_streams_that_cannot_be_are_refused_and_say_where(changes, problem):
    data, _, _ = make_text_block("hidden states", [True, True, False, True], lengths=[3, 4, 5])
    assert restreamed(data) == data
    with pytest.raises(FormatError, match=f"^here: .*{problem}"):
        decode_target_block(restreamed(data, **changes), origin="here")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"tokens_per_picture": 4}, "are not aligned"),
        ({"tokens_per_picture": 0}, "0 tokens a picture"),
        ({"tokens_per_picture": 2**16}, "tokens_per_picture 65536 of a block"),
        ({"vocabulary_size": 10}, "num_tokens None of a block"),
    ],
)
def test_headers_of_pictures_that_cannot_be_are_refused(changes, problem):
    data, _, _ = make_picture_block("hidden states", [True, True, False, True])
    with pytest.raises(FormatError, match=f"^here: .*{problem}"):
        decode_target_block(reheaded(data, **changes), origin="here")


@pytest.mark.parametrize("digests", [None, np.zeros(7, dtype=np.uint8)])
def test_pictures_need_their_digests(digests):
    data, _, _ = make_picture_block("embeddings", [True, True, False, True])
    with pytest.raises(FormatError, match="here: . bytes of view digests for 4 samples"):
        decode_target_block(restreamed(data, view_digests=digests), origin="here")


def test_other_kinds_of_blocks_are_refused():
    with pytest.raises(FormatError, match="here: not a block of targets but of 'samples'"):
        decode_target_block(encode_block({"kind": "samples", "num_samples": 0}, {}), origin="here")


@pytest.mark.parametrize("name", TARGETS)
def test_counts_that_lie_allocate_nothing(name):
    data, _, _ = make_text_block(name, [True, False, True])
    lies = [
        {"num_rows": 2**24 - 1},
        {"num_rows": 2**24 - 1, "num_tokens": 2**22, "num_samples": 8000, "num_present": 8000},
        {"num_tokens": 2**22, "vocabulary_size": 2**32},
        {"num_masked": 2**22},
        {"num_samples": 8000, "num_present": 7999},
    ]
    changed = [reheaded(data, **lie) for lie in lies]
    tracemalloc.start()
    try:
        for one in changed:
            with pytest.raises(FormatError):
                decode_target_block(one, origin="here")
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()
