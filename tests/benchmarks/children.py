"""Commands in processes of their own: what they print and how long they took."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A command that ended well.

    Attributes:
        output: the JSON object it printed.
        wall_seconds: from its start to its end, interpreter and imports included.
    """

    output: dict[str, Any]
    wall_seconds: float


class Child:
    """A running Python module that prints one JSON object."""

    def __init__(self, module: str, arguments: Sequence[str]) -> None:
        self._name = f"python -m {module} {' '.join(arguments)}"
        self._started = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def wait_for_line(self) -> str:
        """Return the next line the child prints."""
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def send_line(self, line: str) -> None:
        """Write a line to the child."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def finish(self) -> Finished:
        """Wait for the end.

        Raises:
            RuntimeError: the command failed.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        output = self._process.stdout.read()
        self._process.stdout.close()
        self._process.wait()
        wall_seconds = time.perf_counter() - self._started
        if self._process.returncode:
            raise RuntimeError(f"{self._name} ended with status {self._process.returncode}: {output[-2000:]}")
        return Finished(output=json.loads(output), wall_seconds=wall_seconds)


def decant(*words: str) -> Finished:
    """Run a `decant` command and return its figures."""
    return Child("decant", [*words, "--json"]).finish()


def write_config(path: Path, config: dict[str, Any]) -> Path:
    """Write an experiment's config; JSON is YAML."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config, indent=2))
    return path
