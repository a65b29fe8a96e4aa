"""Codecs of any target: rows to named byte streams and back, by the kind of the target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from storage import codecs
from storage.codecs import features
from storage.codecs.columns import Bytes
from storage.codecs.ranked import RankedLabels
from storage.codecs.sampled import DrawnLabels
from storage.features import FeatureRows
from storage.soft_labels import SoftLabels
from storage.specs import SoftLabelsSpec, TargetSpec

UnstoredValues: TypeAlias = RankedLabels | DrawnLabels | FeatureRows
"""Rows as they leave a teacher."""

TargetValues: TypeAlias = SoftLabels | FeatureRows
"""Rows as they are read."""


def encode(values: UnstoredValues, *, target: TargetSpec) -> dict[str, Bytes]:
    """Return the byte streams of a block of rows.

    Raises:
        FormatError: rows that are not of this target.
    """
    if isinstance(target, SoftLabelsSpec):
        assert not isinstance(values, FeatureRows)
        return codecs.encode(values, spec=target)
    assert isinstance(values, FeatureRows)
    return features.encode(values, spec=target)


def stream_lengths(num_rows: int, *, target: TargetSpec) -> dict[str, int]:
    """Return the most bytes each stream of `num_rows` rows may have; a reader allocates no more."""
    if isinstance(target, SoftLabelsSpec):
        return codecs.stream_lengths(num_rows, spec=target)
    return features.stream_lengths(num_rows, spec=target)


def decode(streams: Mapping[str, Bytes], *, num_rows: int, target: TargetSpec) -> TargetValues:
    """Return the rows of a block.

    Raises:
        FormatError: streams that `encode` cannot have made.
    """
    if isinstance(target, SoftLabelsSpec):
        return codecs.decode(streams, num_rows=num_rows, spec=target)
    return features.decode(streams, num_rows=num_rows, spec=target)
