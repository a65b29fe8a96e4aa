"""Millions of broken inputs for every decoder and reader of manifests: only declared errors, little memory, little time."""

from __future__ import annotations

import functools
import os
import random
import resource
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from tests.benchmarks.report import Goal, Report, Table
from tests.reliability.fuzz_blocks import block_targets
from tests.reliability.fuzz_cache_files import cache_targets
from tests.reliability.fuzz_other_files import other_targets
from tests.reliability.fuzz_runs import run_targets
from tests.reliability.fuzz_target import EVERY_GUIDED, EVERY_TRACED, Found, Fuzzer, Target
from tests.reliability.resident import ResidentMemory
from tests.storage.caches import make_labeller

NUM_INPUTS = 1_000_000
MEMORY_BYTES = 64 << 20
"""Most that an input of under 50 kB may make a reader allocate."""
GAINED_BYTES = 256 << 20
"""Most that a process may keep of half a million of them."""

SECONDS = 2.0
"""Most that it may take, on a busy machine."""

_SPACE_BYTES = 2 << 30
_NUM_PROCESSES = 2

_METHOD = f"""\
Valid files of every kind are changed and given to what reads them: bytes flipped, set, cut, inserted and repeated; the same with every
checksum, seal and digest put right afterwards, so that the code behind them is reached; JSON fields replaced, dropped and added; streams
of blocks changed below the compression; columns of tables replaced; files of folders lost and mixed up. Of blocks the result must keep
the promises that `tests/storage/test_fuzz_decoders.py` states (sums, ranges, orders, alignment of rows and tokens). Wanted: a result or
a `DecantError`; anything else (another exception, a crash) is a failure. The processes may map {_SPACE_BYTES >> 30} GiB beyond what they
start with.

*Coverage guides the search*: one input of {EVERY_GUIDED} runs under `sys.settrace`, which notes each step from line to line inside
`storage` and `pipelines` (so: each branch that is taken). An input that takes a step no input of this target took before joins the
corpus, and half of all inputs are made by changing what joined: those that got further are taken further. *Branches* are such steps:
of the valid files alone, and of all inputs that were looked at. `sys.settrace` sees Python only: what Arrow, zstd and pydantic do
inside is reached, not steered.

*Memory*: one input of {EVERY_TRACED} runs under `tracemalloc`, which knows what Python allocates. Of all others that run at full speed it is
asked by how much the process's resident memory rose at its most while the input was read (the kernel's peak, reset before each one),
which holds what Arrow and zstd allocate, too. Times are of those inputs. What a process has resident after its last
slice of inputs is compared with what it had after its first."""


@dataclass(frozen=True, kw_only=True)
class Slice:
    """What a process found in one go.

    Attributes:
        found: by target.
        resident_bytes: that the process had in the end.
    """

    process: int
    found: dict[str, Found]
    resident_bytes: int


def targets_of(folder: Path) -> Iterator[Target]:
    """Yield every target, over files that are made in a folder."""
    labeller = make_labeller(folder, dead=frozenset({("ant/001.jpg", None), ("bee/007.jpg", 1)}))
    label_set = labeller.label()
    yield from block_targets()
    yield from cache_targets(labeller, label_set)
    yield from run_targets(labeller)
    yield from other_targets(labeller, folder)


