"""Labelling with `decant label` against a loop written by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.cache import Cache
from storage.config.source import ImageFolderConfig
from storage.label_set import LabelSet
from storage.soft_labels import concatenate
from storage.sources import open_source
from storage.specs import CompactCodec
from storage.streams.label_stream import LabelStream
from tests.benchmarks.children import Child, decant, write_config
from tests.benchmarks.compare import dense, differing_rows
from tests.benchmarks.conditions import usable_cores
from tests.benchmarks.pictures import write_folder
from tests.benchmarks.report import Cell, Goal, Report, Table
from tests.benchmarks.teachers import write_teacher

_GOAL = 0.95
_K = 10
_NUM_CLASSES = 1000
_DECODE_THREADS = 2
_MISMATCH_LIMIT = 0.005
"""Share of rows whose classes may differ: batches of another size round otherwise, and classes may tie."""

_METHOD = """\
Rows a second from the first picture's read to the last label's commit, start-up left out: {num_pictures} JPEGs of {width} x {height}
pixels, {model} with random weights at {size} px in float32, batches of {batch_size}, top-{k}, the teacher's evaluation view, each run a
process of its own. Decant: `decant label`, {num_units} units, compact codec, into a new cache every time. The loop by hand: timm and
torchvision only, the same pixels, softmax and top-k, results kept in memory, nothing stored; pictures are decoded ahead in
{decode_threads} threads, as in Decant, or by a DataLoader's worker processes. One process has {cores} torch threads; each of two has
{half}. Two processes by hand share the list half and half and begin at once. {num_repeats} repeats, in turn, each beginning with another;
medians. The labels of both were compared before they counted.

