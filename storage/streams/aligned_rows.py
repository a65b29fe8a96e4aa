"""Rows of one target as a stream gives them: several a sample, sample by sample."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from storage.codecs.values import TargetValues
from storage.features import FeatureRows, concatenate_features
from storage.narrowing import narrow_values
from storage.soft_labels import SoftLabels, concatenate
from storage.specs import TargetSpec
from storage.text.token_rows import offsets_of, spans


@dataclass(frozen=True, kw_only=True, slots=True)
class AlignedRows:
    """Rows of some samples.

    Attributes:
        target: what the rows hold.
        offsets: int64 [samples + 1], where the rows of each sample begin; see `storage.alignment`.
        values: the rows.
    """

    target: TargetSpec
    offsets: npt.NDArray[np.int64]
    values: TargetValues

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """int64 [samples], rows of each."""
        return np.diff(self.offsets)

    def take(self, samples: npt.NDArray[np.int64]) -> AlignedRows:
        """Return the rows of some samples, in the order asked for."""
        return AlignedRows(
            target=self.target,
            offsets=offsets_of(self.counts[samples]),
            values=self.values.take(spans(self.offsets, samples)),
        )

    def narrowed(self, asked: TargetSpec) -> AlignedRows:
        """Return the rows as a narrower target has them; `storage.narrowing.why_not_narrower` says whether it is one."""
        if self.target == asked:
            return self
        values = narrow_values(self.values, stored=self.target, asked=asked)
        return AlignedRows(target=asked, offsets=self.offsets, values=values)


def concatenate_rows(parts: list[AlignedRows]) -> AlignedRows:
    """Put rows of one target behind each other."""
    soft_labels = [part.values for part in parts if isinstance(part.values, SoftLabels)]
    features = [part.values for part in parts if isinstance(part.values, FeatureRows)]
    return AlignedRows(
        target=parts[0].target,
        offsets=offsets_of(np.concatenate([part.counts for part in parts])),
        values=concatenate(soft_labels) if soft_labels else concatenate_features(features),
    )
