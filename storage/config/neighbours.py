"""Say which paths of a config lie beside its file and not in the working directory, where relative paths start."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from storage.config.experiment import ExperimentConfig

_KEYS = frozenset({"cache", "candidates", "checkpoint", "classes", "path", "tokenizer"})


def neighbours(config: ExperimentConfig, *, origin: str) -> str | None:
    """Return what to do about paths that are only found from the folder of the config; None where there are none.

    Args:
        origin: path of the config.
    """
    folder = Path(origin).parent
    if "://" in origin or folder.resolve() == Path.cwd():
        return None
    found = [(key, path) for key, path in _paths(config.model_dump(mode="json")) if _only_there(path, folder=folder)]
    if not found:
        return None
    key, path = found[0]
    more = f", and {len(found) - 1} more of its paths," if len(found) > 1 else ""
    return (
        f"{key} {path}{more} lies beside {origin}, but relative paths start in the working directory, which is {Path.cwd()}: "
        f"run the command in {folder.resolve()}, or write whole paths"
    )


def _only_there(path: str, *, folder: Path) -> bool:
    return not ("://" in path or Path(path).is_absolute() or Path(path).exists()) and (folder / path).exists()


def _paths(value: Any, *, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield the paths in a config with their dotted keys."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _paths(inner, key=f"{key}.{name}".lstrip("."))
    elif isinstance(value, list) and key.endswith("path"):
        for inner in value:
            yield from _paths(inner, key=key)
    elif isinstance(value, str) and key.rpartition(".")[2] in _KEYS:
        yield key, value
