"""Pictures with targets of the same views: soft labels, hidden states, attention, relations, embeddings."""

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
from storage.sources.base import Source
from storage.specs import SoftLabelsSpec, TargetSpec
from storage.streams.aligned_rows import AlignedRows, concatenate_rows
from storage.streams.base import NO_DIGEST, StreamRows
from storage.streams.block_reader import BlockReader
from storage.streams.covering import Covering
from storage.streams.joining import require_same_samples, require_same_views, unit_codes
from storage.streams.label_stream import LabelStream
from storage.streams.label_tars import label_tars
from storage.streams.recent import Recent
from storage.streams.unit_pictures import UnitPictures
from storage.target_blocks import TargetBlock

IntArray = npt.NDArray[np.int64]

_OPEN_UNITS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class _Piece:
    """A stored block.

    Attributes:
        positions: int64 [samples that are present], ascending.
        digests: uint64 [samples that are present], NO_DIGEST where none is stored.
    """

    positions: IntArray
    digests: npt.NDArray[np.uint64]
    rows: AlignedRows


@dataclass(frozen=True, kw_only=True, slots=True)
class _JoinedBlock:
    """The samples of a canonical block that every label set holds.

    Attributes:
        part: of the canonical label set, which the block lies in.
        positions: int64 [samples], in their unit.
        digests: uint64 [samples], of what the teachers saw, NO_DIGEST where none stored one.
    """

    part: int
    positions: IntArray
    digests: npt.NDArray[np.uint64]
    targets: dict[str, AlignedRows]


