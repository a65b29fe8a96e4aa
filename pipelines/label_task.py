"""Tasks of labelling, as plans make them and workers take them. Imports no framework: a plan needs none."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

from storage.sources.base import SourceUnit
from storage.specs import PartSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelTask:
    """One work unit: a source unit and the range of views that is missing, or in which rows are missing.

    Attributes:
        replaces: name of the part's tar whose dead letters are tried again; None: the part is computed as a whole.
        num_dead_rows: rows that are tried again.
    """

    unit: SourceUnit
    part: PartSpec
    num_samples: int
    replaces: str | None = None
    num_dead_rows: int = 0

    @property
    def num_rows(self) -> int:
        """Rows to compute, dead letters not taken off."""
        return self.num_dead_rows if self.replaces is not None else self.num_samples * self.part.num_views


class Tasks(Sequence[LabelTask]):
    """Tasks, and what a run must know of all of them."""

    @property
    @abstractmethod
    def num_rows(self) -> int:
        """Rows to compute."""

    @property
    @abstractmethod
    def requests(self) -> frozenset[str]:
        """Fingerprints of the requests whose parts are made."""

    @property
    @abstractmethod
    def unit_digests(self) -> list[str]:
        """Digests of the units that are read."""

    @property
    @abstractmethod
    def retried(self) -> Sequence[LabelTask]:
        """Those that try dead letters again."""

    @abstractmethod
    def of_request(self, request: str) -> Tasks:
        """Return those that make parts of a request."""


@dataclass(frozen=True)
class ListedTasks(Tasks):
    """Tasks that are held."""

    tasks: Sequence[LabelTask] = ()

    def __len__(self) -> int:
        return len(self.tasks)

    @overload
    def __getitem__(self, index: int) -> LabelTask: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[LabelTask]: ...

    def __getitem__(self, index: int | slice) -> LabelTask | Sequence[LabelTask]:
        return self.tasks[index]

    @property
    def num_rows(self) -> int:
        """Rows to compute."""
        return sum(task.num_rows for task in self.tasks)

    @property
    def requests(self) -> frozenset[str]:
        """Fingerprints of the requests whose parts are made."""
        return frozenset(task.part.request for task in self.tasks)

    @property
    def unit_digests(self) -> list[str]:
        """Digests of the units that are read."""
        return [task.part.unit_digest for task in self.tasks]

    @property
    def retried(self) -> Sequence[LabelTask]:
        """Those that try dead letters again."""
        return [task for task in self.tasks if task.replaces is not None]

    def of_request(self, request: str) -> Tasks:
        """Return those that make parts of a request."""
        return ListedTasks([task for task in self.tasks if task.part.request == request])
