"""Integers as byte planes, at every width."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.codecs.columns import bits_needed, pack, plane_lengths, unpack
from storage.errors import FormatError

WIDTHS = (1, 2, 4, 8, 9, 10, 12, 16, 17, 18, 20, 24, 25, 26, 28, 32)


def narrowest(num_bits):
    return np.uint8 if num_bits <= 8 else np.uint16 if num_bits <= 16 else np.uint32


@pytest.mark.parametrize(
    "largest", sorted({max(0, 2**power + step) for power in range(33) for step in (-1, 0, 1)} - {2**32, 2**32 + 1})
)
def test_the_narrowest_width_that_holds_a_value(largest):
    assert bits_needed(largest) == next(width for width in WIDTHS if largest < 2**width)


@pytest.mark.parametrize("num_bits", WIDTHS)
@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 8, 9, 100])
def test_values_come_back(num_bits, count):
    rng = np.random.default_rng(num_bits * 1000 + count)
    values = rng.integers(0, 2**num_bits, size=count, dtype=np.uint64)
    values[:2] = [0, 2**num_bits - 1][:count]
    for dtype in (narrowest(num_bits), np.uint32):
        planes = pack(values.astype(dtype), num_bits=num_bits)
        assert all(plane.dtype == np.uint8 and plane.flags.c_contiguous for plane in planes)
        assert [len(plane) for plane in planes] == plane_lengths(count, num_bits=num_bits)
        found = unpack(planes, count=count, num_bits=num_bits)
        assert found.dtype == narrowest(num_bits)
        assert found.tolist() == values.tolist()


@pytest.mark.parametrize("num_bits", WIDTHS)
def test_planes_are_bytes_and_then_bits_lowest_first(num_bits):
    values = np.random.default_rng(0).integers(0, 2**num_bits, size=11, dtype=np.uint64).astype(np.uint32)
    planes = pack(values, num_bits=num_bits)
    whole, over = divmod(num_bits, 8)
    for index in range(whole):
        assert planes[index].tolist() == [(int(value) >> (8 * index)) & 0xFF for value in values]
    if over:
        text = "".join(format(int(value) >> (8 * whole), f"0{over}b")[::-1] for value in values)
        bits = [int(text[start : start + 8][::-1], 2) for start in range(0, len(text), 8)]
        assert planes[whole].tolist() == bits
    assert len(planes) == whole + bool(over)


@given(st.sampled_from(WIDTHS), st.integers(0, 40), st.integers(-1, 1), st.data())
def test_planes_of_another_length_are_refused(num_bits, count, change, data):
    lengths = plane_lengths(count, num_bits=num_bits)
    index = data.draw(st.integers(0, len(lengths) - 1))
    lengths[index] = max(0, lengths[index] + change)
    planes = [np.zeros(length, dtype=np.uint8) for length in lengths]
    if lengths == plane_lengths(count, num_bits=num_bits):
        assert unpack(planes, count=count, num_bits=num_bits).tolist() == [0] * count
        return
    with pytest.raises(FormatError, match=f"cannot hold {count} values of {num_bits} bits"):
        unpack(planes, count=count, num_bits=num_bits)


def test_too_few_or_too_many_planes_are_refused():
    planes = pack(np.arange(5, dtype=np.uint32), num_bits=16)
    for wrong in ([], planes[:1], [*planes, planes[0]]):
        with pytest.raises(FormatError):
            unpack(wrong, count=5, num_bits=16)
