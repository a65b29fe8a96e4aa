"""Pictures with soft labels and further targets of the same views: hidden states, attention, embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.errors import MismatchError
from storage.hashing import fingerprint
from storage.label_set import LabelSet
from storage.specs import TargetSpec
from storage.streams.aligned_rows import AlignedRows, concatenate_rows
from storage.streams.base import NO_DIGEST, StreamRows
from storage.streams.block_reader import BlockReader
from storage.streams.covering import Covering
from storage.streams.joining import require_same_samples, require_same_views, unit_codes
from storage.streams.label_stream import LabelStream
from storage.streams.recent import Recent
from storage.target_blocks import TargetBlock

IntArray = npt.NDArray[np.int64]

_LABELS = ""
"""Name of the soft labels among the label sets: no target's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Piece:
    """A stored block.

    Attributes:
        positions: int64 [samples that are present], ascending.
        rows: None of soft labels, which their own stream reads.
    """

    block_id: int
    positions: IntArray
    digests: npt.NDArray[np.uint64]
    rows: AlignedRows | None


@dataclass(frozen=True, kw_only=True, slots=True)
class _JoinedBlock:
    """The samples of a canonical block that every label set holds.

    Attributes:
        label_blocks: int64 [samples], block of the soft labels that each is in.
        label_rows: int64 [samples], its row inside that block.
        digests: uint64 [samples], of what the teachers of further targets saw, NO_DIGEST where not stored.
    """

    label_blocks: IntArray
    label_rows: IntArray
    digests: npt.NDArray[np.uint64]
    targets: dict[str, AlignedRows]


