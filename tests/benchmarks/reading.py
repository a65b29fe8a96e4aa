"""Rows a second from files on disk to tensors, on one core."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from storage.codecs import RankedLabels
from storage.label_set import LabelSet
from storage.samples import SampleTable
from storage.specs import CodecSpec, CompactCodec, ExactCodec, SoftLabelsSpec
from storage.streams.label_stream import LabelStream
from student_training.batch import to_targets
from tests.benchmarks.compare import dense, differing_rows
from tests.benchmarks.label_sets import LabelledNames, UnitLabels, write_label_set
from tests.benchmarks.labels import Logits, copies, image_logits, rank, sample_table
from tests.benchmarks.peers.base import Layout, LayoutRows, check
from tests.benchmarks.peers.parquet_lists import ParquetLists
from tests.benchmarks.peers.tinyvit import TinyViT, TinyViTMapped
from tests.benchmarks.peers.webdataset_samples import WebDatasetPairs, WebDatasetRaw
from tests.benchmarks.report import Cell, Goal, Report, Table
from tests.benchmarks.timing import Rates, one_thread, rates, round_robin

_GOALS = {10: 4e6, 100: 1e6}
_PEERS: tuple[Layout, ...] = (TinyViT(), TinyViTMapped(), ParquetLists())
_SLOW_PEERS: tuple[Layout, ...] = (WebDatasetRaw(), WebDatasetPairs())
"""Read so slowly that they get the rows of one unit only."""

_NUM_CLASSES = 1000

_METHOD = """\
From local files in the page cache to tensors of class ids (int32), probabilities and rest (float32), in one process on one thread.
{num_rows:,} rows in {num_units} units of {num_samples:,} samples x {num_views} views; those that read slowly get one unit. Labels:
{origin}, copied with noise that keeps copies from compressing each other. Medians of {num_passes} passes, all layouts in turn in each
pass, after one that is not counted.

