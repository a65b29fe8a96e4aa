"""Blocks and sample tables of one label set, each checked against what was committed."""

from __future__ import annotations

from typing import Any

from storage.errors import CorruptError, MismatchError
from storage.hashing import key_hash
from storage.label_set import LabelSet
from storage.narrowing import why_not_narrower
from storage.parts import Extent
from storage.samples import SampleTable, decode_samples
from storage.specs import TargetSpec
from storage.streams.block_places import BlockPlace, BlockPlaces
from storage.streams.recent import Recent
from storage.target_blocks import TargetBlock, decode_target_block

_HELD_TABLES = 64


class BlockReader:
    """Reads a label set block by block. Picklable; holds the tables of a few parts."""

    def __init__(self, label_set: LabelSet, *, target: TargetSpec | None = None) -> None:
        """Read a label set.

        Args:
            target: what rows are narrowed to; None: what the label set was asked for.

        Raises:
            MismatchError: the label set does not hold what `target` asks for.
        """
        self.label_set = label_set
        self.target = target or label_set.manifest.request.target
        reason = why_not_narrower(label_set.manifest.request.target, asked=self.target)
        if reason is not None:
            raise MismatchError(
                f"label set {label_set.manifest.name!r} cannot serve this target: {reason}. Ask for less, or run decant label"
            )
        self._reset()

    def _reset(self) -> None:
        self.places = BlockPlaces(self.label_set.parts, num_views=self.label_set.manifest.num_views)
        self._tables: Recent[int, SampleTable] = Recent(_HELD_TABLES)

    def __getstate__(self) -> dict[str, Any]:
        return {"label_set": self.label_set, "target": self.target}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def unit_name(self, part: int) -> str:
        """Return the name of the unit of a part, given as a row of the table of parts."""
        name: str = self.label_set.parts.column("unit_name")[part].as_py()
        return name

    def _origin(self, path: str) -> str:
        return f"{self.label_set.cache.store.url}/{path}"

    def table(self, part: int) -> SampleTable:
        """Return keys and hard labels of a part's samples.

        Raises:
            CorruptError: the bytes are not what was committed.
        """
        table = self._tables.get(part)
        if table is None:
            extent = Extent(**self.label_set.parts.column("samples")[part].as_py())
            path = self.label_set.tar_path(part)
            table = decode_samples(self.label_set.read_extent(path, extent), origin=self._origin(path))
            num_samples = self.label_set.parts.column("num_samples")[part].as_py()
            if len(table.keys) != num_samples:
                raise CorruptError(
                    f"{self._origin(path)}: its table holds {len(table.keys)} samples, the label set says {num_samples}"
                )
            self._tables.put(part, table)
        return table

    def bytes_of(self, place: BlockPlace) -> tuple[bytes, str]:
        """Return the bytes of a block, of the committed checksum, and where they lie, for messages."""
        path = self.label_set.tar_path(place.part)
        return self.label_set.read_extent(path, place.extent), self._origin(path)

    def block(self, *, view: int, block_id: int) -> TargetBlock:
        """Return a decoded block of a view, checked against the label set and its table of samples; not narrowed.

        Raises:
            CorruptError: the bytes are not what was committed, or are of other rows than the label set says.
        """
        place = self.places.place(view=view, block_id=block_id)
        data, origin = self.bytes_of(place)
        block = decode_target_block(data, origin=origin)
        found = (block.view, block.first_sample, block.num_samples, len(block))
        if found != (view, place.first_sample, place.num_samples, place.num_rows):
            raise CorruptError(f"{origin}: the block at {place.extent.offset} is (view, first sample, samples, rows) {found}")
        reason = why_not_narrower(block.target, asked=self.target)
        if reason is not None:
            raise CorruptError(f"{origin}: the block at {place.extent.offset} is of other labels: {reason}")
        keys = self.table(place.part).keys[place.first_sample : place.first_sample + place.num_samples]
        if key_hash(keys) != block.key_hash:
            raise CorruptError(
                f"{origin}: the block at {place.extent.offset} is not of the samples {keys[0]!r} to {keys[-1]!r} that its part "
                "lists; remove this tar and run decant label again: only its part is computed anew"
            )
        return block
