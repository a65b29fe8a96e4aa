"""How far stored values of a sample are from those that its teacher gives now, whatever they are of."""

from __future__ import annotations

import numpy as np

from storage.codecs import values as value_codecs
from storage.codecs.distance import distances
from storage.codecs.values import TargetValues, UnstoredValues
from storage.features import FeatureRows
from storage.soft_labels import SoftLabels
from storage.specs import SoftLabelsSpec, TargetSpec

_NOTHING = 1e-6
"""Vectors whose typical length is below it are taken for zero."""


def compare_values(
    stored: TargetValues, now: UnstoredValues, *, target: TargetSpec, limits: FeatureRows | None
) -> tuple[float, int | None]:
    """Return the largest distance of a row, and how many rows of soft labels name the same class as most probable.

    Args:
        now: as many rows as are stored.
        limits: of vectors, how far rounding alone may have moved each number, see `rounding_limits`.
    """
    if isinstance(now, FeatureRows):
        assert isinstance(stored, FeatureRows)
        assert limits is not None
        return vector_distance(stored, now, limits=limits), None
    assert isinstance(target, SoftLabelsSpec)
    assert isinstance(stored, SoftLabels)
    as_stored = value_codecs.decode(value_codecs.encode(now, target=target), num_rows=len(now), target=target)
    assert isinstance(as_stored, SoftLabels)
    compared = distances(stored, as_stored)
    return float(compared.total_variation.max(initial=0.0)), int(compared.same_top.sum())


def vector_distance(stored: FeatureRows, now: FeatureRows, *, limits: FeatureRows) -> float:
    """Return the largest relative distance of a row of one sample's tensors.

    That is the length of the difference, less what rounding explains of each number, over the vector's own length, or over the
    median length of the sample's vectors where that is more: a dot product may be zero but for noise, which is no drift.
    """
    largest = 0.0
    for name, given in now.tensors.items():
        exact = given.astype(np.float64)
        apart = np.maximum(np.abs(stored.tensors[name] - exact) - limits.tensors[name], 0)
        lengths = np.linalg.norm(exact, axis=1)
        typical = float(np.median(lengths)) if len(lengths) else 0.0
        relative = np.linalg.norm(apart, axis=1) / np.maximum(lengths, max(typical, _NOTHING))
        largest = max(largest, float(relative.max(initial=0.0)))
    return largest
