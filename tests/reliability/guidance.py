"""Which steps of our code an input takes, and the inputs that took new ones: what guides a search for broken inputs.

`sys.settrace`, since `sys.monitoring` is of Python 3.12 and no compiled coverage tool is among the dependencies.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, TypeAlias

Step: TypeAlias = tuple[str, int, int]
"""File, a line of it (minus the first of a function that begins), and the line that comes after it: a branch that was taken."""

_Trace: TypeAlias = Callable[[FrameType, str, Any], Any]
_HALF = 0.5


class Coverage:
    """Notes the steps of code that lies in some folders; all other code runs at its own speed."""

    def __init__(self, folders: Iterable[Path]) -> None:
        self._roots = [(f"{folder}{os.sep}", len(f"{folder.parent}{os.sep}")) for folder in folders]
        self._names: dict[str, str | None] = {}

    @contextlib.contextmanager
    def watching(self) -> Iterator[set[Step]]:
        """Give a set that fills with the steps of what this thread calls inside the block."""
        steps: set[Step] = set()
        before = sys.gettrace()
        sys.settrace(self._tracer(steps))
        try:
            yield steps
        finally:
            sys.settrace(before)

    def _tracer(self, steps: set[Step]) -> _Trace:
        names = self._names

        def enter(frame: FrameType, event: str, argument: Any) -> _Trace | None:
            del event, argument
            code = frame.f_code
            try:
                found = names[code.co_filename]
            except KeyError:
                found = names[code.co_filename] = self._name(code.co_filename)
            if found is None:
                return None
            name: str = found
            last = -code.co_firstlineno

            def step(frame: FrameType, event: str, argument: Any) -> _Trace:
                del argument
                nonlocal last
                if event == "line":
                    steps.add((name, last, frame.f_lineno))
                    last = frame.f_lineno
                return step

            return step

        return enter

    def _name(self, path: str) -> str | None:
        return next((path[cut:] for root, cut in self._roots if path.startswith(root)), None)


class Corpus:
    """Inputs that are changed to make others: valid ones, and those that took steps no input had taken before.

    Attributes:
        steps: all that were seen.
        num_valid_steps: those that the valid inputs take by themselves.
    """

    def __init__(self, seeds: Iterable[Any]) -> None:
        self._seeds = tuple(seeds)
        self._grown: list[Any] = []
        self.steps: set[Step] = set()
        self.num_valid_steps = 0

    def __len__(self) -> int:
        return len(self._grown)

    def draw(self, rng: random.Random) -> Any:
        """Return an input to be changed: half of the times one that was kept, if there is one."""
        return rng.choice(self._grown if self._grown and rng.random() < _HALF else self._seeds)

    def learn_valid(self, steps: set[Step]) -> None:
        """Take in the steps of a valid input."""
        self.steps |= steps
        self.num_valid_steps = len(self.steps)

    def learn(self, made: Any, steps: set[Step]) -> bool:
        """Take in the steps of an input, and keep it if some are new."""
        if steps <= self.steps:
            return False
        self.steps |= steps
        self._grown.append(made)
        return True
