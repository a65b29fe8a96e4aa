"""Randomness of views: a pure function of (seed, sample key, view index), with no state and no global generator."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import xxhash


def view_uniforms(seed: int, *, key: str, view_index: int, count: int) -> npt.NDArray[np.float64]:
    """Return the first `count` uniforms of one view, float64 [count] in [0, 1).

    Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): the key is the xxh3-128 of the seed
    (8 little-endian bytes) and the sample key (UTF-8); the counter of the first block is (1, 0, 0, view_index), lowest word
    first, as numpy adds one before every block. A longer request begins with the shorter one, so operations may be added
    behind without moving earlier draws.

    Only raw bits are taken: numpy keeps them stable between versions, which it does not promise for distributions.
    """
    philox_key = xxhash.xxh3_128_intdigest(seed.to_bytes(8, "little") + key.encode())
    raw = np.random.Philox(key=philox_key, counter=[0, 0, 0, view_index]).random_raw(count)
    # 53 bits fill the mantissa of a float64 exactly, so every value is a multiple of 2^-53.
    return (raw >> np.uint64(11)).astype(np.float64) * np.float64(2.0**-53)
