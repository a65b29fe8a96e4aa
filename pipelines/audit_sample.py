"""Which rows of a label set an audit looks at: spread over units and views, repeatable from a seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from storage.checked_reading import check_keys, read_block, read_samples
from storage.codecs.rounding import rounding_limits
from storage.codecs.values import TargetValues
from storage.features import FeatureRows
from storage.label_blocks import LabelBlock, decode_label_block
from storage.label_set import LabelSet
from storage.parts import BlockExtent
from storage.specs import SoftLabelsSpec, TargetSpec
from storage.target_blocks import TargetBlock, decode_target_block
from storage.views import view_uniforms


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredRow:
    """What is stored of one view of a picture.

    Attributes:
        position: of the sample in its unit.
        values: as stored: one row of soft labels, or the rows of vectors.
        limits: of vectors, how far rounding alone may have moved each number.
        view_digest: digest of the rendered view; 0 where none is stored.
        digest_position: position of the nearest sample of the same block whose view digest is stored; None: there is none.
    """

    unit_name: str
    key: str
    position: int
    view: int
    target: TargetSpec
    values: TargetValues
    limits: FeatureRows | None
    digest_key: str | None
    digest_position: int | None
    view_digest: int


def choose_places(
    *, num_samples: int, num_views: int, num_rows: int, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return int64 [rows] samples and views, all pairs different, evenly spread over both.

    Samples are split into as many equal runs as rows are asked for and one is drawn from each; views take turns. Where more rows
    than samples are asked for, every sample is taken in another view again.
    """
    num_rows = min(num_rows, num_samples * num_views)
    uniforms = view_uniforms(seed, key="audit", view_index=0, count=num_rows + 1)
    offset = int(uniforms[0] * num_views)
    samples, views = [], []
    for turn in range(-(-num_rows // max(num_samples, 1))):
        taken = min(num_rows - turn * num_samples, num_samples)
        places = np.arange(taken)
        drawn = uniforms[1 + turn * num_samples :][:taken]
        starts = (places * num_samples) // taken
        chosen = starts + (drawn * (((places + 1) * num_samples) // taken - starts)).astype(np.int64)
        samples.append(chosen)
        views.append(((places if num_rows < num_samples else chosen) + offset + turn) % num_views)
    empty = np.zeros(0, dtype=np.int64)
    return (np.concatenate(samples), np.concatenate(views)) if samples else (empty, empty)


def chosen_places(label_set: LabelSet, *, num_rows: int, seed: int) -> dict[int, list[tuple[int, int]]]:
    """Return view and position of each row that is looked at, ascending, by the part that holds it."""
    table, manifest = label_set.parts, label_set.manifest
    names = table.column("unit_name").combine_chunks().dictionary_encode()
    unit_of = names.indices.to_numpy()
    sizes = np.zeros(len(names.dictionary), dtype=np.int64)
    sizes[unit_of] = table.column("num_samples").to_numpy()
    ends = np.cumsum(sizes)
    first_views, num_views = (table.column(name).to_numpy() for name in ("first_view", "num_views"))
    samples, views = choose_places(
        num_samples=int(ends[-1]) if len(ends) else 0, num_views=manifest.num_views, num_rows=num_rows, seed=seed
    )
    units = np.searchsorted(ends, samples, side="right")
    positions = samples - (ends - sizes)[units]
    asked: dict[int, list[tuple[int, int]]] = {}
    for unit, position, view in zip(units.tolist(), positions.tolist(), views.tolist(), strict=True):
        holding = np.flatnonzero((unit_of == unit) & (first_views <= view) & (view < first_views + num_views))
        asked.setdefault(int(holding[0]), []).append((view, position))
    return {part: sorted(places) for part, places in sorted(asked.items())}


def stored_rows(label_set: LabelSet, *, num_rows: int, seed: int) -> Iterator[StoredRow]:
    """Yield stored rows in the order of the label set; a dead letter's place goes to the next row of its block.

    Raises:
        CorruptError: a block is not what was committed.
    """
    for part, asked in chosen_places(label_set, num_rows=num_rows, seed=seed).items():
        yield from _rows_of_part(label_set, part=part, asked=asked)


def _rows_of_part(label_set: LabelSet, *, part: int, asked: list[tuple[int, int]]) -> Iterator[StoredRow]:
    table, samples = label_set.parts, read_samples(label_set, part=part)
    keys = samples.keys
    blocks = [BlockExtent(**block) for block in table.column("blocks")[part].as_py()]
    seen: set[tuple[int, int]] = set()
    of_labels = isinstance(label_set.manifest.request.target, SoftLabelsSpec)
    decode: Callable[..., LabelBlock | TargetBlock] = decode_label_block if of_labels else decode_target_block
    decoded: tuple[BlockExtent, LabelBlock | TargetBlock] | None = None
    for view, position in asked:
        extent = next(b for b in blocks if b.view == view and b.first_sample <= position < b.first_sample + b.num_samples)
        if decoded is None or decoded[0] != extent:
            block = read_block(label_set, part=part, extent=extent, decode=decode)
            check_keys(label_set, block, part=part, extent=extent, table=samples)
            decoded = extent, block
        block = decoded[1]
        if not len(block.positions):
            continue
        row = int(np.searchsorted(block.positions, position)) % len(block.positions)
        found = int(block.positions[row])
        if (view, found) in seen:
            continue
        seen.add((view, found))
        assert block.view_digests is not None
        values, limits = _values_of(block, row=row)
        proven = np.flatnonzero(block.view_digests)
        nearest = int(proven[np.abs(proven - row).argmin()]) if len(proven) else None
        digest_position = None if nearest is None else int(block.positions[nearest])
        yield StoredRow(
            unit_name=table.column("unit_name")[part].as_py(),
            key=keys[found],
            position=found,
            view=view,
            target=block.target,
            values=values,
            limits=limits,
            digest_key=None if digest_position is None else keys[digest_position],
            digest_position=digest_position,
            view_digest=0 if nearest is None else int(block.view_digests[nearest]),
        )


def _values_of(block: LabelBlock | TargetBlock, *, row: int) -> tuple[TargetValues, FeatureRows | None]:
    if isinstance(block, LabelBlock):
        return block.soft_labels.take(np.array([row])), None
    return values_of(block, row=row)


def values_of(block: TargetBlock, *, row: int) -> tuple[TargetValues, FeatureRows | None]:
    """Return the values of one sample of a block, and, of vectors, how far rounding alone may have moved each number."""
    rows = np.arange(block.row_offsets[row], block.row_offsets[row + 1])
    limits = None
    if isinstance(block.values, FeatureRows) and not isinstance(block.target, SoftLabelsSpec):
        limits = rounding_limits(block.values, rows=rows, spec=block.target)
    return block.values.take(rows), limits
