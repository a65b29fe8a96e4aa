"""Pictures and hard labels of the units that a label set is of, read from their source by position."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from storage.errors import MismatchError
from storage.sources.base import Source, UnitReader
from storage.streams.base import NO_DIGEST, StreamRows
from storage.streams.block_reader import BlockReader
from storage.streams.label_stream import labelled_units
from storage.streams.recent import Recent

IntArray = npt.NDArray[np.int64]


class UnitPictures:
    """Opens units as they are asked for and makes sure that they hold the samples that were labelled."""

    def __init__(self, reader: BlockReader, *, source: Source, held_units: int) -> None:
        """Join a label set and a source.

        Args:
            held_units: units that are kept open.

        Raises:
            MismatchError: the source lacks a unit that was labelled.
        """
        self._labelled = reader
        self._source = source
        self._held_units = held_units
        self._units = labelled_units(reader.label_set, source=source)
        self._reset()

    def _reset(self) -> None:
        self._open: Recent[str, UnitReader] = Recent(self._held_units)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_open"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names in the order of labels; None where the source does not say."""
        return self._source.classes

    def _reader(self, part: int) -> UnitReader:
        unit = self._units[part]
        reader = self._open.get(unit.name)
        if reader is None:
            reader = self._source.open(unit)
            self._check(reader, part=part)
            evicted = self._open.put(unit.name, reader)
            if evicted is not None:
                evicted.close()
        return reader

    def _check(self, reader: UnitReader, *, part: int) -> None:
        here, labelled = list(reader.keys), list(self._labelled.table(part).keys)
        if here == labelled:
            return
        equal = [mine == theirs for mine, theirs in zip(labelled, here, strict=False)]
        differ = equal.index(False) if False in equal else len(equal)
        there = labelled[differ] if differ < len(labelled) else "nothing"
        found = here[differ] if differ < len(here) else "nothing"
        reader.close()
        raise MismatchError(
            f"unit {self._units[part].name!r} does not hold the samples that were labelled: at position {differ} the labels are "
            f"of {there!r}, the source holds {found!r}; restore the source or {self._labelled.label_set.again}"
        )

    def read(self, *, view: int, parts: IntArray, positions: IntArray) -> StreamRows:
        """Return samples by part and position in its unit, in the order asked for, without targets.

        Args:
            view: of which they are rows.
            parts: int64 [rows], rows of the table of parts.
            positions: int64 [rows].

        Raises:
            MismatchError: the source does not hold what was labelled.
            CorruptError: a table of samples is not what was committed.
            SourceError, SampleError: a picture cannot be read.
        """
        keys, images = [""] * len(parts), [b""] * len(parts)
        labels = np.empty(len(parts), dtype=np.int64)
        # Unit by unit in the order of positions: shards are read forwards, whatever order is asked for.
        order = np.lexsort((positions, parts))
        for run in np.split(order, np.flatnonzero(np.diff(parts[order])) + 1) if len(order) else []:
            part = int(parts[run[0]])
            reader, table = self._reader(part), self._labelled.table(part)
            labels[run] = table.labels[positions[run]]
            for row, position in zip(run.tolist(), positions[run].tolist(), strict=True):
                keys[row], images[row] = table.keys[position], reader.read(position)
        return StreamRows(
            keys=keys,
            images=images,
            labels=labels,
            view_indices=np.full(len(parts), view, dtype=np.int64),
            view_digests=np.full(len(parts), NO_DIGEST, dtype=np.uint64),
            soft_labels=None,
        )
