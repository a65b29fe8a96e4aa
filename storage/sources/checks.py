"""What every source checks of its samples: class names, labels and keys."""

from __future__ import annotations

from collections.abc import Sequence

from storage.errors import SourceError
from storage.sources.base import NO_LABEL
from storage.sources.files import open_store, reaching

MAX_LABEL = 2**32 - 2
"""A part stores labels plus one in 32 bits."""
MAX_KEY_BYTES = 1 << 15
"""Longer than any path; what a part's table of keys may take follows from it."""


def load_classes(classes: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """Return the class names that a config gives.

    Args:
        classes: names, or the path of a UTF-8 text file with one name a line, or None.

    Raises:
        SourceError: the file cannot be read, or a name is empty or occurs twice.
    """
    if classes is None:
        return None
    if isinstance(classes, str):
        fs, path = open_store(classes)
        with reaching(classes, action="read class names from"):
            names = fs.cat_file(path).decode("utf-8-sig").rstrip().split("\n")
        where, names = f"the class names in {classes}", [name.strip() for name in names]
    else:
        where, names = "the class names in the config", list(classes)
    positions: dict[str, int] = {}
    for position, name in enumerate(names):
        if not name:
            raise SourceError(f"{where}: name {position} is empty, so labels from there on would shift; give every class a name")
        if name in positions:
            raise SourceError(
                f"{where}: {name!r} stands for labels {positions[name]} and {position}; labels need one name each, so rename one"
            )
        positions[name] = position
    return tuple(names)


def label_problem(label: int, *, num_classes: int | None) -> str | None:
    """Return what is wrong with a stored label, or None. NO_LABEL is a stored label too: ImageNet's test split uses it."""
    if label < NO_LABEL:
        return f"label {label} is negative"
    if num_classes is not None and label >= num_classes:
        return f"label {label} is beyond the {num_classes} classes"
    if label > MAX_LABEL:
        return f"label {label} is larger than {MAX_LABEL}"
    return None


def key_problem(key: str) -> str | None:
    """Return why a string cannot be a key, or None."""
    if not key:
        return "it is empty"
    if "\0" in key:
        return "it holds a zero byte"
    try:
        num_bytes = len(key.encode())
    except UnicodeEncodeError:
        return "it is not valid UTF-8"
    return f"it has {num_bytes} bytes, more than {MAX_KEY_BYTES}" if num_bytes > MAX_KEY_BYTES else None
