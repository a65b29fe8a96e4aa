"""Blocks and sample tables of one label set, each checked against what was committed."""

from __future__ import annotations

from typing import Any

from storage.checked_reading import check_block, check_keys, read_block, read_samples
from storage.errors import MismatchError
from storage.label_set import LabelSet
from storage.narrowing import why_not_narrower
from storage.samples import SampleTable
from storage.specs import TargetSpec
from storage.streams.block_places import BlockPlaces
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
            MismatchError: the label set does not hold what `target` asks for, or its values are known to be wrong.
        """
        label_set.check_values()
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

    def table(self, part: int) -> SampleTable:
        """Return keys and hard labels of a part's samples.

        Raises:
            CorruptError: the bytes are not what was committed.
        """
        table = self._tables.get(part)
        if table is None:
            table = read_samples(self.label_set, part=part)
            self._tables.put(part, table)
        return table

    def block(self, *, view: int, block_id: int) -> TargetBlock:
        """Return a decoded block of a view, checked against the label set and its table of samples; not narrowed.

        Raises:
            CorruptError: the bytes are not what was committed, or are of other rows than the label set says.
        """
        place = self.places.place(view=view, block_id=block_id)
        part, extent = place.part, place.extent
        block = read_block(self.label_set, part=part, extent=extent, decode=decode_target_block)
        said = (view, place.first_sample, place.num_samples, place.num_rows)
        check_block(self.label_set, block, part=part, extent=extent, said=said, target=self.target)
        check_keys(self.label_set, block, part=part, extent=extent, table=self.table(part))
        return block
