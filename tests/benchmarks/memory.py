"""Peak memory of labelling and of reading, for a set and for one ten times its size."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from tests.benchmarks.children import Child, write_config
from tests.benchmarks.pictures import write_tars
from tests.benchmarks.report import Cell, Goal, Report, Table
from tests.benchmarks.teachers import write_teacher

_LIMIT = 5.0
_PICTURE_SIZE = 16
_NUM_CLASSES = 100
_K = 10
_WINDOW_BLOCKS = 16
_READ_BATCH = 256
_MIB = 1 << 20

_METHOD = """\
Most resident memory a process held at once, as the system counted it: `decant label` with one worker, and a process that
reads the label set joined with its pictures for one epoch in shuffled order (window of {window} blocks). WebDataset tars of
{unit_size} pictures of {picture} x {picture} pixels, one a unit; a tiny vision transformer labels them, one view, top-{k} of {classes}
classes. Medians of {num_repeats} runs, the sizes in turn. What grows with the data is what grows with the number of units.
"""


@dataclass(frozen=True, kw_only=True)
class _Ended:
    """A process that ended well."""

    num_rows: int
    peak_mib: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class _Size:
    small_units: int
    large_units: int
    unit_size: int
    num_repeats: int


_FULL = _Size(small_units=100, large_units=1000, unit_size=100, num_repeats=3)
_QUICK = _Size(small_units=4, large_units=8, unit_size=20, num_repeats=1)


def run(*, quick: bool, folder: Path, say: Callable[[str], None]) -> Report:
    """Label and read both sizes."""
    size = _QUICK if quick else _FULL
    teacher = write_teacher(
        folder / "teacher.safetensors",
        name="test_vit",
        num_classes=_NUM_CLASSES,
        kwargs={"img_size": _PICTURE_SIZE, "patch_size": 8, "depth": 1},
    )
    counts = (size.small_units, size.large_units)
    for num_units in counts:
        say(f"writing {num_units} tars of {size.unit_size} pictures")
        write_tars(folder / f"tars-{num_units}", num_tars=num_units, pictures_per_tar=size.unit_size, size=_PICTURE_SIZE)
    jobs: dict[str, Callable[[int, int], _Ended]] = {
        "decant label": partial(_label, folder, teacher, size.unit_size),
        "reading an epoch": partial(_read, folder),
    }
    peaks: dict[tuple[str, int], list[float]] = {(name, count): [] for name in jobs for count in counts}
    seconds: dict[tuple[str, int], list[float]] = {place: [] for place in peaks}
    for repeat in range(size.num_repeats):
        for num_units in counts if repeat % 2 == 0 else counts[::-1]:
            for name, job in jobs.items():
                ended = job(num_units, repeat)
                if ended.num_rows != num_units * size.unit_size:
                    raise AssertionError(f"{name}: {ended.num_rows} of {num_units * size.unit_size} rows")
                peaks[name, num_units].append(ended.peak_mib)
                seconds[name, num_units].append(ended.seconds)
                say(f"repeat {repeat + 1} of {size.num_repeats}: {name}, {num_units} units: {ended.peak_mib:.1f} MiB")
    rows: list[tuple[Cell, ...]] = []
    goals = []
    for name in jobs:
        small, large = (median(peaks[name, count]) for count in counts)
        growth = 100 * (large / small - 1)
        for count in counts:
            found = peaks[name, count]
            rows.append(
                (f"{name}, {count * size.unit_size:,} rows", median(found), min(found), max(found), median(seconds[name, count]))
            )
        goals.append(Goal(what=f"{name}: growth of the peak", measured=growth, limit=_LIMIT, unit="%"))
    return Report(
        name="memory",
        title="Memory",
        method=_METHOD.format(
            window=_WINDOW_BLOCKS,
            unit_size=size.unit_size,
            picture=_PICTURE_SIZE,
            k=_K,
            classes=_NUM_CLASSES,
            num_repeats=size.num_repeats,
        ),
        tables=(Table(title="Peak memory", columns=("process", "MiB, median", "least", "most", "seconds"), rows=tuple(rows)),),
        goals=tuple(goals),
        quick=quick,
    )


def _label(folder: Path, teacher: dict[str, Any], batch_size: int, num_units: int, repeat: int) -> _Ended:
    config = {
        "name": "benchmark",
        "cache": str(folder / f"cache-{num_units}-{repeat}"),
        "source": {"kind": "webdataset", "path": str(folder / f"tars-{num_units}")},
        "teacher": teacher,
        "target": {"k": _K, "codec": {"kind": "compact"}},
        "generation": {"batch_size": batch_size},
    }
    path = write_config(folder / f"label-{num_units}-{repeat}.yaml", config)
    return _measure(folder, "decant", "label", str(path), "--json")


def _read(folder: Path, num_units: int, repeat: int) -> _Ended:
    source = {"kind": "webdataset", "path": str(folder / f"tars-{num_units}")}
    return _measure(
        folder,
        "tests.benchmarks.read_epoch",
        f"--cache={folder / f'cache-{num_units}-{repeat}'}",
        f"--source={json.dumps(source)}",
        f"--window-blocks={_WINDOW_BLOCKS}",
        f"--batch-size={_READ_BATCH}",
    )


def _measure(folder: Path, module: str, *arguments: str) -> _Ended:
    file = folder / "peak-bytes.txt"
    finished = Child("tests.benchmarks.peak_memory", [str(file), module, *arguments]).finish()
    return _Ended(num_rows=finished.output["num_rows"], peak_mib=int(file.read_text()) / _MIB, seconds=finished.wall_seconds)
