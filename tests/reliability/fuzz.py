"""Millions of broken inputs for every decoder and reader of manifests: only declared errors, little memory, little time."""

from __future__ import annotations

import faulthandler
import functools
import os
import random
import resource
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
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
_MOST_CRASHES = 50
_AT, _DIED = "at.txt", "died.txt"

_METHOD = f"""\
Valid files of every kind are changed and given to what reads them: bytes flipped, set, cut, inserted and repeated; the same with every
checksum, seal and digest put right afterwards, so that the code behind them is reached; JSON fields replaced, dropped and added; streams
of blocks changed below the compression; columns of tables replaced; files of folders lost and mixed up. Of blocks the result must keep
the promises that `tests/storage/test_fuzz_decoders.py` states (sums, ranges, orders, alignment of rows and tokens). Wanted: a result or
a `DecantError`; anything else is a failure: another exception, or a crash, which takes the process down with what it found since its
last slice (other inputs take their place). The processes may map {_SPACE_BYTES >> 30} GiB beyond what they
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
    """Give every target its share of so many inputs; a file in the folder says which is being given some."""
    fuzzers = _fuzzers(folder)
    total = sum(fuzzer.target.weight for fuzzer in fuzzers)
    rng = random.Random(seed)
    found = {}
    for fuzzer in fuzzers:
        (Path(folder) / _AT).write_text(fuzzer.target.name)
        found[fuzzer.target.name] = fuzzer.fuzz(num_inputs=int(num_inputs * fuzzer.target.weight / total) + 1, rng=rng)
    return found


def _start(folder: str) -> None:
    """Give this process a limit of memory, and a file that says where it was if it dies."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + _SPACE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    own = Path(folder) / str(os.getpid())
    own.mkdir(parents=True)
    faulthandler.enable((own / _DIED).open("w"), all_threads=False)


def _fuzz_slice(folder: str, *, num_inputs: int, seed: int) -> Slice:
    found = fuzz_all(f"{folder}/{os.getpid()}", num_inputs=num_inputs, seed=seed)
    resident = ResidentMemory()
    try:
        return Slice(process=os.getpid(), found=found, resident_bytes=resident.start())
    finally:
        resident.close()


@dataclass(kw_only=True)
class _Slices:
    """Slices of inputs, given to processes one after the other.

    Attributes:
        num_inputs: of each.
        totals: what was found, by target.
        gained_bytes: by how much the memory of a process grew since its first slice.
    """

    folder: Path
    num_inputs: int
    say: Callable[[str], None]
    totals: dict[str, Found] = field(default_factory=dict)
    gained_bytes: int = 0
    _first: dict[int, int] = field(default_factory=dict)
    _seen: set[Path] = field(default_factory=set)

    def run(self, *, slices: int, processes: int) -> None:
        """Run all; where a reader takes its process down, go on with other inputs in new ones."""
        num_done = num_crashes = 0
        while num_done < slices and num_crashes < _MOST_CRASHES:
            with ProcessPoolExecutor(processes, get_context("spawn"), _start, (str(self.folder),)) as pool:
                seeds = range(num_done + 1000 * num_crashes, slices + 1000 * num_crashes)
                waiting = [pool.submit(_fuzz_slice, str(self.folder), num_inputs=self.num_inputs, seed=seed) for seed in seeds]
                try:
                    for future in as_completed(waiting):
                        self._add(future.result())
                        num_done += 1
                        inputs = sum(found.num_inputs for found in self.totals.values())
                        self.say(f"{num_done} of {slices} slices, {inputs:,} inputs")
                except BrokenProcessPool:
                    num_crashes += 1
                    self._add_crash()

    def _add(self, ended: Slice) -> None:
        first = self._first.setdefault(ended.process, ended.resident_bytes)
        self.gained_bytes = max(self.gained_bytes, ended.resident_bytes - first)
        for name, found in ended.found.items():
            self.totals.setdefault(name, Found()).add(found)
            for failure in found.failures:
                self.say(f"{name}: {failure}")

    def _add_crash(self) -> None:
        # The others were ended with it, and said nothing.
        died = [path for path in self.folder.glob(f"*/{_DIED}") if path not in self._seen and path.stat().st_size]
        self._seen |= set(died)
        places = [((path.parent / _AT).read_text(), path.read_text()) for path in died]
        for name, where in places or [("a process that died without a word", "")]:
            self.totals.setdefault(name, Found()).num_failures += 1
            self.say(f"{name}: the process died: {where}")


def run(*, quick: bool, folder: Path, say: Callable[[str], None]) -> Report:
    """Fuzz in two processes."""
    num_inputs = 3000 if quick else NUM_INPUTS
    num_slices = 2 if quick else 20
    slices = _Slices(folder=folder, num_inputs=-(-num_inputs // num_slices), say=say)
    slices.run(slices=num_slices, processes=1 if quick else _NUM_PROCESSES)
    return report_of(slices.totals, num_inputs=num_inputs, gained_bytes=slices.gained_bytes, quick=quick)


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
            1e6 * found.seconds / max(found.num_inputs, 1),
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
