"""Call a function on many values, some at a time, and get its answers in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

_Value = TypeVar("_Value")
_Answer = TypeVar("_Answer")

_CALLS_A_THREAD = 4
"""Calls begun for each thread, so that none waits for the slowest."""


def map_ahead(function: Callable[[_Value], _Answer], values: Iterable[_Value], *, num_threads: int) -> Iterator[_Answer]:
    """Yield a function's answers in the order of its values, however many there are; only a few wait at a time.

    What the function raises comes when its answer is due; calls that have not begun then never do.

    Args:
        num_threads: calls at the same time; 1: in the thread that asks, and none ahead.
    """
    if num_threads == 1:
        yield from map(function, values)
        return
    remaining = iter(values)
    waiting: deque[Future[_Answer]] = deque()
    with ThreadPoolExecutor(num_threads) as pool:
        try:
            while True:
                room = _CALLS_A_THREAD * num_threads - len(waiting)
                waiting.extend(pool.submit(function, value) for value in islice(remaining, room))
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
