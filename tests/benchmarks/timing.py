"""Time several ways of doing one thing side by side, so that noise of the machine hits all alike."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from statistics import median

import pyarrow as pa
import torch


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One run of one contestant.

    Attributes:
        num_rows: rows it went through.
        cpu_seconds: of all threads of this process.
    """

    num_rows: int
    wall_seconds: float
    cpu_seconds: float


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Medians over passes."""

    per_wall_second: float
    per_cpu_second: float
    num_rows: int


def round_robin(
    contestants: Mapping[str, Callable[[], int]], *, num_passes: int, on_pass: Callable[[int], None]
) -> dict[str, list[Pass]]:
    """Run every contestant once a pass, each pass beginning with another one, after one pass that is not counted.

    Args:
        contestants: each does its work and returns the rows it went through.
    """
    names = list(contestants)
    passes: dict[str, list[Pass]] = {name: [] for name in names}
    for index in range(-1, num_passes):
        on_pass(index)
        first = index % len(names)
        for name in names[first:] + names[:first]:
            gc.collect()
            wall, cpu = time.perf_counter(), time.process_time()
            num_rows = contestants[name]()
            measured = Pass(num_rows=num_rows, wall_seconds=time.perf_counter() - wall, cpu_seconds=time.process_time() - cpu)
            if index >= 0:
                passes[name].append(measured)
    return passes


def rates(passes: list[Pass]) -> Rates:
    """Return the medians of some passes."""
    return Rates(
        per_wall_second=median(one.num_rows / one.wall_seconds for one in passes),
        per_cpu_second=median(one.num_rows / one.cpu_seconds for one in passes),
        num_rows=passes[0].num_rows,
    )


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch and Arrow to one thread; numpy has none here."""
    torch_threads, arrow_threads = torch.get_num_threads(), pa.cpu_count()
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    try:
        yield
    finally:
        torch.set_num_threads(torch_threads)
        pa.set_cpu_count(arrow_threads)
