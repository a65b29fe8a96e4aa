"""Rows of a label set joined with the pictures they were made from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.checked_reading import check_block, check_keys, read_block, read_samples
from storage.errors import MismatchError
from storage.hashing import fingerprint, key_hash
from storage.label_blocks import LabelBlock, decode_label_block
from storage.label_set import LabelSet
from storage.narrowing import narrow, why_not_narrower
from storage.samples import SampleTable
from storage.soft_labels import concatenate
from storage.sources.base import Source, SourceUnit, UnitReader
from storage.specs import SoftLabelsSpec
from storage.streams.base import StreamRows
from storage.streams.block_places import BlockPlaces
from storage.streams.label_tars import label_tars
from storage.streams.recent import Recent

_OPEN_UNITS = 64
_NAMES_AT_A_TIME = 65_536


def labelled_units(label_set: LabelSet, *, source: Source) -> list[SourceUnit]:
    """Return the source's unit of each part, in the order of parts.

    Raises:
        MismatchError: the source lacks one.
    """
    units = {unit.name: unit for unit in source.units()}
    found: list[SourceUnit] = []
    # Some names at a time: a million of them as Python strings are as large as their table.
    for batch in label_set.parts.select(["unit_name"]).to_batches(max_chunksize=_NAMES_AT_A_TIME):
        for name in batch.column(0).to_pylist():
            if name not in units:
                raise MismatchError(
                    f"label set {label_set.manifest.name!r} has labels of unit {name!r}, which the source does not hold "
                    f"(it holds {len(units)} units); point source at the data that was labelled, with the same unit_size"
                )
            found.append(units[name])
    return found


class LabelStream:
    """Rows of one view an epoch: epoch e reads view e modulo the number of views.

    Every block read is checked against the label set; every block joined is checked against the source by the hash of its keys.
    Holds the decoded blocks of a window and the readers of a few units.
    """

    def __init__(
        self, label_set: LabelSet, *, source: Source, target: SoftLabelsSpec | None = None, held_blocks: int = 17
    ) -> None:
        """Join a label set and a source.

        Args:
            target: what rows are narrowed to; None: what the label set was asked for.
            held_blocks: decoded blocks that are kept; at least the blocks of a shuffle window.

        Raises:
            MismatchError: the source lacks a unit that was labelled, or the label set does not hold what `target` asks for.
        """
        self._label_set = label_set
        self._target = target or label_set.manifest.request.soft_labels
        reason = why_not_narrower(label_set.manifest.request.soft_labels, asked=self._target)
        if reason is not None:
            raise MismatchError(f"label set {label_set.manifest.name!r} cannot serve this target: {reason}")
        self._source = source
        self._held_blocks = held_blocks
        self._units = labelled_units(label_set, source=source)
        self._reset()

    def _reset(self) -> None:
        self._places = BlockPlaces(self._label_set.parts, num_views=self._label_set.manifest.num_views)
        self._blocks: Recent[tuple[int, int], LabelBlock] = Recent(self._held_blocks)
        # The blocks that are held are of as many units at most.
        num_open = min(self._held_blocks, _OPEN_UNITS)
        self._readers: Recent[str, UnitReader] = Recent(num_open)
        self._tables: Recent[int, SampleTable] = Recent(num_open)

    def __getstate__(self) -> dict[str, Any]:
        held = {"_places", "_blocks", "_readers", "_tables"}
        return {name: value for name, value in self.__dict__.items() if name not in held}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    @property
    def label_set(self) -> LabelSet:
        """The label set that is read."""
        return self._label_set

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names of the source in the order of labels; None where it does not say."""
        return self._source.classes

    def identity(self) -> str:
        """Return a fingerprint of the rows and their order."""
        named = {"label_set": self._label_set.manifest.id, "stream": 1}
        narrowed = {"target": self._target.to_json()} if self._target != self._label_set.manifest.request.soft_labels else {}
        return fingerprint(named | narrowed)

    def label_tars(self) -> dict[str, dict[str, str]]:
        """Return what tars are read; see `ReadsLabelSets`."""
        return label_tars([self._label_set])

    def _view(self, epoch: int) -> int:
        return epoch % self._label_set.manifest.num_views

    def block_rows(self, *, epoch: int) -> npt.NDArray[np.int64]:
        """Return int64 [blocks], the rows of each block of the epoch's view."""
        return self._places.rows(view=self._view(epoch))

    def _reader(self, part: int) -> UnitReader:
        unit = self._units[part]
        reader = self._readers.get(unit.name)
        if reader is None:
            reader = self._source.open(unit)
            evicted = self._readers.put(unit.name, reader)
            if evicted is not None:
                evicted.close()
        return reader

    def _table(self, part: int) -> SampleTable:
        table = self._tables.get(part)
        if table is None:
            table = read_samples(self._label_set, part=part)
            self._tables.put(part, table)
        return table

    def labels_of(self, *, view: int, block_id: int) -> LabelBlock:
        """Return a decoded block of a view, checked against the label set and narrowed to the target, not joined."""
        place = self._places.place(view=view, block_id=block_id)
        part, extent = place.part, place.extent
        block = read_block(self._label_set, part=part, extent=extent, decode=decode_label_block)
        said = (view, place.first_sample, place.num_samples, place.num_rows)
        check_block(self._label_set, block, part=part, extent=extent, said=said, target=self._target)
        if block.target == self._target:
            return block
        return replace(block, target=self._target, soft_labels=narrow(block.soft_labels, asked=self._target))

    def _joined(self, view: int, block_id: int) -> LabelBlock:
        block = self._blocks.get((view, block_id))
        if block is not None:
            return block
        place = self._places.place(view=view, block_id=block_id)
        block = self.labels_of(view=view, block_id=block_id)
        keys = self._reader(place.part).keys[place.first_sample : place.first_sample + place.num_samples]
        if len(keys) != place.num_samples or key_hash(keys) != block.key_hash:
            table = self._table(place.part)
            check_keys(self._label_set, block, part=place.part, extent=place.extent, table=table)
            labelled = table.keys[place.first_sample : place.first_sample + place.num_samples]
            equal = [mine == theirs for mine, theirs in zip(labelled, keys, strict=False)]
            differ = equal.index(False) if False in equal else len(equal)
            there = labelled[differ] if differ < len(labelled) else "others"
            here = keys[differ] if differ < len(keys) else "nothing"
            raise MismatchError(
                f"unit {self._units[place.part].name!r} does not hold the samples that were labelled: at position "
                f"{place.first_sample + differ} the labels are of {there!r}, the source holds {here!r}; "
                f"restore the source or {self._label_set.again}"
            )
        self._blocks.put((view, block_id), block)
        return block

    def read(self, *, epoch: int, block_ids: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> StreamRows:
        """Return rows by (block, row inside the block), in the order asked for."""
        view = self._view(epoch)
        unique, inverse = np.unique(block_ids, return_inverse=True)
        order = np.argsort(inverse, kind="stable")
        bounds = np.searchsorted(inverse[order], np.arange(len(unique) + 1))
        soft_labels, labels, digests = [], [], []
        keys: list[str] = [""] * len(rows)
        images: list[bytes] = [b""] * len(rows)
        for index, block_id in enumerate(unique.tolist()):
            asked = order[bounds[index] : bounds[index + 1]]
            block = self._joined(view, block_id)
            part = self._places.part(view=view, block_id=block_id)
            reader, table = self._reader(part), self._table(part)
            chosen = rows[asked]
            positions = block.positions[chosen]
            soft_labels.append(block.soft_labels.take(chosen))
            digests.append(block.view_digests[chosen])
            labels.append(table.labels[positions])
            for slot, position in zip(asked.tolist(), positions.tolist(), strict=True):
                keys[slot] = table.keys[position]
                images[slot] = reader.read(position)
        restore = np.argsort(order, kind="stable")
        return StreamRows(
            keys=keys,
            images=images,
            labels=np.concatenate(labels)[restore],
            view_indices=np.full(len(rows), view, dtype=np.int64),
            view_digests=np.concatenate(digests)[restore],
            soft_labels=concatenate(soft_labels).take(restore),
        )
