"""Randomness of drawn labels: a pure function of (seed, sample key, view index, position), whatever batch a row is in."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import xxhash

from storage.specs import CodecSpec, SampledCodec, ThresholdCodec

_PURPOSE = 1
"""Third word of the counter; `storage.views.random` has 0 there, so masks and draws of one seed share no number."""


def num_uniforms(codec: CodecSpec) -> int:
    """Return the uniforms that drawing a row takes; 0 where nothing is drawn."""
    match codec:
        case SampledCodec():
            return codec.draws
        case ThresholdCodec():
            return 1
        case _:
            return 0


def label_uniforms(
    codec: SampledCodec | ThresholdCodec, *, key: str, view_index: int, positions: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Return the uniforms of some rows of one view of a sample, float64 [positions, `num_uniforms`] in [0, 1).

    Philox4x64-10, keyed as views are; the counter of the first block is (1, 0, 1, view_index), lowest word first. Position p has
    the words from p * n on, n a row: neither the length of the sequence nor which other positions are asked for matters.

    Args:
        key: of the sample.
        positions: int64, the token that each row is at; 0 where a view has one row.
    """
    width = num_uniforms(codec)
    if not len(positions):
        return np.zeros((0, width))
    philox_key = xxhash.xxh3_128_intdigest(codec.seed.to_bytes(8, "little") + key.encode())
    rows = int(positions.max()) + 1
    raw = np.random.Philox(key=philox_key, counter=[0, 0, _PURPOSE, view_index]).random_raw(rows * width)
    # 53 bits fill the mantissa of a float64 exactly, so every value is a multiple of 2^-53.
    return ((raw >> np.uint64(11)).astype(np.float64) * np.float64(2.0**-53)).reshape(rows, width)[positions]