class PictureTargetStream:
    """Rows of one view an epoch, with the targets of one label set or several: epoch e reads view e modulo the number of views.

    A sample that is a dead letter of one label set is left out of all. Blocks of targets differ in size, so values are looked up
    by sample position; the canonical blocks are those of the label set that has most of them.
    """

    def __init__(
        self,
        label_sets: Mapping[str, LabelSet],
        *,
        source: Source,
        targets: Mapping[str, TargetSpec] | None = None,
        held_blocks: int = 17,
    ) -> None:
        """Join label sets and a source.

        Args:
            label_sets: by the names of their targets in the experiment.
            source: the pictures.
            targets: of the label sets whose targets are read, what they are narrowed to; of the others only views and samples
                are. None: all, as they are.
            held_blocks: decoded blocks of a label set that are kept; at least the blocks of a shuffle window.

        Raises:
            MismatchError: label sets do not hold what `targets` asks for, are not of the same samples and views, or the source
                lacks a unit that was labelled.
        """
        if not label_sets:
            raise ValueError("a stream needs a label set")
        given = {name: label_set.manifest.request.target for name, label_set in label_sets.items()}
        self._targets: dict[str, TargetSpec] = dict(given if targets is None else targets)
        self._readers = {name: BlockReader(label_set, target=self._targets.get(name)) for name, label_set in label_sets.items()}
        # Soft labels of pictures have blocks of their own.
        self._soft_labels = {
            name: LabelStream(label_sets[name], source=source, target=reader.target)
            for name, reader in self._readers.items()
            if isinstance(reader.target, SoftLabelsSpec)
        }
        self._held_blocks = held_blocks
        (first_name, first), *others = self._readers.items()
        self._num_views = first.label_set.manifest.num_views
        self._units = dict(zip(self._readers, unit_codes(*self._readers.values()), strict=True))
        for name, reader in others:
            require_same_views(first, reader, names=(first_name, name))
            require_same_samples(
                first,
                reader,
                names=(first_name, name),
                units=(self._units[first_name], self._units[name]),
                num_views=self._num_views,
            )
        self._canonical = max(self._readers, key=lambda name: len(self._readers[name].places.rows(view=0)))
        self._pictures = UnitPictures(self._readers[self._canonical], source=source, held_units=min(held_blocks, _OPEN_UNITS))
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

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names of the source in the order of labels; None where it does not say."""
        return self._pictures.classes

    def identity(self) -> str:
        """Return a fingerprint of the rows and their order."""
        label_sets = {name: reader.label_set.manifest.id for name, reader in self._readers.items()}
        targets = {name: target.to_json() for name, target in self._targets.items()}
        return fingerprint({"stream": "picture labels", "label_sets": label_sets, "targets": targets})

    def label_tars(self) -> dict[str, dict[str, str]]:
        """Return what tars are read; see `ReadsLabelSets`."""
        return label_tars(reader.label_set for reader in self._readers.values())

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
            counts[block_id] = len(self._joined(view, block_id).positions)
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

    def _pieces_over(self, name: str, *, view: int, unit: int, samples: range) -> list[_Piece]:
        """Return the blocks of a label set that hold any of some samples of a unit, by sample."""
        blocks = self._covering(name, view).blocks(unit=unit, first=samples.start, num=len(samples))
        return [self._piece(name, view=view, block_id=block_id, samples=samples) for block_id in blocks.tolist()]

    def _piece(self, name: str, *, view: int, block_id: int, samples: range) -> _Piece:
        piece = self._pieces.get((name, view, block_id))
        if piece is None:
            piece = self._read_piece(name, view=view, block_id=block_id)
            place = self._readers[name].places.place(view=view, block_id=block_id)
            # A block within these samples is joined whole; only one that reaches beyond is needed again.
            if place.first_sample < samples.start or place.first_sample + place.num_samples > samples.stop:
                self._pieces.put((name, view, block_id), piece)
        return piece

    def _read_piece(self, name: str, *, view: int, block_id: int) -> _Piece:
        if name in self._soft_labels:
            labels = self._soft_labels[name].labels_of(view=view, block_id=block_id)
            offsets = np.arange(len(labels.positions) + 1, dtype=np.int64)
            found = AlignedRows(target=labels.target, offsets=offsets, values=labels.soft_labels)
            return _Piece(positions=labels.positions, digests=labels.view_digests, rows=found)
        reader = self._readers[name]
        block: TargetBlock = reader.block(view=view, block_id=block_id)
        if block.view_digests is None:
            raise MismatchError(f"label set {reader.label_set.manifest.name!r} is of texts; a target of pictures was asked for")
        rows = AlignedRows(target=block.target, offsets=block.row_offsets, values=block.values).narrowed(reader.target)
        return _Piece(positions=block.positions, digests=block.view_digests, rows=rows)

    def _joined(self, view: int, block_id: int) -> _JoinedBlock:
        block = self._blocks.get((view, block_id))
        if block is None:
            block = self._join(view, block_id)
            self._blocks.put((view, block_id), block)
        return block

    def _join(self, view: int, block_id: int) -> _JoinedBlock:
        place = self._readers[self._canonical].places.place(view=view, block_id=block_id)
        part, unit = place.part, int(self._units[self._canonical][place.part])
        samples = range(place.first_sample, place.first_sample + place.num_samples)
        pieces = {name: self._pieces_over(name, view=view, unit=unit, samples=samples) for name in self._readers}
        common = reduce(np.intersect1d, [np.concatenate([piece.positions for piece in found]) for found in pieces.values()])
        common = common[(common >= samples.start) & (common < samples.stop)]
        digests = np.full(len(common), NO_DIGEST, dtype=np.uint64)
        targets: dict[str, AlignedRows] = {}
        for name, found in pieces.items():
            theirs = np.full(len(common), NO_DIGEST, dtype=np.uint64)
            rows: list[AlignedRows] = []
            for piece in found:
                here = np.isin(common, piece.positions, assume_unique=True)
                chosen = np.searchsorted(piece.positions, common[here])
                theirs[here] = piece.digests[chosen]
                if name in self._targets:
                    rows.append(piece.rows if len(chosen) == len(piece.rows) else piece.rows.take(chosen))
            differing = np.flatnonzero((digests != theirs) & (digests != NO_DIGEST) & (theirs != NO_DIGEST))
            if len(differing):
                row = int(differing[0])
                key = self._readers[self._canonical].table(part).keys[int(common[row])]
                raise MismatchError(
                    f"sample {key!r}, view {view}: target {name!r} is of pixels with digest {theirs[row]:016x}, those before it "
                    f"of {digests[row]:016x}, so they are not of one view; run decant label for all of them on machines with one "
                    "version of Pillow"
                )
            digests = np.where(digests == NO_DIGEST, theirs, digests)
            if rows:
                targets[name] = rows[0] if len(rows) == 1 else concatenate_rows(rows)
        return _JoinedBlock(part=part, positions=common, digests=digests, targets=targets)

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
        parts = np.concatenate([np.full(len(asked), block.part, dtype=np.int64) for block, asked in taken])[restore]
        positions = np.concatenate([block.positions[asked] for block, asked in taken])[restore]
        return replace(
            self._pictures.read(view=view, parts=parts, positions=positions),
            view_digests=np.concatenate([block.digests[asked] for block, asked in taken])[restore],
            targets={
                name: concatenate_rows([block.targets[name].take(asked) for block, asked in taken]).take(restore)
                for name in self._targets
            },
        )
