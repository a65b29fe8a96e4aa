"""One reader that is given broken inputs: how they are made, what came of them, and what they cost."""

from __future__ import annotations

import random
import time
import traceback
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from storage.errors import DecantError
from tests.reliability.guidance import Corpus, Coverage, Step
from tests.reliability.resident import ResidentMemory

EVERY_GUIDED = 4
"""One input of so many shows which steps it takes."""
EVERY_TRACED = 48
"""One input of so many shows what Python allocates; no multiple of the other's turn."""

_REPOSITORY = Path(__file__).resolve().parents[2]
_MOST_SAID = 3
_MEASURED = "storage", "pipelines"

Reading: TypeAlias = Callable[[], object]
"""Reads an input that was made: a result that keeps its promises, or a `DecantError`."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A reader with inputs to begin from.

    Attributes:
        name: what it reads, and how that is broken.
        seeds: valid inputs, in whatever form `change` and `prepare` take.
        change: returns another input.
        prepare: puts the bytes where the reader looks for them, checksums made right where the name says so; None: there are no
            bytes that say this.
        weight: how many inputs it gets, beside other targets.
        hostile: further inputs to begin from, which are refused.
    """

    name: str
    seeds: tuple[Any, ...]
    change: Callable[[Any, random.Random], Any]
    prepare: Callable[[Any], Reading | None]
    weight: float
    hostile: tuple[Any, ...] = ()


@dataclass(kw_only=True)
class Found:
    """What a target did with its inputs.

    Attributes:
        num_kept: inputs that took new steps, and were changed further.
        most_python_bytes: that one input made Python allocate.
        most_resident_bytes: by which one input raised the memory that the process has, at its most.
        steps: all that were seen; `num_valid_steps` of them with valid inputs.
    """

    num_inputs: int = 0
    num_accepted: int = 0
    num_failures: int = 0
    num_kept: int = 0
    num_valid_steps: int = 0
    most_seconds: float = 0.0
    most_python_bytes: int = 0
    most_resident_bytes: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)
    steps: set[Step] = field(default_factory=set)

    def add(self, other: Found) -> None:
        """Take in what another process, or the same one later, found."""
        for name in ("num_inputs", "num_accepted", "num_failures", "num_kept", "seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("most_seconds", "most_python_bytes", "most_resident_bytes", "num_valid_steps"):
            setattr(self, name, max(getattr(self, name), getattr(other, name)))
        self.failures += other.failures
        self.steps |= other.steps


class Fuzzer:
    """Gives one target inputs, and keeps those that lead somewhere new.

    Args:
        folders: of code whose steps count; None: ours.
        every_guided: one input of so many is looked at; 0: none, so that no input is kept.
    """

    def __init__(self, target: Target, *, folders: tuple[Path, ...] | None = None, every_guided: int = EVERY_GUIDED) -> None:
        self.target = target
        self._every_guided = every_guided
        self._coverage = Coverage(folders or tuple(_REPOSITORY / name for name in _MEASURED))
        self.corpus = Corpus((*target.seeds, *target.hostile))
        if every_guided:
            for seed in target.seeds:
                self._learn_valid(seed)

    def _learn_valid(self, seed: Any) -> None:
        read = self.target.prepare(seed)
        assert read is not None, f"{self.target.name}: a valid input cannot be written"
        # Once unwatched: what is remembered between inputs is not what this one does.
        read()
        with self._coverage.watching() as steps:
            read()
        self.corpus.learn_valid(steps)

    def fuzz(self, *, num_inputs: int, rng: random.Random) -> Found:
        """Give the target so many inputs."""
        found, resident = Found(num_valid_steps=self.corpus.num_valid_steps), ResidentMemory()
        started = time.perf_counter()
        try:
            while found.num_inputs < num_inputs:
                made = self.target.change(self.corpus.draw(rng), rng)
                read = self.target.prepare(made)
                if read is None:
                    continue
                number = found.num_inputs
                found.num_inputs += 1
                if number % EVERY_TRACED == 0:
                    self._trace(read, found=found)
                elif self._every_guided and number % self._every_guided == 1:
                    with self._coverage.watching() as steps:
                        self._give(read, found=found)
                    found.num_kept += self.corpus.learn(made, steps)
                else:
                    self._time(read, found=found, resident=resident)
        finally:
            resident.close()
        found.seconds = time.perf_counter() - started
        found.steps = set(self.corpus.steps)
        return found

    def _trace(self, read: Reading, *, found: Found) -> None:
        tracemalloc.start()
        try:
            self._give(read, found=found)
            found.most_python_bytes = max(found.most_python_bytes, tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()

    def _time(self, read: Reading, *, found: Found, resident: ResidentMemory) -> None:
        before = resident.start()
        started = time.perf_counter()
        self._give(read, found=found)
        found.most_seconds = max(found.most_seconds, time.perf_counter() - started)
        found.most_resident_bytes = max(found.most_resident_bytes, resident.most() - before)

    def _give(self, read: Reading, *, found: Found) -> None:
        try:
            read()
            found.num_accepted += 1
        except DecantError:
            pass
        except BaseException as error:  # whatever it is, it is not declared
            found.num_failures += 1
            if len(found.failures) < _MOST_SAID:
                found.failures.append("".join(traceback.format_exception(error)))
