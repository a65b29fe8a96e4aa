"""Vectors as values: what feature codecs write, streams yield and losses read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureRows:
    """Rows of one or several tensors.

    Attributes:
        tensors: float32 (float16 where that is what is stored) [rows, width] by name; see `storage.specs.FeaturesSpec.tensors`.
    """

    tensors: Mapping[str, npt.NDArray[np.floating]]

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def take(self, rows: npt.NDArray[np.int64]) -> FeatureRows:
        """Return the given rows, in the given order."""
        return FeatureRows(tensors={name: values[rows] for name, values in self.tensors.items()})


def concatenate_features(parts: list[FeatureRows]) -> FeatureRows:
    """Stack rows.

    Raises:
        ValueError: no parts, or parts of other tensors.
    """
    if len({tuple(part.tensors) for part in parts}) != 1:
        raise ValueError(f"cannot stack rows of tensors {sorted({tuple(part.tensors) for part in parts})}")
    if len(parts) == 1:
        return parts[0]
    return FeatureRows(tensors={name: np.concatenate([part.tensors[name] for part in parts]) for name in parts[0].tensors})