Decant reads through `LabelStream.labels_of`, which reads a block's bytes, checks them against the label set and by their own
checksums, and decodes them, then `torch.from_numpy`; the label set was opened once before. None of the peers checks its bytes, but for
Parquet's own structure. Before it is timed, every reader's rows are compared with what was to be stored: peers bit for bit, Decant's
within the rounding of its codec. TinyViT's reader is its own way (a seek and a read a sample); the memory map of the same file is not,
and shows what unchecked records of fixed width can do.
"""


@dataclass(frozen=True, kw_only=True)
class _Size:
    num_samples: int
    num_units: int
    copies_per_unit: int
    num_passes: int


_FULL = _Size(num_samples=500, num_units=7, copies_per_unit=8, num_passes=9)
_QUICK = _Size(num_samples=24, num_units=2, copies_per_unit=1, num_passes=1)


def run(*, quick: bool, folder: Path, say: Callable[[str], None]) -> Report:
    """Measure how fast each layout is read."""
    size = _QUICK if quick else _FULL
    real = image_logits().first(size.num_samples)
    table: list[tuple[Cell, ...]] = []
    goals: list[Goal] = []
    num_rows = 0
    with one_thread():
        for k, goal in _GOALS.items():
            found = _race(real, k=k, size=size, folder=folder / f"top-{k}", say=say)
            for codec in ("exact", "compact"):
                measured = found[f"decant {codec}"]
                num_rows = measured.num_rows
                what = f"{codec}, K={k}: rows a second"
                goals.append(Goal(what=what, measured=measured.per_wall_second, limit=goal, at_most=False))
            compact = found["decant compact"].per_wall_second
            table += [
                (f"{name}, K={k}", m.per_wall_second, m.per_cpu_second, compact / m.per_wall_second, m.num_rows)
                for name, m in found.items()
            ]
    return Report(
        name="reading",
        title="Reading",
        method=_METHOD.format(
            num_rows=num_rows,
            num_units=size.num_units,
            num_samples=real.num_samples * size.copies_per_unit,
            num_views=real.num_views,
            num_passes=size.num_passes,
            origin=real.origin,
        ),
        tables=(
            Table(
                title="Rows a second on one thread",
                columns=("layout", "a wall second", "a CPU second", "compact is faster by", "rows a pass"),
                rows=tuple(table),
            ),
        ),
        goals=tuple(goals),
        quick=quick,
    )


def _race(real: Logits, *, k: int, size: _Size, folder: Path, say: Callable[[str], None]) -> dict[str, Rates]:
    """Write all layouts of one K, check them, and read them in turn."""
    say(f"K={k}: making {size.num_units} units")
    units = _make_units(real, k=k, size=size)
    views = range(len(units[0].views))
    expected = [_stack([unit.views[view].rows for unit in units]) for view in views]
    contestants: dict[str, Callable[[], int]] = {}
    choice: tuple[CodecSpec, ...] = (ExactCodec(), CompactCodec())
    for codec in choice:
        say(f"K={k}: writing and checking decant {codec.kind}")
        target = SoftLabelsSpec(num_classes=_NUM_CLASSES, k=k, codec=codec)
        label_set = write_label_set(folder / codec.kind, target=target, units=units)
        stream = LabelStream(label_set, source=LabelledNames(label_set))
        _check_ours(stream, label_set=label_set, expected=expected)
        contestants[f"decant {codec.kind}"] = partial(_read_ours, stream, num_views=len(views))
    everything = LayoutRows(samples=_all_samples(units), views=expected)
    one_unit = LayoutRows(samples=units[0].samples, views=[batch.rows for batch in units[0].views])
    for layout in (*_PEERS, *_SLOW_PEERS):
        say(f"K={k}: writing and checking {layout.name}")
        place, rows = folder / type(layout).__name__, one_unit if layout in _SLOW_PEERS else everything
        layout.write(place, rows=rows)
        check(layout, folder=place, rows=rows)
        contestants[layout.name] = partial(_read_peer, layout, folder=place, k=k)
    passes = round_robin(
        contestants, num_passes=size.num_passes, on_pass=lambda index: say(f"K={k}: pass {index + 1} of {size.num_passes}")
    )
    return {name: rates(measured) for name, measured in passes.items()}


def _make_units(real: Logits, *, k: int, size: _Size) -> list[UnitLabels]:
    spec = SoftLabelsSpec(num_classes=_NUM_CLASSES, k=k, codec=ExactCodec())
    units = []
    for index in range(size.num_units):
        logits = copies(real, num_copies=size.copies_per_unit, first=index * size.copies_per_unit)
        batches = [rank(logits.view(view), spec=spec) for view in range(logits.num_views)]
        units.append(UnitLabels(samples=sample_table(logits.view(0), unit=index), views=batches))
    return units


def _stack(rows: Sequence[RankedLabels]) -> RankedLabels:
    return RankedLabels(
        class_ids=np.concatenate([part.class_ids for part in rows]),
        log_probs=np.concatenate([part.log_probs for part in rows]),
        log_rest=np.concatenate([part.log_rest for part in rows]),
    )


def _all_samples(units: Sequence[UnitLabels]) -> SampleTable:
    keys = tuple(key for unit in units for key in unit.samples.keys)
    return SampleTable(keys=keys, labels=np.concatenate([unit.samples.labels for unit in units]))


def _read_ours(stream: LabelStream, *, num_views: int) -> int:
    num_rows = 0
    for view in range(num_views):
        for block_id in range(len(stream.block_rows(epoch=view))):
            targets = to_targets(stream.labels_of(view=view, block_id=block_id).soft_labels)
            num_rows += len(targets.rest)
    return num_rows


def _read_peer(layout: Layout, *, folder: Path, k: int) -> int:
    return sum(len(batch.rest) for batch in layout.read(folder, k=k))


def _check_ours(stream: LabelStream, *, label_set: LabelSet, expected: Sequence[RankedLabels]) -> None:
    """Compare every row with the exact one; a class's probability may differ by the rounding of its codec.

    Raises:
        AssertionError: the reader gives something else; its speed would mean nothing.
    """
    codec = label_set.manifest.request.soft_labels.codec
    for view, rows in enumerate(expected):
        start = 0
        for block_id in range(len(stream.block_rows(epoch=view))):
            found = stream.labels_of(view=view, block_id=block_id).soft_labels
            span = slice(start, start + len(found))
            start += len(found)
            exact = dense(rows.class_ids[span], np.exp(rows.log_probs[span].astype(np.float64)), num_classes=_NUM_CLASSES)
            stored = dense(found.class_ids, found.probs, num_classes=_NUM_CLASSES)
            levels = codec.levels if isinstance(codec, CompactCodec) else None
            sums = found.probs.sum(axis=1) + found.rest
            if differing_rows(stored, exact, levels=levels).any() or np.abs(sums - 1).max() > 1e-5:
                raise AssertionError(f"decant {codec.kind}: view {view}, block {block_id} differs from what was stored")
        if start != len(rows):
            raise AssertionError(f"decant {codec.kind}: {start} of {len(rows)} rows of view {view} are there")
