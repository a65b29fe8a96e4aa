"""Rows of a source alone: its pictures and hard labels, for baselines, live teachers and evaluation."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from storage.errors import SampleError, SourceError
from storage.hashing import fingerprint, key_hash
from storage.sources.base import NO_LABEL, Source, SourceUnit, UnitReader
from storage.streams.base import NO_DIGEST, StreamRows

IntArray = npt.NDArray[np.int64]


_INDEX_THREADS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class _Index:
    """What is known of the source after one look into each unit.

    Attributes:
        positions: of each unit, int64 positions of the samples that are read.
        block_units: int64 [blocks], unit of each block.
        block_starts: int64 [blocks], where the block begins in its unit's positions.
        block_rows: int64 [blocks].
        unit_hashes: of each unit, [name, rows, hash of keys, hash of labels].
        num_labelled: samples with a label, of those that are read.
        max_label: the largest label among them, NO_LABEL if there is none.
    """

    positions: tuple[IntArray, ...]
    block_units: IntArray
    block_starts: IntArray
    block_rows: IntArray
    unit_hashes: tuple[tuple[str, int, str, str], ...]
    num_labelled: int
    max_label: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _UnitLook:
    positions: IntArray
    labels: IntArray
    hashes: tuple[str, int, str, str]


class SourceStream:
    """A `RowStream` over a source: blocks are runs of samples of one unit, in unit order.

    The first use opens every unit once for its keys; the index found there travels with a pickled copy, open files do not.
    """

    def __init__(
        self,
        source: Source,
        *,
        units: Sequence[SourceUnit] | None = None,
        block_rows: int = 2048,
        num_views: int | None = None,
        sample_fraction: float = 1.0,
        max_open_units: int = 64,
    ) -> None:
        """Describe the rows; nothing is read yet.

        Args:
            source: where the samples are.
            units: the units to read, in this order; None: all of them.
            block_rows: samples of one block; the last block of a unit may be shorter.
            num_views: epoch e reads view e modulo this; None: view e, never the same twice.
            sample_fraction: share of samples that is read, chosen by the hash of their key: the same ones in every run, and the
                samples of a smaller share are among those of a larger one.
            max_open_units: units a copy keeps open; with as many as a shuffle window has blocks, no unit is opened twice in it.
        """
        self._source = source
        self._units = None if units is None else tuple(units)
        self._rows_per_block = block_rows
        self._num_views = num_views
        self._sample_fraction = sample_fraction
        self._max_open_units = max_open_units
        self._index: _Index | None = None
        self._readers: OrderedDict[int, UnitReader] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_readers": OrderedDict()}

    def block_rows(self, *, epoch: int) -> IntArray:
        """Return int64 [blocks]; every epoch reads the same samples.

        Raises:
            SourceError: a unit cannot be opened, or no sample is left to read.
        """
        del epoch
        return self._indexed().block_rows

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names in the order of labels; None where the source does not say."""
        return self._source.classes

    @property
    def num_labelled(self) -> int:
        """Samples with a hard label, of those that are read."""
        return self._indexed().num_labelled

    @property
    def max_label(self) -> int:
        """The largest hard label of the samples that are read, NO_LABEL if none has one."""
        return self._indexed().max_label

    def identity(self) -> str:
        """Return a fingerprint of unit names, keys, labels and order; where the source lies and its dates do not count."""
        return fingerprint(
            {
                "stream": "source",
                "units": self._indexed().unit_hashes,
                "block_rows": self._rows_per_block,
                "num_views": self._num_views,
                "sample_fraction": self._sample_fraction,
            }
        )

    def read(self, *, epoch: int, block_ids: IntArray, rows: IntArray) -> StreamRows:
        """Return rows by (block, row inside the block), in the order asked for; those that cannot be read are named in them.

        Raises:
            SourceError: a unit cannot be opened.
        """
        index = self._indexed()
        units = index.block_units[block_ids]
        offsets = index.block_starts[block_ids] + rows
        keys, images = [""] * len(units), [b""] * len(units)
        unreadable: dict[int, str] = {}
        labels = np.empty(len(units), dtype=np.int64)
        order = np.lexsort((offsets, units))
        # Runs of one unit in position order: shards are read forwards, whatever order the epoch asks for.
        for run in np.split(order, np.flatnonzero(np.diff(units[order])) + 1) if len(order) else []:
            unit = int(units[run[0]])
            reader = self._reader(unit)
            positions = index.positions[unit][offsets[run]]
            labels[run] = reader.labels[positions]
            for row, position in zip(run.tolist(), positions.tolist(), strict=True):
                keys[row] = reader.keys[position]
                try:
                    images[row] = reader.read(position)
                except SampleError as error:
                    unreadable[row] = str(error)
        view = epoch if self._num_views is None else epoch % self._num_views
        return StreamRows(
            keys=keys,
            images=images,
            labels=labels,
            view_indices=np.full(len(units), view, dtype=np.int64),
            view_digests=np.full(len(units), NO_DIGEST, dtype=np.uint64),
            soft_labels=None,
            unreadable=unreadable,
        )

    def close(self) -> None:
        """Close every open unit; reading on opens them again."""
        while self._readers:
            self._readers.popitem()[1].close()

    def _reader(self, unit: int) -> UnitReader:
        if unit in self._readers:
            self._readers.move_to_end(unit)
            return self._readers[unit]
        while len(self._readers) >= self._max_open_units:
            self._readers.popitem(last=False)[1].close()
        units = self._units
        if units is None:
            raise RuntimeError("a unit was asked for before the units were listed")
        self._readers[unit] = self._source.open(units[unit])
        return self._readers[unit]

    def _indexed(self) -> _Index:
        if self._index is None:
            if self._units is None:
                self._units = tuple(self._source.units())
            with ThreadPoolExecutor(_INDEX_THREADS) as pool:
                self._index = self._build(list(pool.map(self._look, self._units)))
        return self._index

    def _look(self, unit: SourceUnit) -> _UnitLook:
        """Open a unit for its keys and labels, and choose its samples."""
        reader = self._source.open(unit)
        try:
            keys, labels = reader.keys, np.asarray(reader.labels, dtype=np.int64)
            hashes = (unit.name, len(keys), f"{key_hash(keys):016x}", xxhash.xxh3_64_hexdigest(labels.tobytes()))
            if self._sample_fraction >= 1:
                positions = np.arange(len(keys), dtype=np.int64)
            else:
                limit = int(self._sample_fraction * 2**64)
                chosen = [position for position, key in enumerate(keys) if xxhash.xxh3_64_intdigest(key.encode()) < limit]
                positions = np.array(chosen, dtype=np.int64)
            return _UnitLook(positions=positions, labels=labels[positions], hashes=hashes)
        finally:
            reader.close()

    def _build(self, looks: list[_UnitLook]) -> _Index:
        sizes = np.array([len(look.positions) for look in looks], dtype=np.int64)
        if sizes.sum() == 0:
            raise SourceError(
                f"no sample is left to read: {len(looks)} units hold {sum(look.hashes[1] for look in looks)} samples and "
                f"sample_fraction is {self._sample_fraction}; check the source's path, or raise sample_fraction"
            )
        blocks = -(-sizes // self._rows_per_block)
        block_units = np.repeat(np.arange(len(sizes), dtype=np.int64), blocks)
        blocks_before = np.arange(len(block_units), dtype=np.int64) - np.repeat(np.cumsum(blocks) - blocks, blocks)
        starts = blocks_before * self._rows_per_block
        return _Index(
            positions=tuple(look.positions for look in looks),
            block_units=block_units,
            block_starts=starts,
            block_rows=np.minimum(self._rows_per_block, sizes[block_units] - starts),
            unit_hashes=tuple(look.hashes for look in looks),
            num_labelled=sum(int((look.labels != NO_LABEL).sum()) for look in looks),
            max_label=max(int(look.labels.max(initial=NO_LABEL)) for look in looks),
        )
