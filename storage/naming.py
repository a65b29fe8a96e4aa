"""Suggest the nearest valid name for one that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """Return the valid name closest to `name`, or None if none is close."""
    matches = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return matches[0] if matches else None


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" or, with nothing close, the list of valid names."""
    names = sorted(valid)
    match = nearest(name, names)
    if match is not None:
        return f" Did you mean {match!r}?"
    return f" Valid names: {', '.join(names)}." if names else ""
