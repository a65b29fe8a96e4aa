"""Token sequences with their cached targets: one label set, or several over the same samples read as one."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.errors import MismatchError
from storage.hashing import fingerprint
from storage.label_set import LabelSet
from storage.specs import TargetSpec, TextViewSpec
from storage.streams.aligned_rows import AlignedRows, concatenate_rows
from storage.streams.base import TextRows
from storage.streams.block_reader import BlockReader
from storage.streams.joining import require_same_blocks, require_same_tokens, require_same_views
from storage.streams.label_tars import label_tars
from storage.streams.recent import Recent
from storage.target_blocks import TargetBlock
from storage.text.token_rows import TokenRows, concatenate_tokens, offsets_of

IntArray = npt.NDArray[np.int64]

_THREADS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class _JoinedBlock:
    """The samples of a block that every label set holds.

    Attributes:
        keys: str objects [samples].
    """

    keys: npt.NDArray[np.object_]
    labels: IntArray
    tokens: TokenRows
    targets: dict[str, AlignedRows]


class TextLabelStream:
    """Rows of one view an epoch: epoch e reads view e modulo the number of views. A row is a sequence.

    Parts of texts carry their tokens, so no source and no tokenizer is needed. Every block read is checked against its label set,
    and blocks of several label sets against each other: keys, tokens and masks. A sample that is a dead letter of one label set
    is left out of all.
    """

    def __init__(
        self, label_sets: Mapping[str, LabelSet], *, targets: Mapping[str, TargetSpec] | None = None, held_blocks: int = 17
    ) -> None:
        """Join label sets.

        Args:
            label_sets: by the names of their targets in the experiment.
            targets: of the label sets whose targets are read, what they are narrowed to; of the others only tokens are read.
                None: all, as they are.
            held_blocks: decoded blocks that are kept; at least the blocks of a shuffle window.

        Raises:
            MismatchError: label sets are of pictures, do not hold what `targets` asks for, or are not of the same samples, views
                and blocks.
        """
        if not label_sets:
            raise ValueError("a stream needs a label set")
        wanted = {name: label_set.manifest.request.target for name, label_set in label_sets.items()}
        self._targets: dict[str, TargetSpec] = dict(wanted if targets is None else targets)
        self._readers = {name: BlockReader(label_set, target=self._targets.get(name)) for name, label_set in label_sets.items()}
        self._view_spec: TextViewSpec = next(iter(label_sets.values())).manifest.request.text_view()
        self._held_blocks = held_blocks
        self._num_views = next(iter(label_sets.values())).manifest.num_views
        (first_name, first), *others = self._readers.items()
        for name, other in others:
            require_same_views(first, other, names=(first_name, name))
            require_same_blocks(first, other, names=(first_name, name), num_views=self._num_views)
        self._block_rows: dict[int, IntArray] = {}
        self._reset()

    def _reset(self) -> None:
        self._blocks: Recent[tuple[int, int], _JoinedBlock] = Recent(self._held_blocks)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_blocks"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    @property
    def label_sets(self) -> dict[str, LabelSet]:
        """The label sets that are read."""
        return {name: reader.label_set for name, reader in self._readers.items()}

    @property
    def targets(self) -> dict[str, TargetSpec]:
        """What is read of them."""
        return dict(self._targets)

    @property
    def view(self) -> TextViewSpec:
        """How the sequences were made."""
        return self._view_spec

    def identity(self) -> str:
        """Return a fingerprint of the rows and their order."""
        label_sets = {name: reader.label_set.manifest.id for name, reader in self._readers.items()}
        targets = {name: target.to_json() for name, target in self._targets.items()}
        return fingerprint({"stream": "text labels", "label_sets": label_sets, "targets": targets})

    def label_tars(self) -> dict[str, dict[str, str]]:
        """Return what tars are read; see `ReadsLabelSets`."""
        return label_tars(self.label_sets.values())

    def _view(self, epoch: int) -> int:
        return epoch % self._num_views

    def block_rows(self, *, epoch: int) -> IntArray:
        """Return int64 [blocks], the sequences of each block of the epoch's view that every label set holds.

        Raises:
            CorruptError, MismatchError: see `read`; a block that lacks samples in several label sets is read to know them.
        """
        view = self._view(epoch)
        if view not in self._block_rows:
            self._block_rows[view] = self._count(view)
        return self._block_rows[view]

    def _count(self, view: int) -> IntArray:
        held = np.stack([reader.places.rows(view=view) for reader in self._readers.values()])
        counts: IntArray = held.min(axis=0)
        num_samples = next(iter(self._readers.values())).places.spans(view=view)[:, 2]
        unclear = np.flatnonzero((held < num_samples).sum(axis=0) > 1)
        with ThreadPoolExecutor(_THREADS) as pool:
            blocks = pool.map(lambda block_id: self._blocks_of(view, block_id), unclear.tolist())
            for block_id, found in zip(unclear.tolist(), blocks, strict=True):
                counts[block_id] = len(_common_positions(found))
        return counts

    def _blocks_of(self, view: int, block_id: int) -> dict[str, TargetBlock]:
        return {name: reader.block(view=view, block_id=block_id) for name, reader in self._readers.items()}

    def _joined(self, view: int, block_id: int) -> _JoinedBlock:
        block = self._blocks.get((view, block_id))
        if block is None:
            block = self._join(view, block_id)
            self._blocks.put((view, block_id), block)
        return block

    def _join(self, view: int, block_id: int) -> _JoinedBlock:
        blocks = self._blocks_of(view, block_id)
        name, first = next(iter(blocks.items()))
        reader = self._readers[name]
        part = reader.places.part(view=view, block_id=block_id)
        positions = _common_positions(blocks)
        chosen = {name: np.searchsorted(block.positions, positions) for name, block in blocks.items()}
        require_same_tokens(blocks, chosen=chosen, unit_name=reader.unit_name(part))
        if first.tokens is None:
            raise MismatchError(f"unit {reader.unit_name(part)!r} holds labels of pictures; texts were asked for")
        table = reader.table(part)
        keys = np.array(table.keys[first.first_sample : first.first_sample + first.num_samples], dtype=np.object_)
        return _JoinedBlock(
            keys=keys[positions - first.first_sample],
            labels=table.labels[positions],
            tokens=_take(first.tokens, chosen[name]),
            targets={
                name: _aligned_rows(blocks[name], chosen=chosen[name]).narrowed(target) for name, target in self._targets.items()
            },
        )

    def lengths(self, *, epoch: int, block_ids: IntArray, rows: IntArray) -> IntArray:
        """Return int64, the tokens of each sequence, as `read` would give them; its blocks are kept for that."""
        unique, inverse = np.unique(block_ids, return_inverse=True)
        of_block = [self._joined(self._view(epoch), block_id).tokens.lengths for block_id in unique.tolist()]
        starts = offsets_of(np.array([len(lengths) for lengths in of_block], dtype=np.int64))
        found: IntArray = np.concatenate([*of_block, starts[:0]])[starts[inverse] + rows]
        return found

    def read(self, *, epoch: int, block_ids: IntArray, rows: IntArray) -> TextRows:
        """Return sequences by (block, sequence inside the block), in the order asked for.

        Raises:
            CorruptError: stored labels are not what was committed.
            MismatchError: label sets that are joined do not hold the same samples.
        """
        view = self._view(epoch)
        unique, inverse = np.unique(block_ids, return_inverse=True)
        order = np.argsort(inverse, kind="stable")
        bounds = np.searchsorted(inverse[order], np.arange(len(unique) + 1))
        restore = np.argsort(order, kind="stable")
        blocks = [self._joined(view, block_id) for block_id in unique.tolist()]
        chosen = [rows[order[bounds[index] : bounds[index + 1]]] for index in range(len(unique))]
        taken = list(zip(blocks, chosen, strict=True))
        return TextRows(
            keys=np.concatenate([block.keys[asked] for block, asked in taken])[restore].tolist(),
            tokens=concatenate_tokens([block.tokens.take(asked) for block, asked in taken]).take(restore),
            labels=np.concatenate([block.labels[asked] for block, asked in taken])[restore],
            targets={
                name: concatenate_rows([block.targets[name].take(asked) for block, asked in taken]).take(restore)
                for name in self._targets
            },
        )


def _common_positions(blocks: Mapping[str, TargetBlock]) -> IntArray:
    """Return int64, ascending, positions in the unit of the samples that all blocks hold."""
    return reduce(np.intersect1d, [block.positions for block in blocks.values()])


def _take(tokens: TokenRows, chosen: IntArray) -> TokenRows:
    return tokens if len(chosen) == len(tokens) else tokens.take(chosen)


def _aligned_rows(block: TargetBlock, *, chosen: IntArray) -> AlignedRows:
    rows = AlignedRows(target=block.target, offsets=block.row_offsets, values=block.values)
    return rows if len(chosen) == len(rows) else rows.take(chosen)
