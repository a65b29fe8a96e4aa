"""Rows of a target as they are stored to rows as losses read them, each with the token it is of."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from storage.features import FeatureRows
from storage.soft_labels import SoftLabels
from storage.specs import EmbeddingsSpec, HiddenStatesSpec, RelationsSpec, SoftLabelsSpec, TargetSpec
from storage.streams.aligned_rows import AlignedRows
from student_training.batch import to_targets, to_tensor
from student_training.terms.interface import FeatureTargets, TargetRows

IntArray = npt.NDArray[np.int64]


def to_target_rows(stored: AlignedRows, *, masked_positions: IntArray | None = None) -> TargetRows:
    """Return the rows of one target as tensors, each with the token it is of.

    Args:
        stored: the rows, sample by sample.
        masked_positions: int64 [rows], of labels of masked tokens.
    """
    counts = stored.counts
    sequence = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    return TargetRows(
        spec=stored.target,
        sequence=to_tensor(sequence),
        position=to_tensor(_positions(stored, masked_positions=masked_positions)),
        soft_labels=to_targets(stored.values) if isinstance(stored.values, SoftLabels) else None,
        features=_features(stored.values) if isinstance(stored.values, FeatureRows) else None,
    )


def _features(values: FeatureRows) -> FeatureTargets:
    return FeatureTargets(tensors={name: to_tensor(tensor) for name, tensor in values.tensors.items()})


def _positions(stored: AlignedRows, *, masked_positions: IntArray | None) -> IntArray:
    """Return int64 [rows], the token inside its sequence that each row is of; see `storage.alignment`."""
    total = int(stored.offsets[-1])
    if _is_of_whole_samples(stored.target):
        return np.zeros(total, dtype=np.int64)
    if isinstance(stored.target, SoftLabelsSpec) and stored.target.positions == "masked":
        assert masked_positions is not None
        return masked_positions
    inside = np.arange(total, dtype=np.int64) - np.repeat(stored.offsets[:-1], stored.counts)
    return later_of_pairs(inside) if isinstance(stored.target, RelationsSpec) else inside


def _is_of_whole_samples(target: TargetSpec) -> bool:
    if isinstance(target, SoftLabelsSpec):
        return target.positions == "view"
    if isinstance(target, HiddenStatesSpec | EmbeddingsSpec):
        return not target.per_token
    return False


def later_of_pairs(inside: IntArray) -> IntArray:
    """Return the row of each entry of a lower triangle that is stored row by row: the largest i with i (i + 1) / 2 <= entry."""
    rows: IntArray = ((np.sqrt(8.0 * inside + 1) - 1) / 2).astype(np.int64)
    rows -= rows * (rows + 1) // 2 > inside  # the root of a large number may be rounded up or down
    rows += (rows + 1) * (rows + 2) // 2 <= inside
    return rows