@functools.cache
def _fuzzers(folder: str) -> tuple[Fuzzer, ...]:
    """Return the fuzzers of this process, whose corpora go on growing from slice to slice."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    return tuple(Fuzzer(target) for target in targets_of(Path(folder)))


def fuzz_all(folder: str, *, num_inputs: int, seed: int) -> dict[str, Found]:
    """Give every target its share of so many inputs."""
    fuzzers = _fuzzers(folder)
    total = sum(fuzzer.target.weight for fuzzer in fuzzers)
    rng = random.Random(seed)
    return {
        fuzzer.target.name: fuzzer.fuzz(num_inputs=int(num_inputs * fuzzer.target.weight / total) + 1, rng=rng)
        for fuzzer in fuzzers
    }


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + _SPACE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _fuzz_slice(folder: str, *, num_inputs: int, seed: int) -> Slice:
    found = fuzz_all(f"{folder}/{os.getpid()}", num_inputs=num_inputs, seed=seed)
    resident = ResidentMemory()
    try:
        return Slice(process=os.getpid(), found=found, resident_bytes=resident.start())
    finally:
        resident.close()


def _fuzz_slices(
    folder: Path, *, num_inputs: int, slices: int, processes: int, say: Callable[[str], None]
) -> tuple[dict[str, Found], int]:
    """Return what all processes found together, and by how much the memory of one grew since its first slice."""
    totals: dict[str, Found] = {}
    first: dict[int, int] = {}
    gained = 0
    with ProcessPoolExecutor(processes, get_context("spawn"), _limit_memory) as pool:
        waiting = [
            pool.submit(_fuzz_slice, str(folder), num_inputs=-(-num_inputs // slices), seed=number) for number in range(slices)
        ]
        for number, future in enumerate(waiting):
            ended = future.result()
            gained = max(gained, ended.resident_bytes - first.setdefault(ended.process, ended.resident_bytes))
            for name, found in ended.found.items():
                totals.setdefault(name, Found()).add(found)
                for failure in found.failures:
                    say(f"{name}: {failure}")
            say(f"{number + 1} of {slices} slices, {sum(found.num_inputs for found in totals.values()):,} inputs")
    return totals, gained


def run(*, quick: bool, folder: Path, say: Callable[[str], None]) -> Report:
    """Fuzz in two processes."""
    num_inputs = 3000 if quick else NUM_INPUTS
    totals, gained = _fuzz_slices(
        folder, num_inputs=num_inputs, slices=2 if quick else 20, processes=1 if quick else _NUM_PROCESSES, say=say
    )
    return report_of(totals, num_inputs=num_inputs, gained_bytes=gained, quick=quick)


def report_of(totals: dict[str, Found], *, num_inputs: int, gained_bytes: int, quick: bool) -> Report:
    """Return the report of what was found, by target."""
    rows = [
        (
            name,
            found.num_inputs,
            found.num_accepted,
            found.num_failures,
            found.num_valid_steps,
            len(found.steps),
            found.num_kept,
            1e6 * found.seconds / found.num_inputs,
            1e3 * found.most_seconds,
            found.most_python_bytes / 2**20,
            found.most_resident_bytes / 2**20,
        )
        for name, found in totals.items()
    ]
    steps = set().union(*(found.steps for found in totals.values()))
    columns = (
        f"target ({len(steps):,} branches in all)",
        "inputs",
        "accepted",
        "failures",
        "branches, valid files",
        "branches, all",
        "inputs kept",
        "mean, us (making it too)",
        "longest, ms",
        "most Python memory, MiB",
        "most resident memory, MiB",
    )
    return Report(
        name="fuzz",
        title="Fuzzing: broken inputs for every decoder",
        method=_METHOD,
        tables=(Table(title="Inputs and what came of them", columns=columns, rows=tuple(rows)),),
        goals=_goals(totals, num_inputs=num_inputs, gained_bytes=gained_bytes),
        quick=quick,
    )


def _goals(totals: dict[str, Found], *, num_inputs: int, gained_bytes: int) -> tuple[Goal, ...]:
    found = totals.values()
    limit = MEMORY_BYTES >> 20
    return (
        Goal(what="inputs", measured=sum(one.num_inputs for one in found), limit=num_inputs, at_most=False),
        Goal(
            what="inputs kept for the new branches they took", measured=sum(one.num_kept for one in found), limit=1, at_most=False
        ),
        Goal(what="undeclared errors and broken promises", measured=sum(one.num_failures for one in found), limit=0),
        Goal(what="longest time for one input", measured=max(one.most_seconds for one in found), limit=SECONDS, unit="s"),
        Goal(
            what="most Python memory for one input",
            measured=max(one.most_python_bytes for one in found) / 2**20,
            limit=limit,
            unit="MiB",
        ),
        Goal(
            what="most resident memory for one input",
            measured=max(one.most_resident_bytes for one in found) / 2**20,
            limit=limit,
            unit="MiB",
        ),
        Goal(
            what="resident memory that a process gained over all its inputs",
            measured=gained_bytes / 2**20,
            limit=GAINED_BYTES >> 20,
            unit="MiB",
        ),
    )
