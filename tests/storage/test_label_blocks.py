"""The block of soft labels: which samples have a row, what proves that they are the right ones, and that nothing else passes."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import codecs
from storage.blocks import decode_block, encode_block
from storage.errors import FormatError
from storage.label_blocks import (
    DIGEST_STRIDE,
    MAX_BLOCK_ROWS,
    MIN_BLOCK_ROWS,
    block_rows,
    decode_label_block,
    encode_label_block,
)
from storage.specs import CompactCodec, ExactCodec, SoftLabelsSpec
from tests.storage.rows import SHAPES, make_rows

SPEC = SoftLabelsSpec(num_classes=10, k=3, codec=CompactCodec())


def make_block(present, *, spec=SPEC, view=2, first_sample=40, seed=0, shape="peaked"):
    present = np.asarray(present, dtype=bool)
    rng = np.random.default_rng(seed)
    rows = make_rows(rng, num_rows=int(present.sum()), num_classes=spec.num_classes, entries=spec.max_entries, shape=shape)
    digests = rng.integers(1, 2**64, size=len(present), dtype=np.uint64)
    data = encode_label_block(
        rows, spec=spec, view=view, first_sample=first_sample, present=present, key_hash=0xAB, view_digests=digests
    )
    return data, rows, digests


def reheaded(data, **changes):
    """The same block with other header fields; None takes a field out."""
    (length,) = struct.unpack("<I", data[8:12])
    limits = {name: raw for name, raw, _ in json.loads(data[12 : 12 + length])["streams"]}
    header, streams = decode_block(data, origin="here", read_header=lambda header: (header, limits))
    return encode_block({name: value for name, value in {**header, **changes}.items() if value is not None}, streams)


def restreamed(data, **changes):
    """The same block with other streams; None takes a stream out."""
    (length,) = struct.unpack("<I", data[8:12])
    limits = {name: raw for name, raw, _ in json.loads(data[12 : 12 + length])["streams"]}
    header, streams = decode_block(data, origin="here", read_header=lambda header: (header, limits))
    return encode_block(header, {name: values for name, values in {**streams, **changes}.items() if values is not None})


@settings(max_examples=100)
@given(
    st.lists(st.booleans(), min_size=1, max_size=150),
    st.sampled_from([(1, 1), (10, 3), (1000, 5), (70_000, 4), (2**31 + 5, 2)]),
    st.just(ExactCodec()) | st.builds(CompactCodec, levels=st.integers(1, 255)),
    st.integers(0, 2**31 - 1),
    st.integers(0, 2**31 - 1),
    st.sampled_from(SHAPES),
)
def test_rows_come_back_where_they_were(present, size, codec, view, first_sample, shape):
    spec = SoftLabelsSpec(num_classes=size[0], k=size[1], codec=codec)
    data, rows, digests = make_block(present, spec=spec, view=view, first_sample=first_sample, shape=shape)
    block = decode_label_block(data, origin="here")
    assert (block.view, block.first_sample, block.num_samples, block.key_hash) == (view, first_sample, len(present), 0xAB)
    offsets = [offset for offset, alive in enumerate(present) if alive]
    assert block.positions.dtype == np.int64
    assert block.positions.tolist() == [first_sample + offset for offset in offsets]
    assert block.view_digests.dtype == np.uint64
    assert block.view_digests.tolist() == [int(digests[o]) if o % DIGEST_STRIDE == 0 else 0 for o in offsets]
    expected = codecs.decode(codecs.encode(rows, spec=spec), num_rows=len(rows), spec=spec)
    for name in ("class_ids", "probs", "rest"):
        assert np.array_equal(getattr(block.soft_labels, name), getattr(expected, name))
    assert make_block(present, spec=spec, view=view, first_sample=first_sample, shape=shape)[0] == data


def test_a_block_of_dead_letters_only():
    data, _, _ = make_block([False] * 9)
    block = decode_label_block(data, origin="here")
    assert (block.num_samples, len(block.soft_labels), len(block.positions), len(block.view_digests)) == (9, 0, 0, 0)


def test_whole_blocks_carry_no_bitmap():
    whole, _, _ = make_block([True] * 9)
    holed, _, _ = make_block([True] * 8 + [False])
    assert b'"present"' not in whole
    assert b'"present"' in holed


def test_bytes_say_what_they_are():
    data, _, digests = make_block([True, False, True])
    (length,) = struct.unpack("<I", data[8:12])
    header = json.loads(data[12 : 12 + length])
    streams = header.pop("streams")
    assert header == {
        "kind": "soft_labels",
        "target": {
            "kind": "soft_labels",
            "num_classes": 10,
            "k": 3,
            "codec": {"kind": "compact", "version": 1, "levels": 255},
            "generation_temperature": 1.0,
        },
        "view": 2,
        "first_sample": 40,
        "num_samples": 3,
        "num_rows": 2,
        "key_hash": "00000000000000ab",
    }
    assert [name for name, _, _ in streams] == ["steps0", "wide_levels", "rest", "present", "view_digests"]
    assert data[-9 - 8 : -8] == bytes([0b101]) + struct.pack("<Q", int(digests[0]))


def test_every_flipped_bit_and_truncation_is_refused():
    data, _, _ = make_block([True, False, True])
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError, match="^here: "):
            decode_label_block(bytes(damaged), origin="here")
    for length in range(len(data)):
        with pytest.raises(FormatError, match="^here: "):
            decode_label_block(data[:length], origin="here")


TARGET = SPEC.to_json()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"kind": "hidden_states"}, "not a block of soft labels but of 'hidden_states'"),
        ({"kind": None}, "not a block of soft labels but of None"),
        ({"target": None}, "'target'; a newer release may have written it"),
        ({"target": 3}, "a newer release"),
        ({"target": {**TARGET, "codec": {"kind": "compact", "version": 2, "levels": 255}}}, "a newer release"),
        ({"target": {**TARGET, "codec": {"kind": "wavelet", "version": 1}}}, "a newer release"),
        ({"target": {**TARGET, "smoothing": 0.1}}, "a newer release"),
        ({"target": {**TARGET, "k": 11}}, "k 11 is larger than the number of classes 10"),
        ({"target": {**TARGET, "num_classes": 2**32 + 1}}, "a newer release"),
        ({"view": -1}, "view -1 of a block"),
        ({"view": 2**31}, "view 2147483648 of a block"),
        ({"view": True}, "view True of a block"),
        ({"view": None}, "view None of a block"),
        ({"first_sample": "0"}, "first_sample '0' of a block"),
        ({"num_rows": 3.0}, "3.0 rows over 4 samples"),
        ({"num_rows": 5}, "5 rows over 4 samples"),
        ({"num_rows": -1}, "-1 rows over 4 samples"),
        ({"num_samples": MAX_BLOCK_ROWS + 1}, "3 rows over 8001 samples in one block, at most 8000"),
        ({"num_samples": 2**40, "num_rows": 2**40}, "1099511627776 rows over"),
        ({"num_rows": 2}, "'steps0' of 9 bytes is more than its rows allow"),
        ({"num_rows": 4}, "'present' of 1 bytes is more than its rows allow"),
        ({"num_samples": 3}, "'present' of 1 bytes is more than its rows allow"),
        ({"num_samples": 100}, "8 bytes of view digests for 100 samples"),
        ({"num_samples": 9}, "3 samples are present, 3 are stored"),
        ({"key_hash": None}, "key hash None"),
        ({"key_hash": 171}, "key hash 171"),
        ({"key_hash": "ab"}, "key hash 'ab'"),
        ({"key_hash": "-0000000000000ab"}, "key hash '-"),
        ({"key_hash": "0x000000000000ab"}, "key hash '0x"),
    ],
)
def test_headers_that_cannot_be_are_refused_and_say_where(changes, problem):
    data, _, _ = make_block([True, True, False, True])
    assert reheaded(data) == data
    with pytest.raises(FormatError, match=f"(?s)^here: .*({problem})"):
        decode_label_block(reheaded(data, **changes), origin="here")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"present": np.uint8([0b0011])}, "2 samples are present, 3 are stored"),
        ({"present": np.uint8([0b1111])}, "4 samples are present, 3 are stored"),
        ({"present": np.uint8([0b1011, 0])}, "rows allow"),
        ({"present": None}, "0 samples are present"),
        ({"view_digests": None}, "0 bytes of view digests for 4 samples"),
        ({"view_digests": np.zeros(7, dtype=np.uint8)}, "7 bytes of view digests for 4 samples"),
        ({"view_digests": np.zeros(16, dtype=np.uint8)}, "rows allow"),
        ({"rest": None}, "stream 'rest' is missing; the block holds"),
        ({"wide_levels": None}, "stream 'levels' is missing"),
        ({"wide_levels": np.zeros(8, dtype=np.uint8)}, "bytes of steps for 8 entries"),
        ({"ids0": np.zeros(1, dtype=np.uint8)}, "rows allow"),
    ],
)
def test_streams_that_cannot_be_are_refused_and_say_where(changes, problem):
    data, _, _ = make_block([True, True, False, True])
    assert restreamed(data) == data
    with pytest.raises(FormatError, match=f"^here: .*{problem}"):
        decode_label_block(restreamed(data, **changes), origin="here")


def test_other_kinds_of_blocks_are_refused():
    with pytest.raises(FormatError, match="here: not a block of soft labels"):
        decode_label_block(encode_block({"kind": "samples", "num_samples": 0}, {}), origin="here")


@pytest.mark.parametrize(("k", "most"), [(1, 8000), (10, 8000), (50, 8000), (100, 4000), (300, 1333), (1000, 400), (65535, 320)])
def test_rows_a_block_covers_follow_from_k_and_are_even_shares(k, most):
    spec = SoftLabelsSpec(num_classes=65535, k=k, codec=ExactCodec())
    assert block_rows(spec, num_samples=10 * most) == most
    assert block_rows(spec, num_samples=most) == most
    assert block_rows(spec, num_samples=most + 1) == most // 2 + 1
    assert block_rows(spec, num_samples=3) == 3
    assert block_rows(spec, num_samples=0) == 1
    assert MIN_BLOCK_ROWS <= most <= MAX_BLOCK_ROWS
