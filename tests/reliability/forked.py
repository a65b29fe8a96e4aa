"""What a process that is forked for a run does. Imports all that a run needs, once, for all of them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import decant
import pipelines.describe
import pipelines.engine
import pipelines.label
import tests.pipelines.networks
import tests.reliability.teachers

IMPORTED = (pipelines.describe, pipelines.label, pipelines.engine, tests.pipelines.networks, tests.reliability.teachers)


def output_files(prefix: str) -> tuple[Path, Path]:
    """Return where output and errors of a run go."""
    return Path(f"{prefix}.out"), Path(f"{prefix}.err")


def run_forked(words: tuple[str, ...], environment: dict[str, str], output: str) -> None:
    """Run a command with the exit status it gives, its streams in files."""
    os.environ.update(environment)
    for number, path in zip((1, 2), output_files(output), strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    status = decant.main(words)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    # As the interpreter does: threads of Beam do not hold it up.
    os._exit(status)
