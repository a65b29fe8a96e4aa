"""A source of names alone, as many as wanted; its pictures are nowhere."""

from __future__ import annotations

from collections.abc import Iterator

from storage.sources.base import Sample, SourceUnit, UnitReader


class ListedUnits:
    """Units as the label set of `scale_steps.write` names them."""

    classes = None

    def __init__(self, count: int) -> None:
        nowhere: dict[str, str] = {}
        self._units = [SourceUnit(name=f"imagenet-train-{n:07d}.tar", locator=nowhere, stat_token="") for n in range(count)]

    def units(self) -> list[SourceUnit]:
        """List the units."""
        return self._units

    def read(self, unit: SourceUnit) -> Iterator[Sample]:
        """Refuse: there are no pictures."""
        raise FileNotFoundError(unit.name)

    def open(self, unit: SourceUnit) -> UnitReader:
        """Refuse: there are no pictures."""
        raise FileNotFoundError(unit.name)
