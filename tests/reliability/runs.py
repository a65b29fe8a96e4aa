"""Tiny but whole runs of the command line, on 24 pictures: 12 units of work of about 0.15 s each."""

from __future__ import annotations

import json
import os
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil

from tests.pipelines import support
from tests.reliability.forked import output_files, run_forked
from tests.reliability.teachers import LOG, num_batches

NUM_PARTS = 12
BATCHES_PER_PART = 2
NUM_BATCHES = NUM_PARTS * BATCHES_PER_PART


class Run:
    """One experiment in a folder of its own, labelled by the command line in processes of their own."""

    def __init__(self, folder: Path, *, pictures: Path, cache: str | None = None, seconds_per_batch: float = 0.05) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._num_runs = 0
        self.log = folder / "batches"
        self.cache = cache or str(folder / "cache")
        teacher = {
            "kind": "factory",
            "name": "tests.reliability.teachers:counting",
            "kwargs": {"seconds_per_batch": seconds_per_batch},
            "device": "cpu",
        }
        # 4 pictures a unit, 2 views a part, batches of 4.
        data = support.experiment(cache=self.cache, source=support.folder_source(pictures, unit_size=4), teacher=teacher, views=4)
        self.config = support.write_config(folder / "config.json", data)

    def start(self, *, workers: int = 1) -> Forked:
        """Start `decant label`."""
        self._num_runs += 1
        words = ("label", self.config, "--workers", str(workers), "--json")
        return Forked(words, log=self.log, output=self.log.parent / f"run{self._num_runs}")

    def finish(self, *, workers: int = 1) -> dict[str, Any]:
        """Run `decant label` to its end and return its figures.

        Raises:
            AssertionError: it failed, or said something on its error stream.
        """
        return ended_well(self.start(workers=workers))

    @property
    def num_batches(self) -> int:
        """Batches that teachers of all processes have finished so far."""
        return num_batches(self.log)

    @property
    def num_records(self) -> int:
        """Parts that count."""
        return len(list((Path(self.cache) / "requests").glob("*/*.v*.json")))


class Forked:
    """A run in a process of its own that is forked from one that has imported everything: a second instead of many.

    Workers that it starts are ordinary processes.
    """

    def __init__(self, words: tuple[str, ...], *, log: Path, output: Path) -> None:
        self._output = output
        context = get_context("forkserver")
        context.set_forkserver_preload(["tests.reliability.forked"])
        self._process = context.Process(target=run_forked, args=(words, {**os.environ, LOG: str(log)}, str(output)))
        self._process.start()

    @property
    def pid(self) -> int:
        """Process id."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit status once it has ended, negative after a signal."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Return the exit status, or None while it runs."""
        return self._process.exitcode

    def kill(self) -> None:
        """Send SIGKILL."""
        self._process.kill()

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Wait for the end; return what was written to output and errors."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self._process.kill()
            raise TimeoutError(f"{self._output.parent}: still running after {timeout} s")
        found = [path.read_text() if path.exists() else "" for path in output_files(str(self._output))]
        return found[0], found[1]


def ended_well(process: Forked, *, timeout: float = 300) -> dict[str, Any]:
    """Wait for a command and return its figures."""
    output, errors = process.communicate(timeout=timeout)
    if process.returncode or errors:
        raise AssertionError(f"status {process.returncode}: {errors}{output}")
    figures: dict[str, Any] = json.loads(output)
    return figures


def workers_of(process: Forked) -> list[psutil.Process]:
    """Return the worker processes of a run."""
    try:
        children = psutil.Process(process.pid).children(recursive=True)
        return [child for child in children if "pipelines.local_worker" in child.cmdline()]
    except psutil.Error:
        return []
