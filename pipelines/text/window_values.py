"""What a teacher said of the sequences of a window, handed out block by block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.text.soft_labels import ExtractedRows
from pipelines.values import concatenate_values, empty_values, take_values
from storage.codecs.values import UnstoredValues
from storage.specs import TargetSpec
from storage.text.token_rows import offsets_of, spans


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowValues:
    """Values of a window's sequences, in the batches in which the teacher saw them: put together they would be held twice.

    Attributes:
        batches: values of each batch.
        offsets: int64 [sequences of the batch + 1], of each batch, where the rows of its sequences begin.
        places: int64 [sequences, 2], the batch of each sequence of the window, and its place there.
        nothing: no rows.
    """

    batches: tuple[UnstoredValues, ...]
    offsets: tuple[npt.NDArray[np.int64], ...]
    places: npt.NDArray[np.int64]
    nothing: UnstoredValues

    @classmethod
    def of(
        cls, extracted: Sequence[ExtractedRows], *, order: Sequence[npt.NDArray[np.int64]], target: TargetSpec
    ) -> WindowValues:
        """Put batches together.

        Args:
            order: int64 [sequences of the batch], which sequences of the window each batch held.
        """
        places = np.zeros((sum(map(len, order)), 2), dtype=np.int64)
        for batch, sequences in enumerate(order):
            places[sequences, 0] = batch
            places[sequences, 1] = np.arange(len(sequences))
        return cls(
            batches=tuple(rows.values for rows in extracted),
            offsets=tuple(offsets_of(rows.counts) for rows in extracted),
            places=places,
            nothing=empty_values(target),
        )

    def of_sequences(self, sequences: npt.NDArray[np.int64]) -> UnstoredValues:
        """Return the rows of some sequences of the window, sequence by sequence."""
        batch_of, place_of = self.places[sequences].T
        counts = np.zeros(len(sequences), dtype=np.int64)
        found, starts, first = [self.nothing], np.zeros(len(sequences), dtype=np.int64), 0
        for batch in np.unique(batch_of).tolist():
            asked = np.flatnonzero(batch_of == batch)
            offsets, places = self.offsets[batch], place_of[asked]
            counts[asked] = offsets[places + 1] - offsets[places]
            starts[asked] = first + np.cumsum(counts[asked]) - counts[asked]
            first += int(counts[asked].sum())
            found.append(take_values(self.batches[batch], spans(offsets, places)))
        rows = concatenate_values(found)
        found.clear()
        inside = np.arange(first) - np.repeat(offsets_of(counts)[:-1], counts)
        return take_values(rows, np.repeat(starts, counts) + inside)
