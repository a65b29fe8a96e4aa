"""Positive integers of very different sizes: the length of each, and the bits below its leading one, end to end.

Lengths are few and uneven, so zstd shortens them; the bits below are noise and stay as they are: Elias gamma, its halves apart.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from storage.codecs.columns import Bytes
from storage.errors import FormatError

MAX_LENGTH = 33
"""Bits of the largest step between classes below 2^32, the first one counted from -1."""

_WORD_BYTES = 8


def split(values: npt.NDArray[np.uint64]) -> tuple[Bytes, Bytes]:
    """Return uint8 [values], the bits below the leading one of each; and these bits, lowest first, zero-padded to a whole byte.

    Args:
        values: uint64 [values], 1 to 2^33 - 1.
    """
    # Exact: float64 holds 53 bits.
    num_below = (np.frexp(values.astype(np.float64))[1] - 1).astype(np.uint8)
    ends = np.cumsum(num_below, dtype=np.uint64)
    starts = ends - num_below
    below = values ^ (np.uint64(1) << num_below.astype(np.uint64))
    total = int(ends[-1]) if len(ends) else 0
    # A value is at most 33 bits: it lies in one word of 64 bits or runs over into the next.
    words = np.zeros(total // 64 + 2, dtype=np.uint64)
    word, shift = starts >> np.uint64(6), starts & np.uint64(63)
    over = np.where(shift > 0, below >> ((np.uint64(64) - shift) & np.uint64(63)), np.uint64(0))
    if len(values):
        first = np.flatnonzero(np.diff(word, prepend=word[0] + np.uint64(1)))
        # Bits of one word do not overlap: their sum is their union.
        words[word[first]] += np.add.reduceat(below << shift, first)
        words[word[first] + np.uint64(1)] += np.add.reduceat(over, first)
    return num_below, words.view(np.uint8)[: -(-total // 8)].copy()


def join(num_below: Bytes, bits: Bytes) -> npt.NDArray[np.int64]:
    """Return int64 [values], what `split` was given.

    Raises:
        FormatError: a length of more than `MAX_LENGTH` bits, or other bits than the lengths announce.
    """
    if int(num_below.max(initial=0)) >= MAX_LENGTH:
        raise FormatError(f"a step of {int(num_below.max()) + 1} bits, at most {MAX_LENGTH}")
    ends = np.cumsum(num_below, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    if len(bits) != -(-total // 8) or (total % 8 and int(bits[-1]) >> total % 8):
        raise FormatError(f"{len(bits)} bytes of steps for {total} bits")
    starts = ends - num_below
    padded = np.concatenate([bits, np.zeros(_WORD_BYTES, dtype=np.uint8)])
    # A word at every byte: one gather reads 57 bits or more from any bit on.
    windows = np.ndarray((len(bits) + 1,), dtype="<u8", buffer=padded, strides=(1,))
    leading = np.uint64(1) << num_below.astype(np.uint64)
    found = windows[starts >> 3] >> (starts & 7).astype(np.uint64)
    values: npt.NDArray[np.int64] = ((found & (leading - np.uint64(1))) | leading).view(np.int64)
    return values
