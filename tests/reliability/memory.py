"""Memory of labelling, verifying and reading, for ten thousand rows, a hundred times as many, and in between."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.benchmarks.children import Child, write_config
from tests.benchmarks.report import Cell, Goal, Report, Table
from tests.pipelines import support

NUM_ROWS = (10_000, 100_000, 1_000_000)
_QUICK_ROWS = (400, 800)
_UNIT_SIZE = 1000
_QUICK_UNIT_SIZE = 20
_ROWS_A_FILE = 10_000
_PICTURE_SIZE = 8
_PICTURES = 500
_NUM_CLASSES = 100
_WINDOW_BLOCKS = 8
_READ_BATCH = 256
_GROWTH_LIMIT = 5.0
_MIB = 1 << 20
NAME = "memory"

_METHOD = """\
Most resident memory that a process held at once, as the system counted it: `decant label` with one worker, `decant cache verify`, and a
process that reads the label set joined with its pictures for one epoch in shuffled order (window of {window} blocks). Each is a process of
its own, imports included. The source is Parquet with pictures of {picture} x {picture} pixels, {unit_size} a unit; a linear layer labels them, one view,
top-10 of {classes} classes. Every size is labelled by `decant label` itself, and what it wrote is verified and read. The window is
smaller than the smallest set, so that all of them fill it. More rows are more files of {file_rows:,} rows. What grows is what is kept of
each unit, some 30 KB in `decant label`, 3 KB in `decant cache verify` and in reading."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A process that ended well."""

    num_rows: int
    peak_mib: float
    seconds: float


def write_pictures(folder: Path, *, num_rows: int, unit_size: int) -> Path:
    """Write Parquet files of tiny pictures, a row group a unit; bytes repeat, keys do not."""
    folder.mkdir(parents=True)
    few = [support.picture(number % 3, number, size=_PICTURE_SIZE) for number in range(_PICTURES)]
    numbers = iter(range(num_rows))
    while rows := list(islice(numbers, _ROWS_A_FILE)):
        images = [{"bytes": few[number % _PICTURES], "path": f"{number}.png"} for number in rows]
        table = pa.table({"image": images, "label": [number % 3 for number in rows]})
        pq.write_table(table, folder / f"train-{rows[0] // _ROWS_A_FILE:05d}.parquet", row_group_size=unit_size)
    return folder


def measure(*, num_rows: int, unit_size: int, folder: Path, say: Callable[[str], None]) -> dict[str, Ended]:
    """Label, verify and read so many rows; return what each held."""
    source = {"kind": "parquet", "path": str(write_pictures(folder / "pictures", num_rows=num_rows, unit_size=unit_size))}
    source["unit_size"] = unit_size
    config = {
        "name": NAME,
        "cache": str(folder / "cache"),
        "source": source,
        "teacher": {
            "kind": "factory",
            "name": "tests.pipelines.networks:colours",
            "kwargs": {"num_classes": _NUM_CLASSES},
            "device": "cpu",
        },
        "target": {"k": 10},
        "generation": {"batch_size": unit_size},
    }
    path = str(write_config(folder / "config.json", config))
    jobs: dict[str, tuple[str, ...]] = {
        "decant label": ("decant", "label", path, "--json"),
        "decant cache verify": ("decant", "cache", "verify", str(folder / "cache"), NAME, "--json"),
        "reading an epoch": (
            "tests.benchmarks.read_epoch",
            f"--cache={folder / 'cache'}",
            f"--name={NAME}",
            f"--source={json.dumps(source)}",
            f"--window-blocks={_WINDOW_BLOCKS}",
            f"--batch-size={_READ_BATCH}",
        ),
    }
    found = {}
    for name, words in jobs.items():
        found[name] = _ended(words, file=folder / "peak-bytes.txt")
        if found[name].num_rows != num_rows:
            raise AssertionError(f"{name}: {found[name].num_rows} of {num_rows} rows")
        say(f"{num_rows:,} rows: {name}: {found[name].peak_mib:.1f} MiB, {found[name].seconds:.1f} s")
    return found


def _ended(words: Sequence[str], *, file: Path) -> Ended:
    finished = Child("tests.benchmarks.peak_memory", [str(file), *words]).finish()
    output: dict[str, Any] = finished.output
    num_rows = output["num_rows"] if "num_rows" in output else output["label_sets"][0]["num_rows"]
    return Ended(num_rows=num_rows, peak_mib=int(file.read_text()) / _MIB, seconds=finished.wall_seconds)


def run(*, quick: bool, folder: Path, say: Callable[[str], None]) -> Report:
    """Measure every size."""
    unit_size = _QUICK_UNIT_SIZE if quick else _UNIT_SIZE
    sizes = _QUICK_ROWS if quick else NUM_ROWS
    found = {size: measure(num_rows=size, unit_size=unit_size, folder=folder / str(size), say=say) for size in sizes}
    return report_of(found, unit_size=unit_size, quick=quick)


def report_of(found: dict[int, dict[str, Ended]], *, unit_size: int, quick: bool = False) -> Report:
    """Return the report of what was measured, by the number of rows."""
    sizes = sorted(found)
    jobs = list(found[sizes[0]])
    rows: list[tuple[Cell, ...]] = [
        (f"{job}, {size:,} rows", found[size][job].peak_mib, found[size][job].seconds) for job in jobs for size in sizes
    ]
    goals = tuple(
        Goal(
            what=f"{job}: growth of the peak, {sizes[0]:,} to {sizes[-1]:,} rows",
            measured=100 * (found[sizes[-1]][job].peak_mib / found[sizes[0]][job].peak_mib - 1),
            limit=_GROWTH_LIMIT,
            unit="%",
        )
        for job in jobs
    )
    return Report(
        name=NAME,
        title="Memory: more rows",
        method=_METHOD.format(
            window=_WINDOW_BLOCKS, picture=_PICTURE_SIZE, unit_size=unit_size, classes=_NUM_CLASSES, file_rows=_ROWS_A_FILE
        ),
        tables=(Table(title="Peak memory", columns=("process", "MiB", "seconds"), rows=tuple(rows)),),
        goals=goals,
        quick=quick,
    )