class PictureTargetStream:
    """A `LabelStream` whose rows carry further targets. A sample that is a dead letter of one label set is left out of all.

    Blocks of targets differ in size, so values are looked up by sample position; the canonical blocks are those of the label set
    that has most of them.
    """

    def __init__(
        self,
        labels: LabelStream,
        label_sets: Mapping[str, LabelSet],
        *,
        targets: Mapping[str, TargetSpec] | None = None,
        held_blocks: int = 17,
    ) -> None:
        """Join label sets.

        Args:
            labels: pictures and soft labels.
            label_sets: the further ones, by the names of their targets in the experiment.
            targets: what these are narrowed to; None: as they are.
            held_blocks: decoded blocks of a label set that are kept; at least the blocks of a shuffle window.

        Raises:
            MismatchError: label sets do not hold what `targets` asks for, or are not of the same samples and views.
        """
        self._labels = labels
        first = BlockReader(labels.label_set)
        self._readers = {_LABELS: first} | {
            name: BlockReader(label_set, target=None if targets is None else targets[name])
            for name, label_set in label_sets.items()
        }
        self._held_blocks = held_blocks
        self._num_views = labels.label_set.manifest.num_views
        self._units = dict(zip(self._readers, unit_codes(*self._readers.values()), strict=True))
        for name, reader in self._readers.items():
            require_same_views(first, reader, names=("labels", name))
            require_same_samples(
                first, reader, names=("labels", name), units=(self._units[_LABELS], self._units[name]), num_views=self._num_views
            )
        self._canonical = max(self._readers, key=lambda name: len(self._readers[name].places.rows(view=0)))
        self._block_rows: dict[int, IntArray] = {}
        self._reset()

    def _reset(self) -> None:
        self._blocks: Recent[tuple[int, int], _JoinedBlock] = Recent(self._held_blocks)
        self._pieces: Recent[tuple[str, int, int], _Piece] = Recent(self._held_blocks * len(self._readers))
        self._coverings: dict[tuple[str, int], Covering] = {}

    def __getstate__(self) -> dict[str, Any]:
        held = {"_blocks", "_pieces", "_coverings"}
        return {name: value for name, value in self.__dict__.items() if name not in held}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def identity(self) -> str:
        """Return a fingerprint of the rows and their order."""
        others = {name: reader for name, reader in self._readers.items() if name != _LABELS}
        label_sets = {name: reader.label_set.manifest.id for name, reader in others.items()}
        targets = {name: reader.target.to_json() for name, reader in others.items()}
        return fingerprint({"labels": self._labels.identity(), "label_sets": label_sets, "targets": targets})

    def block_rows(self, *, epoch: int) -> IntArray:
        """Return int64 [blocks], the samples of each canonical block of the epoch's view that every label set holds.

        Raises:
            CorruptError, MismatchError: see `read`; blocks where other label sets lack samples are read to know them.
        """
        view = epoch % self._num_views
        if view not in self._block_rows:
            self._block_rows[view] = self._count(view)
        return self._block_rows[view]

    def _count(self, view: int) -> IntArray:
        counts = self._readers[self._canonical].places.rows(view=view).copy()
        for block_id in sorted(self._short_elsewhere(view)):
            counts[block_id] = len(self._joined(view, block_id).label_rows)
        return counts

    def _short_elsewhere(self, view: int) -> set[int]:
        """Return the canonical blocks that share samples with a block of another label set that lacks some."""
        found: set[int] = set()
        for name, reader in self._readers.items():
            if name == self._canonical:
                continue
            spans = reader.places.spans(view=view)
            for part, first, num in spans[reader.places.rows(view=view) < spans[:, 2]].tolist():
                unit = int(self._units[name][part])
                found.update(self._covering(self._canonical, view).blocks(unit=unit, first=first, num=num).tolist())
        return found

    def _covering(self, name: str, view: int) -> Covering:
        if (name, view) not in self._coverings:
            spans = self._readers[name].places.spans(view=view)
            self._coverings[name, view] = Covering(spans, units=self._units[name])
        return self._coverings[name, view]

    def _piece(self, name: str, *, view: int, block_id: int) -> _Piece:
        piece = self._pieces.get((name, view, block_id))
        if piece is None:
            piece = self._read_piece(name, view=view, block_id=block_id)
            self._pieces.put((name, view, block_id), piece)
        return piece

    def _read_piece(self, name: str, *, view: int, block_id: int) -> _Piece:
        if name == _LABELS:
            labels = self._labels.labels_of(view=view, block_id=block_id)
            return _Piece(block_id=block_id, positions=labels.positions, digests=labels.view_digests, rows=None)
        reader = self._readers[name]
        block: TargetBlock = reader.block(view=view, block_id=block_id)
        if block.view_digests is None:
            raise MismatchError(f"label set {reader.label_set.manifest.name!r} is of texts; a target of pictures was asked for")
        rows = AlignedRows(target=block.target, offsets=block.row_offsets, values=block.values).narrowed(reader.target)
        return _Piece(block_id=block_id, positions=block.positions, digests=block.view_digests, rows=rows)

    def _joined(self, view: int, block_id: int) -> _JoinedBlock:
        block = self._blocks.get((view, block_id))
        if block is None:
            block = self._join(view, block_id)
            self._blocks.put((view, block_id), block)
        return block

    def _join(self, view: int, block_id: int) -> _JoinedBlock:
        part, first, num = self._readers[self._canonical].places.spans(view=view)[block_id].tolist()
        unit = int(self._units[self._canonical][part])
        pieces = {
            name: [
                self._piece(name, view=view, block_id=found)
                for found in self._covering(name, view).blocks(unit=unit, first=first, num=num).tolist()
            ]
            for name in self._readers
        }
        held = [np.concatenate([piece.positions for piece in found]) for found in pieces.values()]
        common = reduce(np.intersect1d, held)
        common = common[(common >= first) & (common < first + num)]
        digests = np.full(len(common), NO_DIGEST, dtype=np.uint64)
        targets: dict[str, AlignedRows] = {}
        label_blocks, label_rows = np.zeros_like(common), np.zeros_like(common)
        for name, found in pieces.items():
            rows: list[AlignedRows] = []
            for piece in found:
                here = np.isin(common, piece.positions, assume_unique=True)
                chosen = np.searchsorted(piece.positions, common[here])
                if piece.rows is None:
                    label_blocks[here], label_rows[here] = piece.block_id, chosen
                    continue
                digests[here] = np.where(digests[here] == NO_DIGEST, piece.digests[chosen], digests[here])
                rows.append(piece.rows.take(chosen))
            if rows:
                targets[name] = concatenate_rows(rows)
        return _JoinedBlock(label_blocks=label_blocks, label_rows=label_rows, digests=digests, targets=targets)

    def read(self, *, epoch: int, block_ids: IntArray, rows: IntArray) -> StreamRows:
        """Return rows by (block, row inside the block), in the order asked for.

        Raises:
            CorruptError: stored labels are not what was committed.
            MismatchError: labels and source do not hold the same samples, or teachers saw other pixels.
            SourceError, SampleError: a picture cannot be read.
        """
        view = epoch % self._num_views
        unique, inverse = np.unique(block_ids, return_inverse=True)
        order = np.argsort(inverse, kind="stable")
        bounds = np.searchsorted(inverse[order], np.arange(len(unique) + 1))
        restore = np.argsort(order, kind="stable")
        blocks = [self._joined(view, block_id) for block_id in unique.tolist()]
        chosen = [rows[order[bounds[index] : bounds[index + 1]]] for index in range(len(unique))]
        taken = list(zip(blocks, chosen, strict=True))
        found = self._labels.read(
            epoch=epoch,
            block_ids=np.concatenate([block.label_blocks[asked] for block, asked in taken])[restore],
            rows=np.concatenate([block.label_rows[asked] for block, asked in taken])[restore],
        )
        digests = np.concatenate([block.digests[asked] for block, asked in taken])[restore]
        return replace(
            found,
            view_digests=_merged(found, digests),
            targets={
                name: concatenate_rows([block.targets[name].take(asked) for block, asked in taken]).take(restore)
                for name in self._readers
                if name != _LABELS
            },
        )


def _merged(found: StreamRows, digests: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return the digests of both, of the soft labels where both have one; they must agree."""
    mine = found.view_digests
    differing = np.flatnonzero((mine != digests) & (mine != NO_DIGEST) & (digests != NO_DIGEST))
    if len(differing):
        row = int(differing[0])
        raise MismatchError(
            f"sample {found.keys[row]!r}, view {found.view_indices[row]}: the soft labels are of pixels with digest "
            f"{mine[row]:016x}, the further targets of {digests[row]:016x}, so they are not of one view; run decant label for "
            "both on machines with one version of Pillow"
        )
    return np.where(mine == NO_DIGEST, digests, mine)
