"""What a source is: samples with stable keys, in units that are read, labelled and stored as one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

NO_LABEL = -1
"""Label of a sample that has none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceUnit:
    """A source shard, or a contiguous range of an unsharded source; small enough to travel, never holds samples.

    Attributes:
        name: stable name inside the source, relative to its root; moving the source does not change it.
        locator: JSON data from which the source's kind finds the samples.
        stat_token: changes when the files behind the unit change (sizes, times, etags); for skipping a re-read, never identity.
    """

    name: str
    locator: dict[str, Any] = field(hash=False)
    stat_token: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One source item as stored: bytes are not decoded here.

    Attributes:
        position: index inside the unit, 0-based and without holes.
        key: unique inside the source.
        label: hard label, or NO_LABEL.
        data: the stored bytes: picture or UTF-8 text; None when they could not be read.
        error: why `data` is None.
    """

    position: int
    key: str
    label: int
    data: bytes | None
    error: str | None = None


class UnitReader(Protocol):
    """Random access to the samples of one unit, for training. Holds no more than one shard's index."""

    @property
    def keys(self) -> Sequence[str]:
        """Keys in position order."""

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """Hard labels in position order, NO_LABEL where there is none."""

    def read(self, position: int) -> bytes:
        """Return the sample's stored bytes.

        Raises:
            SampleError: this sample cannot be read.
        """

    def close(self) -> None:
        """Release files."""


class Source(Protocol):
    """Samples behind one config. Picklable: readers open their own files."""

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names in label order, where the source or its config knows them."""

    def units(self) -> list[SourceUnit]:
        """List the units in order, without reading samples whole.

        Raises:
            SourceError: nothing matches, the store cannot be reached, or classes do not match the config.
        """

    def read(self, unit: SourceUnit) -> Iterator[Sample]:
        """Yield every sample of a unit in order, holding a bounded number in memory.

        A sample that cannot be read comes with `error`; the others still come.

        Raises:
            SourceError: the unit as a whole cannot be read (vanished, truncated).
        """

    def open(self, unit: SourceUnit) -> UnitReader:
        """Open a unit for random access."""
