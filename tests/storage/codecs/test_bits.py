"""Lengths and the bits below: against Python's own integers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.codecs.bits import MAX_LENGTH, join, split
from storage.errors import FormatError

VALUES = st.lists(
    st.integers(1, 2**MAX_LENGTH - 1) | st.integers(1, 300) | st.sampled_from([1, 2, 2**32, 2**33 - 1]), max_size=60
)


@given(VALUES)
def test_values_are_lengths_and_the_bits_below(values):
    lengths, bits = split(np.array(values, dtype=np.uint64))
    assert lengths.dtype == bits.dtype == np.uint8
    assert lengths.tolist() == [value.bit_length() - 1 for value in values]
    expected = place = 0
    for value in values:
        expected |= (value - (1 << value.bit_length() - 1)) << place
        place += value.bit_length() - 1
    assert len(bits) == -(-place // 8)
    assert int.from_bytes(bits.tobytes(), "little") == expected
    found = join(lengths, bits)
    assert found.dtype == np.int64
    assert found.tolist() == values


def test_bits_that_lengths_do_not_announce_are_refused():
    lengths, bits = split(np.array([9, 1000], dtype=np.uint64))
    assert len(bits) == 2
    for wrong in (bits[:-1], np.append(bits, np.uint8(0)), bits | np.uint8([0, 0x80])):
        with pytest.raises(FormatError, match="bytes of steps for 12 bits"):
            join(lengths, wrong)
    with pytest.raises(FormatError, match="a step of 34 bits"):
        join(np.uint8([33]), np.zeros(5, dtype=np.uint8))
