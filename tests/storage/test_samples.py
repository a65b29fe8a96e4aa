"""The table of a unit's samples: keys and hard labels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.blocks import encode_block
from storage.errors import FormatError
from storage.samples import MAX_UNIT_SAMPLES, SampleTable, decode_samples, encode_samples
from storage.sources.base import NO_LABEL
from storage.sources.checks import MAX_LABEL, key_problem
from tests.storage.blocks import block_bytes

KEYS = st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20)


def table_of(pairs):
    return SampleTable(keys=tuple(key for key, _ in pairs), labels=np.array([label for _, label in pairs], dtype=np.int64))


@given(st.lists(st.tuples(KEYS, st.sampled_from([NO_LABEL, 0, MAX_LABEL]) | st.integers(NO_LABEL, MAX_LABEL)), max_size=40))
def test_keys_and_labels_come_back(pairs):
    assert all(key_problem(key) is None for key, _ in pairs)
    data = encode_samples(table_of(pairs))
    found = decode_samples(data, origin="here")
    assert found.keys == tuple(key for key, _ in pairs)
    assert found.labels.dtype == np.int64
    assert found.labels.tolist() == [label for _, label in pairs]
    assert encode_samples(table_of(pairs)) == data


@pytest.mark.parametrize("label", [NO_LABEL - 1, MAX_LABEL + 1, 2**40, -(2**40)])
def test_labels_that_would_come_back_as_others_are_not_written(label):
    with pytest.raises(FormatError, match=f"{label}"):
        encode_samples(table_of([("a", 0), ("b", label), ("c", 1)]))


def test_more_samples_than_a_reader_takes_are_not_written(monkeypatch):
    monkeypatch.setattr("storage.samples.MAX_UNIT_SAMPLES", 2)
    with pytest.raises(FormatError, match="3 samples of a unit, at most 2 fit in a part"):
        encode_samples(table_of([("a", 0), ("b", 0), ("c", 1)]))


def test_keys_that_would_come_back_as_two_are_not_written():
    with pytest.raises(FormatError, match="zero byte"):
        encode_samples(table_of([("a\0b", 0)]))


def test_every_flipped_bit_and_truncation_is_refused():
    data = encode_samples(table_of([("a/1", 3), ("b/ü", NO_LABEL)]))
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError, match="^here: "):
            decode_samples(bytes(damaged), origin="here")
    for length in range(len(data)):
        with pytest.raises(FormatError, match="^here: "):
            decode_samples(data[:length], origin="here")


LABELS = {f"labels{i}": np.zeros(2, dtype=np.uint8) for i in range(4)}


def keys(data):
    return np.frombuffer(data, dtype=np.uint8)


@pytest.mark.parametrize(
    ("header", "streams", "problem"),
    [
        ({"kind": "soft_labels", "num_samples": 2}, {}, "not a sample table: kind 'soft_labels'"),
        ({"kind": "samples"}, {}, "of None samples"),
        ({"kind": "samples", "num_samples": -1}, {}, "of -1 samples"),
        ({"kind": "samples", "num_samples": True}, {}, "of True samples"),
        ({"kind": "samples", "num_samples": MAX_UNIT_SAMPLES + 1}, {}, "of 16777217 samples"),
        ({"kind": "samples", "num_samples": 2}, LABELS, "keys"),
        ({"kind": "samples", "num_samples": 2}, {"keys": keys(b"a\0b")}, "labels0"),
        ({"kind": "samples", "num_samples": 2}, {"keys": keys(b"a"), **LABELS}, "1 keys for 2 samples"),
        ({"kind": "samples", "num_samples": 2}, {"keys": keys(b"a\0b\0c"), **LABELS}, "3 keys for 2 samples"),
        ({"kind": "samples", "num_samples": 2}, {"keys": keys(b"a\0\xff"), **LABELS}, "UnicodeDecodeError"),
        ({"kind": "samples", "num_samples": 1}, {"keys": keys(b"a"), **LABELS}, "more than its rows allow"),
        ({"kind": "samples", "num_samples": 3}, {"keys": keys(b"a\0b\0c"), **LABELS}, "planes of"),
    ],
)
def test_tables_that_cannot_be_are_refused_and_say_where(header, streams, problem):
    with pytest.raises(FormatError, match=f"^here: .*{problem}"):
        decode_samples(encode_block(header, streams), origin="here")


def test_a_stream_of_too_many_keys_is_refused():
    data = block_bytes({"kind": "samples", "num_samples": 1, "streams": [["keys", 2**31, 1]]}, b"a")
    with pytest.raises(FormatError, match="more than its rows allow"):
        decode_samples(data, origin="here")
