"""Rows of any target as they leave a teacher: put together, and brought into another order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from storage.codecs.ranked import RankedLabels
from storage.codecs.sampled import DrawnLabels, concatenate_drawn
from storage.codecs.values import UnstoredValues
from storage.features import FeatureRows, concatenate_features
from storage.specs import SampledCodec, SoftLabelsSpec, TargetSpec, ThresholdCodec


def take_values(values: UnstoredValues, rows: npt.NDArray[np.int64]) -> UnstoredValues:
    """Return some rows, in the order asked for."""
    if isinstance(values, RankedLabels):
        return RankedLabels(class_ids=values.class_ids[rows], log_probs=values.log_probs[rows], log_rest=values.log_rest[rows])
    return values.take(rows)


def concatenate_values(parts: Sequence[UnstoredValues]) -> UnstoredValues:
    """Stack rows of one target.

    Raises:
        ValueError: no parts, or parts of several kinds.
    """
    ranked = [part for part in parts if isinstance(part, RankedLabels)]
    drawn = [part for part in parts if isinstance(part, DrawnLabels)]
    features = [part for part in parts if isinstance(part, FeatureRows)]
    if len(parts) not in (len(ranked), len(drawn), len(features)) or not parts:
        raise ValueError(f"cannot stack rows of {sorted({type(part).__name__ for part in parts})}")
    if len(parts) == 1:
        return parts[0]
    if ranked:
        return RankedLabels(
            class_ids=np.concatenate([part.class_ids for part in ranked]),
            log_probs=np.concatenate([part.log_probs for part in ranked]),
            log_rest=np.concatenate([part.log_rest for part in ranked]),
        )
    return concatenate_drawn(drawn) if drawn else concatenate_features(features)


def empty_values(target: TargetSpec) -> UnstoredValues:
    """Return no rows of a target."""
    if not isinstance(target, SoftLabelsSpec):
        return FeatureRows(tensors={name: np.zeros((0, width), dtype=np.float32) for name, width in target.tensors.items()})
    if isinstance(target.codec, SampledCodec | ThresholdCodec):
        nothing = np.zeros(0, dtype=np.uint32)
        return DrawnLabels(offsets=np.zeros(1, dtype=np.int64), class_ids=nothing, counts=nothing)
    return RankedLabels(
        class_ids=np.zeros((0, target.max_entries), dtype=np.uint32),
        log_probs=np.zeros((0, target.max_entries), dtype=np.float32),
        log_rest=np.zeros(0, dtype=np.float32),
    )
