"""What the process that starts a run pays: planning and building the pipeline for a million units."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.benchmarks.children import Child
from tests.benchmarks.report import Cell, Goal, Report, Table

_SECONDS = 60.0
_PEAK_GB = 2.0
_GRAPH_GROWTH = 1.0
"""Percent. The graph names one folder, in random digits; how well these compress differs by some bytes from run to run."""

_METHOD = """\
`decant label` in a process of its own, from planning until its pipeline would start: the cache is listed, records that no label set
vouches for are read, the label set gets its identity, task files are written, and the job graph is built and translated. The source is a
list of names: {num_units:,} units of 1,000 pictures, one view each, as a source's listing and its memo give them; what they hold in
memory counts, making them up does not. The cache holds nothing; or half of the units in a label set; or half of them as a run leaves
them that was killed, with no label set over them, so that every record is read. Records and tars of those are on a local disk. *Its own
time* is processor seconds of planning and building, *peak* the most memory the process had resident until then, torch and Beam included.
"""

_COUNTED = ("plan", "write task files, build the pipeline")
_CACHES = ("nothing", "half, in a label set", "half, of a killed run")


def run(*, quick: bool, folder: Path, say: Callable[[str], None]) -> Report:
    """Plan and build over three caches, and over few units."""
    num_units, num_few = (3000, 30) if quick else (1_000_000, 1000)
    found = {}
    for number, cache in enumerate(_CACHES):
        url = str(folder / f"cache-{number}")
        if cache == "half, in a label set":
            Child("tests.reliability.scale_steps", ["write", url, str(num_units // 2)]).finish()
        elif cache == "half, of a killed run":
            _step("fill", url=url, num_units=num_units // 2)
        found[cache] = _step("build", url=url, num_units=num_units, num_few=num_few)
        expected = num_units if cache == "nothing" else num_units - num_units // 2
        if found[cache]["num_tasks"] != expected:
            raise AssertionError(f"{cache}: {found[cache]['num_tasks']} tasks where {expected} parts are missing")
        say(f"a cache that holds {cache}: {found[cache]}")
    steps: tuple[tuple[Cell, ...], ...] = tuple(
        (step, *(found[cache]["steps"][step] for cache in _CACHES)) for step in found["nothing"]["steps"]
    )
    return Report(
        name="driver",
        title="Driver: the process that starts a run",
        method=_METHOD.format(num_units=num_units),
        tables=(
            Table(
                title=f"Processor seconds, {num_units:,} units, by what the cache holds",
                columns=("step", *_CACHES),
                rows=(*steps, ("planning and building", *(_own_seconds(found[cache]) for cache in _CACHES))),
            ),
            Table(
                title="Memory and job graph",
                columns=(
                    "cache holds",
                    "tasks",
                    "peak with the units alone, GB",
                    "peak, GB",
                    "job graph, bytes",
                    f"of {num_few:,} units, bytes",
                ),
                rows=tuple(_sizes(cache, found[cache]) for cache in _CACHES),
            ),
        ),
        goals=(
            Goal(
                what=f"planning and building, {num_units:,} units, the worst cache",
                measured=max(map(_own_seconds, found.values())),
                limit=_SECONDS,
                unit="s",
            ),
            Goal(
                what="peak memory, whole process, the worst cache",
                measured=max(one["peak_bytes"] for one in found.values()) / 1e9,
                limit=_PEAK_GB,
                unit="GB",
            ),
            Goal(
                what=f"growth of the job graph, {num_few:,} to {num_units:,} units",
                measured=max(0.0, *(100 * (one["graph_bytes"] / one["few_graph_bytes"] - 1) for one in found.values())),
                limit=_GRAPH_GROWTH,
                unit="%",
            ),
        ),
        quick=quick,
    )


def _step(step: str, *, url: str, num_units: int, num_few: int = 0) -> dict[str, Any]:
    words = [step, f"--url={url}", f"--num-units={num_units}", f"--num-few={num_few}"]
    return Child("tests.benchmarks.driver_steps", words).finish().output


def _own_seconds(found: dict[str, Any]) -> float:
    return float(sum(found["steps"][step] for step in _COUNTED))


def _sizes(cache: str, found: dict[str, Any]) -> tuple[Cell, ...]:
    peaks = (found[name] / 1e9 for name in ("bytes_of_units", "peak_bytes"))
    return (cache, found["num_tasks"], *peaks, found["graph_bytes"], found["few_graph_bytes"])
