"""How far vectors as stored may be from those that were given, number by number: what rounding explains, and no more."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from storage.codecs.int8 import LARGEST, RUN_ROWS
from storage.features import FeatureRows
from storage.specs import FeaturesSpec, Float16Codec, Int8Codec

_HALF_A_STEP = 0.503
"""Scales are 1/127 of the largest number, rounded up by at most 2^-10 of themselves, and that number is stored rounded too."""
_SMALLEST_STEP = 2.0**-24
"""What float16 rounds the smallest scales by."""


def rounding_limits(stored: FeatureRows, *, rows: npt.NDArray[np.int64], spec: FeaturesSpec) -> FeatureRows:
    """Return, for some rows of a block, float32 [rows, width] by tensor: how far each number may be from the one given.

    Args:
        stored: all rows of the block, since numbers of several rows may share a scale.
        rows: which of them.
    """
    codec = spec.codec
    return FeatureRows(tensors={name: _limits(values, rows=rows, codec=codec) for name, values in stored.tensors.items()})


def _limits(
    values: npt.NDArray[np.floating], *, rows: npt.NDArray[np.int64], codec: Float16Codec | Int8Codec
) -> npt.NDArray[np.float32]:
    if isinstance(codec, Float16Codec):
        return np.asarray(np.spacing(np.abs(values[rows].astype(np.float16))), dtype=np.float32) / np.float32(2)
    if not len(rows):
        return np.zeros((0, values.shape[1]), dtype=np.float32)
    if codec.group is None:
        maxima = np.maximum.reduceat(np.abs(values), np.arange(0, len(values), RUN_ROWS), axis=0)[rows // RUN_ROWS]
    else:
        groups = np.maximum.reduceat(np.abs(values[rows]), np.arange(0, values.shape[1], codec.group), axis=1)
        maxima = np.repeat(groups, codec.group, axis=1)[:, : values.shape[1]]
    return np.asarray(_HALF_A_STEP * (maxima / LARGEST + _SMALLEST_STEP), dtype=np.float32)
