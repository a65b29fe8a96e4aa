"""Wait for an answer only for so long: clients of stores and networks may wait for minutes, or for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class NoAnswerError(Exception):
    """Something did not come back in time."""


def answer_within(seconds: float, action: Callable[[], T]) -> T:
    """Return what an action returns, or raise what it raises.

    Raises:
        NoAnswerError: it takes longer; it goes on in a thread that nobody waits for.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(action())
        except BaseException as error:  # raised again, where somebody waits for it
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True, name="decant-doctor")
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise NoAnswerError(f"no answer within {seconds:.0f} s")
    return results[0]
