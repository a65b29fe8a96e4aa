"""Integer arrays as byte planes: least significant byte of all values first, then the next.

The last plane is packed to 1, 2 or 4 bits a value where its values allow: ids below 1,024 take 10 bits, not 16.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from storage.errors import FormatError

Bytes = npt.NDArray[np.uint8]

_PACKINGS = (1, 2, 4)
_SPAN_ENTRIES = 1 << 14
_Word = TypeVar("_Word", np.uint16, np.uint32)


def _unpack_table(bits: int) -> npt.NDArray[np.unsignedinteger]:
    # One word of 8 / bits bytes for every packed byte: a single gather unpacks several values.
    per_byte = 8 // bits
    shifts = np.arange(per_byte, dtype=np.uint8) * bits
    values = ((np.arange(256, dtype=np.uint8)[:, None] >> shifts) & ((1 << bits) - 1)).astype(np.uint8)
    return values.view({8: np.uint64, 4: np.uint32, 2: np.uint16}[per_byte]).reshape(-1)


_UNPACK = {bits: _unpack_table(bits) for bits in _PACKINGS}


def bits_needed(largest: int) -> int:
    """Return the bits a value needs: whole bytes, and 0, 1, 2, 4 or 8 more."""
    num_bits = largest.bit_length()
    whole, over = divmod(num_bits, 8)
    if over == 0:
        return max(num_bits, 1)
    return whole * 8 + next((bits for bits in _PACKINGS if over <= bits), 8)


def row_spans(shape: tuple[int, ...]) -> list[slice]:
    """Return runs of rows [rows, entries] whose temporary arrays stay in cache; larger ones are new memory every time."""
    num_rows, entries = shape
    step = max(1, _SPAN_ENTRIES // max(entries, 1))
    return [slice(start, start + step) for start in range(0, num_rows, step)]


def pack(values: npt.NDArray[np.unsignedinteger], *, num_bits: int) -> list[Bytes]:
    """Split a flat array of unsigned integers below 2^num_bits into byte planes.

    Args:
        values: flat array of an unsigned dtype, little-endian.
        num_bits: as `bits_needed` gives; the packed last plane is padded with zero bits to a whole byte.
    """
    planes = values.view(np.uint8).reshape(len(values), values.dtype.itemsize)
    whole, over = divmod(num_bits, 8)
    packed = [np.ascontiguousarray(planes[:, index]) for index in range(whole)]
    if over == 0:
        return packed
    per_byte = 8 // over
    last = np.zeros(-(-len(values) // per_byte) * per_byte, dtype=np.uint8)
    last[: len(values)] = planes[:, whole]
    joined = last[::per_byte].copy()
    for index in range(1, per_byte):
        # One after the other: numpy reduces a short axis many times more slowly.
        np.bitwise_or(joined, last[index::per_byte] << np.uint8(index * over), out=joined)
    return [*packed, joined]


def plane_lengths(count: int, *, num_bits: int) -> list[int]:
    """Return the bytes of each plane that `pack` makes of `count` values."""
    whole, over = divmod(num_bits, 8)
    return [count] * whole + ([-(-count * over // 8)] if over else [])


def unpack(
    planes: list[Bytes], *, count: int, num_bits: int
) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16] | npt.NDArray[np.uint32]:
    """Join byte planes into `count` unsigned integers of the narrowest dtype.

    Raises:
        FormatError: planes of other number or length than `count` values of `num_bits` bits have.
    """
    expected = plane_lengths(count, num_bits=num_bits)
    if [len(plane) for plane in planes] != expected:
        raise FormatError(
            f"planes of {[len(plane) for plane in planes]} bytes cannot hold {count} values of {num_bits} bits: {expected}"
        )
    over = num_bits % 8
    if over:
        # mode: a byte is inside the table of 256; the default checks it all the same.
        planes = [*planes[:-1], _UNPACK[over].take(planes[-1], mode="clip").view(np.uint8)[:count]]
    return join(planes)


def join(planes: list[Bytes]) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16] | npt.NDArray[np.uint32]:
    """Join one to four byte planes of any one shape into unsigned integers of the narrowest dtype."""
    if len(planes) == 1:
        return planes[0]
    return _join(planes, dtype=np.uint16) if len(planes) == 2 else _join(planes, dtype=np.uint32)


def _join(planes: list[Bytes], *, dtype: type[_Word]) -> npt.NDArray[_Word]:
    joined = planes[-1].astype(dtype)
    for plane in reversed(planes[:-1]):
        np.left_shift(joined, 8, out=joined)
        np.bitwise_or(joined, plane, out=joined)
    return joined
