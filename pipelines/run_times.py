"""How long the units of a run took."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict, final


@final
class UnitTimes(TypedDict):
    """How long a unit took, as workers report it; `ended` is a POSIX time."""

    part: str
    request: str
    num_views: int
    ended: float
    seconds: float
    teacher_seconds: float


@final
class PassedRows(TypedDict):
    """Rows of a request that were committed when their turn came: by another run, or by a worker that was started anew."""

    request: str
    num_passed_rows: int


@dataclass(kw_only=True)
class RunTimes:
    """The times of all units of a run together.

    Attributes:
        num_rows: rows that were computed.
        num_passed_rows: rows that were planned and then found committed.
        first: when the first unit began, a POSIX time.
        last: when the last one ended.
    """

    num_rows: int = 0
    num_passed_rows: int = 0
    teacher_seconds: float = 0.0
    first: float = math.inf
    last: float = -math.inf

    def add(self, unit: UnitTimes | PassedRows) -> None:
        """Add a unit, or rows that were passed over."""
        if "num_passed_rows" in unit:
            self.num_passed_rows += unit["num_passed_rows"]
            return
        self.num_rows += unit["num_views"]
        self.teacher_seconds += unit["teacher_seconds"]
        self.first = min(self.first, unit["ended"] - unit["seconds"])
        self.last = max(self.last, unit["ended"])


def summed(parts: Sequence[RunTimes]) -> RunTimes:
    """Return the times of several requests' units together."""
    return RunTimes(
        num_rows=sum(part.num_rows for part in parts),
        num_passed_rows=sum(part.num_passed_rows for part in parts),
        teacher_seconds=sum(part.teacher_seconds for part in parts),
        first=min((part.first for part in parts), default=math.inf),
        last=max((part.last for part in parts), default=-math.inf),
    )