A share is Decant's rate over that of the faster loop by hand with as many processes.
"""


@dataclass(frozen=True, kw_only=True)
class _Size:
    model: str
    num_pictures: int
    unit_size: int
    batch_size: int
    num_repeats: int
    width: int
    height: int


_FULL = _Size(model="resnet18", num_pictures=512, unit_size=128, batch_size=32, num_repeats=3, width=500, height=375)
_QUICK = _Size(model="test_vit", num_pictures=16, unit_size=4, batch_size=4, num_repeats=1, width=200, height=180)


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """One run.

    Attributes:
        start_seconds: process wall time outside of the labelling itself; None for the loop by hand.
    """

    rows_per_second: float
    start_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class _Setting:
    """What all runs share."""

    size: _Size
    folder: Path
    pictures: Path
    list_file: Path
    teacher: dict[str, Any]


def run(*, quick: bool, folder: Path, say: Callable[[str], None]) -> Report:
    """Measure both in turn."""
    size = _QUICK if quick else _FULL
    say(f"writing {size.num_pictures} pictures")
    paths = write_folder(
        folder / "pictures", num_pictures=size.num_pictures, num_classes=10, width=size.width, height=size.height
    )
    list_file = folder / "pictures.txt"
    list_file.write_text("".join(f"{path}\n" for path in paths))
    teacher = write_teacher(folder / "teacher.safetensors", name=size.model, num_classes=_NUM_CLASSES)
    setting = _Setting(size=size, folder=folder, pictures=folder / "pictures", list_file=list_file, teacher=teacher)
    contestants: dict[str, Callable[[int], _Measured]] = {
        "decant label, 1 worker": partial(_run_decant, setting, workers=1),
        "by hand, 1 process, threads": partial(_run_by_hand, setting, num_processes=1, loader_workers=0),
        "by hand, 1 process, DataLoader": partial(_run_by_hand, setting, num_processes=1, loader_workers=2),
        "decant label, 2 workers": partial(_run_decant, setting, workers=2),
        "by hand, 2 processes, threads": partial(_run_by_hand, setting, num_processes=2, loader_workers=0),
        "by hand, 2 processes, DataLoader": partial(_run_by_hand, setting, num_processes=2, loader_workers=1),
    }
    if quick:
        del contestants["by hand, 2 processes, DataLoader"]
    found: dict[str, list[_Measured]] = {name: [] for name in contestants}
    names = list(contestants)
    for repeat in range(size.num_repeats):
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            measured = contestants[name](repeat)
            found[name].append(measured)
            say(f"repeat {repeat + 1} of {size.num_repeats}: {name}: {measured.rows_per_second:.1f} rows/s")
    _check(setting)
    return _report(found, size=size, quick=quick)


def _run_decant(setting: _Setting, repeat: int, *, workers: int) -> _Measured:
    size = setting.size
    config = {
        "name": "benchmark",
        "cache": str(setting.folder / f"cache-{workers}-{repeat}"),
        "source": {"kind": "image_folder", "path": str(setting.pictures), "unit_size": size.unit_size},
        "teacher": setting.teacher,
        "target": {"k": _K, "codec": {"kind": "compact"}},
        "generation": {"batch_size": size.batch_size, "decode_threads": _DECODE_THREADS},
    }
    path = write_config(setting.folder / f"decant-{workers}-{repeat}.yaml", config)
    finished = decant("label", str(path), "--workers", str(workers))
    figures = finished.output
    if figures["num_computed_rows"] != size.num_pictures:
        raise AssertionError(f"decant label computed {figures['num_computed_rows']} of {size.num_pictures} rows")
    busy_seconds = figures["num_computed_rows"] / figures["rows_per_second"]
    return _Measured(rows_per_second=figures["rows_per_second"], start_seconds=finished.wall_seconds - busy_seconds)


def _run_by_hand(setting: _Setting, repeat: int, *, num_processes: int, loader_workers: int) -> _Measured:
    size = setting.size
    children = [
        Child(
            "tests.benchmarks.peers.bare_loop",
            [
                f"--list={setting.list_file}",
                *("--share", str(index), str(num_processes)),
                f"--model={size.model}",
                f"--checkpoint={setting.teacher['checkpoint']}",
                f"--num-classes={_NUM_CLASSES}",
                f"--k={_K}",
                f"--batch-size={size.batch_size}",
                f"--torch-threads={max(1, usable_cores() // num_processes)}",
                f"--decode-threads={_DECODE_THREADS}",
                f"--loader-workers={loader_workers}",
                f"--output={_output_by_hand(setting, num_processes=num_processes, index=index)}",
            ],
        )
        for index in range(num_processes)
    ]
    for child in children:
        if child.wait_for_line().strip() != "ready":
            raise RuntimeError("the loop by hand did not start")
    for child in children:
        child.send_line("go")
    figures = [child.finish().output for child in children]
    seconds = max(one["ended"] for one in figures) - min(one["started"] for one in figures)
    return _Measured(rows_per_second=sum(one["num_rows"] for one in figures) / seconds)


def _output_by_hand(setting: _Setting, *, num_processes: int, index: int) -> Path:
    return setting.folder / f"by-hand-{num_processes}-{index}.npz"


def _check(setting: _Setting) -> None:
    """Compare the labels of all ways.

    Raises:
        AssertionError: they differ by more than rounding; the rates would mean nothing.
    """
    exact = _dense_by_hand(setting, num_processes=1)
    others = {f"{workers} workers": _dense_of_cache(setting, workers=workers) for workers in (1, 2)}
    others["by hand, 2 processes"] = _dense_by_hand(setting, num_processes=2)
    for name, labels in others.items():
        # A class of a near tie may be in one top-k and not in the other.
        differs = differing_rows(labels, exact, levels=CompactCodec().levels)
        if differs.mean() > _MISMATCH_LIMIT:
            raise AssertionError(
                f"{name}: {int(differs.sum())} of {len(differs)} labels differ from those of one process by hand"
            )


def _dense_by_hand(setting: _Setting, *, num_processes: int) -> npt.NDArray[np.float64]:
    parts = []
    for index in range(num_processes):
        with np.load(_output_by_hand(setting, num_processes=num_processes, index=index)) as file:
            parts.append(dense(file["class_ids"], file["probs"], num_classes=_NUM_CLASSES))
    return np.concatenate(parts)


def _dense_of_cache(setting: _Setting, *, workers: int) -> npt.NDArray[np.float64]:
    label_set = LabelSet.open(Cache.at(str(setting.folder / f"cache-{workers}-0")), name_or_id="benchmark")
    source = open_source(ImageFolderConfig(kind="image_folder", path=str(setting.pictures), unit_size=setting.size.unit_size))
    stream = LabelStream(label_set, source=source)
    num_blocks = len(stream.block_rows(epoch=0))
    stored = concatenate([stream.labels_of(view=0, block_id=block_id).soft_labels for block_id in range(num_blocks)])
    return dense(stored.class_ids, stored.probs, num_classes=_NUM_CLASSES)


def _report(found: dict[str, list[_Measured]], *, size: _Size, quick: bool) -> Report:
    middle = {name: median(one.rows_per_second for one in runs) for name, runs in found.items()}

    def fastest(names: Sequence[str]) -> float:
        return max(middle[name] for name in names)

    best = {count: fastest([name for name in middle if name.startswith(f"by hand, {count} ")]) for count in (1, 2)}
    rows: list[tuple[Cell, ...]] = []
    for name, runs in found.items():
        starts = [one.start_seconds for one in runs if one.start_seconds is not None]
        rates = [one.rows_per_second for one in runs]
        start = median(starts) if starts else None
        rows.append((name, middle[name], min(rates), max(rates), middle[name] / best[1], middle[name] / best[2], start))
    goals = tuple(
        Goal(
            what=f"{name}: share of the loop by hand in {count} process{'es' if count > 1 else ''}",
            measured=middle[name] / best[count],
            limit=_GOAL,
            at_most=False,
        )
        for count, name in ((1, "decant label, 1 worker"), (2, "decant label, 2 workers"))
    )
    return Report(
        name="labelling",
        title="Labelling",
        method=_METHOD.format(
            **{name: getattr(size, name) for name in ("num_pictures", "width", "height", "model", "batch_size", "num_repeats")},
            size=224 if size is _FULL else 160,
            k=_K,
            num_units=-(-size.num_pictures // size.unit_size),
            decode_threads=_DECODE_THREADS,
            cores=usable_cores(),
            half=max(1, usable_cores() // 2),
        ),
        tables=(
            Table(
                title="Rows a second",
                columns=("way", "median", "slowest", "fastest", "of best by hand, 1", "of best by hand, 2", "start-up, s"),
                rows=tuple(rows),
            ),
        ),
        goals=goals,
        quick=quick,
    )
