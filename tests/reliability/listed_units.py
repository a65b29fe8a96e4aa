"""A source of names alone, as many as wanted; its pictures are nowhere."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from storage.sources import IndexedUnit
from storage.sources.base import Sample, SourceUnit, UnitReader

SAMPLES_A_UNIT = 1000


def unit_name(number: int) -> str:
    """Return the name of a unit."""
    return f"imagenet-train-{number:07d}.tar"


def unit_digest(number: int) -> str:
    """Return what stands for the digest of its content."""
    return hashlib.sha256(unit_name(number).encode()).hexdigest()


class ListedUnits:
    """Units as the label set of `scale_steps.write` names them."""

    classes = None

    def __init__(self, count: int) -> None:
        nowhere: dict[str, str] = {}
        self._units = [SourceUnit(name=unit_name(number), locator=nowhere, stat_token="") for number in range(count)]

    def units(self) -> list[SourceUnit]:
        """List the units."""
        return self._units

    def indexed(self) -> list[IndexedUnit]:
        """Return the units with what they would hold."""
        return [
            IndexedUnit(unit=unit, num_samples=SAMPLES_A_UNIT, digest=unit_digest(number), key_hash=0)
            for number, unit in enumerate(self._units)
        ]

    def read(self, unit: SourceUnit) -> Iterator[Sample]:
        """Refuse: there are no pictures."""
        raise FileNotFoundError(unit.name)

    def open(self, unit: SourceUnit) -> UnitReader:
        """Refuse: there are no pictures."""
        raise FileNotFoundError(unit.name)
