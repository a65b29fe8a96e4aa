"""The parts and tasks of a plan as arrays; objects are made when they are asked for: a million of them would weigh a gigabyte."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import overload

import numpy as np
import numpy.typing as npt

from pipelines.label_task import LabelTask, ListedTasks, Tasks
from storage.label_set import UsedPart
from storage.sources import IndexedUnit
from storage.specs import PartSpec

_AT_A_TIME = 8192

Ints = npt.NDArray[np.int32]
Places = npt.NDArray[np.integer]


@dataclass(frozen=True, kw_only=True, eq=False)
class PlannedParts(Sequence[UsedPart]):
    """The parts that a plan uses, in order.

    Attributes:
        units: of the source, in order.
        owners: fingerprints of the requests that parts are of.
        unit_of, owner_of: int32 [parts], rows of `units` and `owners`.
        made: int32 [parts, 2], the views that a part holds: first and number.
        used: int32 [parts, 2], those of them that are used.
    """

    units: Sequence[IndexedUnit]
    owners: tuple[str, ...]
    unit_of: Ints = field(repr=False)
    owner_of: Ints = field(repr=False)
    made: Ints = field(repr=False)
    used: Ints = field(repr=False)

    def __len__(self) -> int:
        return len(self.unit_of)

    @overload
    def __getitem__(self, index: int) -> UsedPart: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[UsedPart]: ...

    def __getitem__(self, index: int | slice) -> UsedPart | Sequence[UsedPart]:
        if isinstance(index, slice):
            return list(self.at(np.arange(len(self))[index]))
        return next(self.at(np.array([range(len(self))[index]])))

    def __iter__(self) -> Iterator[UsedPart]:
        return self.at(np.arange(len(self)))

    def at(self, places: Places) -> Iterator[UsedPart]:
        """Yield the parts at some places."""
        for start in range(0, len(places), _AT_A_TIME):
            some = places[start : start + _AT_A_TIME]
            # Lists of numbers alone: a million short lists would keep the garbage collector busy.
            columns = (self.unit_of[some], self.owner_of[some], *self.made[some].T, *self.used[some].T)
            rows = zip(*(column.tolist() for column in columns), strict=True)
            for unit, owner, first_made, num_made, first_used, num_used in rows:
                indexed = self.units[unit]
                part = PartSpec(request=self.owners[owner], unit_digest=indexed.digest, first_view=first_made, num_views=num_made)
                yield UsedPart(unit_name=indexed.unit.name, part=part, first_view=first_used, num_views=num_used)

    def num_rows(self, places: Places) -> int:
        """Return the rows of the parts at some places that are used."""
        samples = np.fromiter((unit.num_samples for unit in self.units), dtype=np.int64, count=len(self.units))
        return int((samples[self.unit_of[places]] * self.used[places, 1]).sum())


@dataclass(frozen=True, kw_only=True, eq=False)
class PlannedTasks(Tasks):
    """The tasks that make those parts of a plan that are missing, in order.

    Attributes:
        places: integers [tasks], rows of `parts`.
    """

    parts: PlannedParts = field(repr=False)
    places: Places = field(repr=False)

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> LabelTask: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[LabelTask]: ...

    def __getitem__(self, index: int | slice) -> LabelTask | Sequence[LabelTask]:
        if isinstance(index, slice):
            return list(self._at(self.places[index]))
        return next(self._at(self.places[index][None]))

    def __iter__(self) -> Iterator[LabelTask]:
        return self._at(self.places)

    def _at(self, places: Places) -> Iterator[LabelTask]:
        units = self.parts.units
        for start in range(0, len(places), _AT_A_TIME):
            some = places[start : start + _AT_A_TIME]
            for unit, used in zip(self.parts.unit_of[some].tolist(), self.parts.at(some), strict=True):
                yield LabelTask(unit=units[unit].unit, part=used.part, num_samples=units[unit].num_samples)

    @cached_property
    def num_rows(self) -> int:
        """Rows to compute."""
        return self.parts.num_rows(self.places)

    @property
    def requests(self) -> frozenset[str]:
        """The plan's own request."""
        return frozenset(self.parts.owners[:1] if len(self) else ())

    @property
    def unit_digests(self) -> list[str]:
        """Digests of the units that are read, each once."""
        return [self.parts.units[unit].digest for unit in np.unique(self.parts.unit_of[self.places]).tolist()]

    @property
    def retried(self) -> Sequence[LabelTask]:
        """None: a part that is missing has no dead letters."""
        return ()

    def of_request(self, request: str) -> Tasks:
        """Return all of them, or none."""
        return self if request in self.requests else ListedTasks()
