"""Where an exception was raised, said the same on every machine: records of equal rows must be equal."""

from __future__ import annotations

import re
import traceback

_FRAMES = 6
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def short_traceback(error: BaseException) -> str:
    """Return the innermost frames of an exception and of what caused it, one a line: modules, functions and line numbers.

    No paths, no values of variables, and nothing of who called the code that caught it.
    """
    lines: list[str] = []
    current: BaseException | None = error
    while current is not None:
        frames = list(traceback.walk_tb(current.__traceback__))[-_FRAMES:]
        lines += [f"{frame.f_globals.get('__name__', '?')}.{frame.f_code.co_qualname}:{line}" for frame, line in frames]
        current, raised = current.__cause__, type(current).__name__
        lines.append(f"{raised}, caused by" if current is not None else raised)
    return "\n".join(lines)


def without_addresses(message: str) -> str:
    """Return a message without the addresses of objects, which differ from run to run."""
    return _ADDRESS.sub("", message)
