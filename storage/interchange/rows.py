"""Rows of a label set in canonical order, with keys and hard labels, without the pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from storage.checked_reading import check_block, check_keys, read_block, read_samples
from storage.errors import MismatchError
from storage.label_blocks import decode_label_block
from storage.label_set import LabelSet
from storage.narrowing import narrow
from storage.samples import SampleTable
from storage.soft_labels import SoftLabels
from storage.specs import MaskedTokensView, TokensView
from storage.streams.block_places import BlockPlace, BlockPlaces


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledRows:
    """The rows of one block.

    Attributes:
        keys: sample keys.
        labels: int64 [rows], hard labels, NO_LABEL where there is none.
    """

    view: int
    keys: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    soft_labels: SoftLabels


@dataclass(frozen=True, kw_only=True)
class RowReader:
    """Reads some views of a label set, view by view, each in the order of its source.

    Attributes:
        views: ascending.
    """

    label_set: LabelSet
    views: tuple[int, ...]
    _places: BlockPlaces

    @classmethod
    def of(cls, label_set: LabelSet, *, views: Iterable[int] | None) -> RowReader:
        """Return a reader of the given views; None: of all.

        Raises:
            MismatchError: the label set has no such view, or none is asked for, or it is of texts.
        """
        if isinstance(label_set.manifest.request.view, TokensView | MaskedTokensView):
            raise MismatchError(
                f"label set {label_set.manifest.name!r} is of texts, whose rows go with tokens that no layout holds; choose one "
                "of pictures, or read it with storage.streams.text_stream.TextLabelStream"
            )
        num_views = label_set.manifest.num_views
        chosen = tuple(range(num_views)) if views is None else tuple(sorted(set(views)))
        beyond = [view for view in chosen if not 0 <= view < num_views]
        if beyond or not chosen:
            raise MismatchError(
                f"label set {label_set.manifest.name!r} has views 0 to {num_views - 1}, asked for were {beyond or 'none'}; "
                "name views that it has, or leave them out for all"
            )
        return cls(label_set=label_set, views=chosen, _places=BlockPlaces(label_set.parts, num_views=num_views))

    @property
    def num_rows(self) -> int:
        """Rows of all chosen views."""
        return sum(int(self._places.rows(view=view).sum()) for view in self.views)

    @property
    def num_missing(self) -> int:
        """Samples of the chosen views that have no row: dead letters."""
        return len(self.views) * self.label_set.manifest.num_samples - self.num_rows

    def read(self, view: int) -> Iterator[LabelledRows]:
        """Yield the blocks of a view that hold any row, checked as a training stream checks them. One is held at a time.

        Raises:
            CorruptError: stored labels are not what was committed.
        """
        table_part, table = -1, SampleTable(keys=(), labels=np.zeros(0, dtype=np.int64))
        for block_id in np.flatnonzero(self._places.rows(view=view)).tolist():
            place = self._places.place(view=view, block_id=block_id)
            if place.part != table_part:
                table_part, table = place.part, read_samples(self.label_set, part=place.part)
            yield self._read_block(place, view=view, table=table)

    def _read_block(self, place: BlockPlace, *, view: int, table: SampleTable) -> LabelledRows:
        target = self.label_set.manifest.request.soft_labels
        part, extent = place.part, place.extent
        block = read_block(self.label_set, part=part, extent=extent, decode=decode_label_block)
        said = (view, place.first_sample, place.num_samples, place.num_rows)
        check_block(self.label_set, block, part=part, extent=extent, said=said, target=target)
        check_keys(self.label_set, block, part=part, extent=extent, table=table)
        soft_labels = block.soft_labels
        if block.target != target:
            soft_labels = narrow(soft_labels, asked=target)
        return LabelledRows(
            view=view,
            keys=tuple(table.keys[position] for position in block.positions.tolist()),
            labels=table.labels[block.positions],
            soft_labels=soft_labels,
        )


def parse_views(text: str) -> Sequence[int]:
    """Return the views that a text such as "0-3,7" names.

    Raises:
        MismatchError: it is no such list.
    """
    views: list[int] = []
    for piece in text.split(","):
        first, dash, last = piece.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise MismatchError(f"views {text!r} are not understood; give numbers and ranges, as in 0-3,7")
        views += range(int(first), int(last or first) + 1)
    return views
