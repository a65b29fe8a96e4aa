"""A part of imported labels: the epochs of one unit, encoded and measured."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from storage.interchange.tinyvit_folder import EpochRecords
from storage.interchange.tinyvit_rows import convert
from storage.label_blocks import block_rows, decode_label_block
from storage.measuring import measure
from storage.parts import DeadLetter, PartStatistics, PartWriter
from storage.soft_labels import SoftLabels
from storage.specs import SoftLabelsSpec


@dataclass(kw_only=True)
class PartMaker:
    """Collects the views of a part.

    Attributes:
        sums: float64 [classes], probabilities summed over rows.
        num_clipped: rows whose rest was below 0 by rounding.
    """

    writer: PartWriter
    target: SoftLabelsSpec
    sums: npt.NDArray[np.float64]
    statistics: PartStatistics = field(default_factory=PartStatistics)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    num_clipped: int = 0

    def add_view(self, records: EpochRecords, *, view: int, epoch: int, places: npt.NDArray[np.int64]) -> None:
        """Append a view.

        Args:
            places: int64 [samples], each sample's record in the epoch, -1 where there is none.
        """
        size = block_rows(self.target, num_samples=len(places))
        for first in range(0, len(places), size):
            self._add_block(records, view=view, epoch=epoch, first=first, places=places[first : first + size])

    def _add_block(self, records: EpochRecords, *, view: int, epoch: int, first: int, places: npt.NDArray[np.int64]) -> None:
        present = places >= 0
        found = np.flatnonzero(present)
        converted = convert(records.take(places[found]), num_classes=self.target.num_classes)
        reasons = {int(offset): f"epoch {epoch} has no record of it" for offset in np.flatnonzero(~present)}
        reasons |= {int(found[place]): f"epoch {epoch}: {reason}" for place, reason in converted.reasons.items()}
        self.dead_letters += [
            DeadLetter(
                key=self.writer.samples.keys[first + offset], position=first + offset, view=view, stage="import", reason=reason
            )
            for offset, reason in sorted(reasons.items())
        ]
        present[found[~converted.valid]] = False
        data = self.writer.add_rows(
            converted.rows, view=view, first_sample=first, present=present, view_digests=np.zeros(len(places), dtype=np.uint64)
        )
        stored = decode_label_block(data, origin=self.writer.part.name).soft_labels
        labels = self.writer.samples.labels[first : first + len(places)][present]
        self.statistics = self.statistics.plus(measure(converted.rows, stored, labels=labels, target=self.target))
        self.sums += _probability_sums(stored)
        self.num_clipped += converted.num_clipped


def _probability_sums(rows: SoftLabels) -> npt.NDArray[np.float64]:
    """Return float64 [classes], probabilities summed over rows, each rest spread evenly over the classes not named."""
    kept = rows.probs > 0
    num_others = rows.num_classes - kept.sum(axis=1)
    share = np.divide(rows.rest, num_others, out=np.zeros(len(rows)), where=num_others > 0)
    above_share = (rows.probs - share[:, None])[kept]
    sums = np.bincount(rows.class_ids[kept], weights=above_share, minlength=rows.num_classes).astype(np.float64)
    return np.asarray(np.maximum(sums + share.sum(), 0))
