"""The folder of a run: tried before anything is built, and explained where it takes no more."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from storage.errors import ConfigError, DecantError


class OutputError(DecantError):
    """A run's own files that cannot be written."""


def try_output(folder: Path, *, unless: str) -> None:
    """Make the folder of a run and write a byte into it; what was not there before is gone afterwards, should the run be refused.

    One process does it for all of a training: it is the one that writes.

    Args:
        folder: of the run.
        unless: a file that finished runs have: they may lie where nothing can be written.

    Raises:
        ConfigError: one of them does not work.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    try:
        if (folder / unless).is_file():
            return
        made = [place for place in (folder, *folder.parents) if not place.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(prefix=".decant-", dir=folder) as file:
            file.write(b"\0")
        with suppress(OSError):
            for place in made:
                place.rmdir()
    except OSError as error:
        raise ConfigError(
            f"training.output is {str(folder)!r}, which cannot be written to ({_said(error)}), so no checkpoint could be kept; "
            "give a folder with room that this user may write to"
        ) from error


@contextmanager
def writing(what: str, *, folder: Path) -> Iterator[None]:
    """Say what could not be written and what is left.

    Args:
        what: `a checkpoint`, `the student`, ...
        folder: of the run.

    Raises:
        OutputError: the body met a store that takes no more.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        # torch raises errors of its own in answer to those of its file.
        cause = _os_error(error)
        if cause is None and isinstance(error, RuntimeError):
            raise
        raise OutputError(
            f"{what} cannot be written to {folder} ({_said(cause or error)}); make room there, or let this user write to it. "
            "Checkpoints committed before are whole: the same command goes on from the newest"
        ) from error


def _os_error(error: BaseException) -> OSError | None:
    found: BaseException | None = error
    while found is not None and not isinstance(found, OSError):
        found = found.__cause__ or found.__context__
    return found


def _said(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"
