"""Many parts: what a run costs that computes nothing, and what opening a label set of a million parts costs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.children import REPOSITORY
from tests.benchmarks.report import Goal, Report, Table
from tests.pipelines import support

NUM_PARTS = 1000
NUM_MANY_PARTS = 1_000_000
RERUN_SECONDS = 2.0
OPEN_SECONDS = 5.0
OPEN_BYTES = 10**9

_METHOD = f"""\
*A run that has nothing to do*: {NUM_PARTS:,} pictures are labelled, one a unit, by a tiny timm teacher from a local checkpoint, which makes
{NUM_PARTS:,} parts. Then the same command runs again in new processes; counted are loads of the teacher, and seconds from the call of
`decant.main` to its end, imports left out (Python and Beam take theirs in any run, however small). Goals are of the best of three,
in processor seconds and by the clock; one thread does it all, so both agree on a machine that does nothing else.

*A million parts*: the manifest and table of a label set are written as `decant label` writes them, with one block a part; of records and
tars there are the names, and nothing in them. A new process opens it by its name, makes the stream, and plans an epoch (order of
blocks, first batch of a million rows of blocks). Another plans a run over the same units as `decant plan` and `decant label` do (the
label set is opened and compared with the units and a listing of the parts), finds that nothing is left to do, and commits the label set
again; listing and reading the source is its memo's cost and not counted. Memory is the most the process had resident, imports included;
`decant label` also imports torch and Beam."""


def child(*words: str) -> dict[str, Any]:
    """Run a step of `scale_steps` in a process of its own and return what it prints."""
    command = [sys.executable, "-m", "tests.reliability.scale_steps", *words]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _write_many_pictures(folder: Path, *, count: int) -> Path:
    for number in range(count):
        path = folder / support.CLASSES[number % 3] / f"{number:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(support.picture(number % 3, number, size=8))
    return folder


def _best(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return min(found, key=lambda one: float(one["cpu_seconds"]))


def _time_goals(what: str, found: Sequence[dict[str, Any]], *, limit: float) -> tuple[Goal, Goal]:
    """Return what was promised of the best of several, in processor seconds and by the clock."""
    return (
        Goal(what=f"{what}, processor", measured=min(one["cpu_seconds"] for one in found), limit=limit, unit="s"),
        Goal(what=f"{what}, by the clock", measured=min(one["seconds"] for one in found), limit=limit, unit="s"),
    )


def run(*, quick: bool, folder: Path, say: Callable[[str], None]) -> Report:
    """Measure reruns and opening."""
    num_parts, num_many = (30, 2000) if quick else (NUM_PARTS, NUM_MANY_PARTS)
    pictures = _write_many_pictures(folder / "pictures", count=num_parts)
    data = support.experiment(
        cache=folder / "cache",
        source=support.folder_source(pictures, unit_size=1),
        teacher=support.timm_teacher(support.save_teacher(folder / "teacher.safetensors")),
        views=1,
    )
    config = support.write_config(folder / "config.json", data)
    first = child("label", config)
    say(f"first run: {first}")
    again = [child("label", config) for _ in range(1 if quick else 3)]
    say(f"second run: {again}")
    many = str(folder / "many")
    child("write", many, str(num_many))
    say("a label set of many parts is written")
    opened = [child("open", many) for _ in range(1 if quick else 3)]
    say(f"opening: {opened}")
    planned = [child("plan", many, str(num_many)) for _ in range(1 if quick else 3)]
    say(f"planning: {planned}")
    rerun, opening, planning = _best(again), _best(opened), _best(planned)
    peak, plan_peak = (max(one["peak_bytes"] for one in found) for found in (opened, planned))
    goals = (
        Goal(what="teacher loads of a run that has nothing to do", measured=max(one["loads"] for one in again), limit=0),
        *_time_goals(f"its own time, cache of {num_parts:,} parts", again, limit=RERUN_SECONDS),
        *_time_goals(f"opening and planning an epoch, {num_many:,} parts", opened, limit=OPEN_SECONDS),
        Goal(what="memory for it, whole process", measured=peak / 1e9, limit=OPEN_BYTES / 1e9, unit="GB"),
        *_time_goals(f"planning a run and committing again what is there, {num_many:,} parts", planned, limit=OPEN_SECONDS),
        Goal(what="memory for it, whole process", measured=plan_peak / 1e9, limit=OPEN_BYTES / 1e9, unit="GB"),
    )
    runs = tuple(
        (name, one["loads"], one["num_computed_rows"], one["cpu_seconds"], one["seconds"], one["import_seconds"])
        for name, one in (("first", first), *((f"again, {number + 1}", one) for number, one in enumerate(again)))
    )
    steps, plan_steps = (
        tuple((name, *reversed(seconds)) for name, seconds in found["steps"].items()) for found in (opening, planning)
    )
    return Report(
        name="scale",
        title="Scale: many parts",
        method=_METHOD,
        tables=(
            Table(
                title=f"`decant label` on {num_parts:,} units",
                columns=(
                    "run",
                    "teacher loads",
                    "rows computed",
                    "processor seconds, imports apart",
                    "by the clock",
                    "imports, by the clock",
                ),
                rows=runs,
            ),
            Table(
                title="Where the time of the best second run goes",
                columns=("function", "calls", "seconds"),
                rows=tuple(map(tuple, rerun["profile"])),
            ),
            Table(
                title=f"Opening {num_many:,} parts and planning an epoch, the best of three",
                columns=("step", "processor seconds", "by the clock"),
                rows=steps,
            ),
            Table(
                title=f"Planning a run over {num_many:,} parts that are all there, the best of three",
                columns=("step", "processor seconds", "by the clock"),
                rows=plan_steps,
            ),
        ),
        goals=goals,
        quick=quick,
    )
