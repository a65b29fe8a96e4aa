"""The trial of faults on a cluster: `python -m tests.trials.cluster_faults`.

A Flink cluster of two hosts is played on this machine (`cluster/`). Real pictures are labelled by a real network, from the store
into the store. In the middle of the job a fault happens: a worker pool with its workers, a TaskManager or the submitter gets
SIGKILL, or the store answers 503 for ten seconds; or a run on this machine, or on a second cluster, writes the same cache at the same
time. Then what people
or their supervisors do is done: the process is started again; where the command failed, or was killed, the same command is run again.
In the end every file that readers look at is compared with a local run that nobody disturbed. The network writes down every batch:
what is beyond those of one run was computed twice.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cluster.assembly import Shape, bring_up, submission_arguments, submission_environment
from cluster.comparison import cache_files, compare_caches
from cluster.demo import Demo, decant, files_on_cluster, label_config, prepare
from cluster.downloads import DEFAULT
from cluster.object_store import BUCKET, object_names, put_files
from cluster.pictures import PIXELS
from cluster.processes import Processes, only_one
from cluster.signals import unwind_on_signals
from tests.storage.faulty_s3 import Fault, FaultyS3
from tests.trials.counted_network import LOG
from tests.trials.support import ROOT

NOTHING = "nothing"
POOL = "a worker pool killed, with its workers"
TASK_MANAGER = "a TaskManager killed"
STORE = "the store answers 503 for 10 s"
SUBMITTER = "the submitter killed"
SECOND_RUN = "a local run writes the same cache at once"
SECOND_CLUSTER = "a second cluster writes the same cache at once"
FAULTS = {
    "none": NOTHING,
    "pool": POOL,
    "task-manager": TASK_MANAGER,
    "store": STORE,
    "submitter": SUBMITTER,
    "second-run": SECOND_RUN,
    "second-cluster": SECOND_CLUSTER,
}
_DARK_SECONDS = 10.0
_MOST_COMMANDS = 3
_RUN_SECONDS = 900.0
_NUM_PICTURES = 6000
_SECONDS_PER_BATCH = 0.3


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One trial.

    Attributes:
        num_committed: parts that were committed when the fault happened; None where nothing happened.
        num_commands: how often `decant label` was run.
        words: what the commands said on their error stream.
        num_units_again: units computed a second time, whole or in part.
        differing: files that are not those of the local run.
    """

    fault: str
    num_committed: int | None
    num_commands: int
    words: tuple[str, ...]
    num_units_again: float
    seconds: float
    differing: tuple[str, ...]


class TooLateError(Exception):
    """The run had ended before anything could happen to it."""


class Trial:
    """A cluster with a store that can fail, and the experiment that is labelled on it."""

    def __init__(
        self, folder: Path, processes: Processes, *, second: Processes | None, pictures: Path, teacher: dict[str, Any]
    ) -> None:
        self._folder = folder
        self._processes = processes
        self._second = second
        self._teacher = teacher
        self.log = Path(os.environ[LOG])
        store = urlsplit(processes.facts["store"])
        assert store.hostname is not None
        assert store.port is not None
        self.proxy = FaultyS3(server=(store.hostname, store.port))
        self._store = f"{store.hostname}:{store.port}"
        put_files(self._store, folder=pictures, prefix="pictures")
        self.through_proxy = {"AWS_ENDPOINT_URL": self.proxy.url}
        for cluster in (processes, *([] if second is None else [second])):
            self._let_workers_use_proxy(cluster)
        self.num_batches = 0
        """Of a run that nobody disturbs."""
        self.num_units = 0

    def _let_workers_use_proxy(self, cluster: Processes) -> None:
        for name, started in list(cluster.started.items()):
            if name.startswith("worker-pool"):
                environment = {**started.service.environment, **self.through_proxy}
                cluster.stop(name)
                cluster.start(dataclasses.replace(started.service, environment=environment))
                cluster.wait_for_port(name)

    def run_here(self, pictures: Path) -> dict[str, bytes]:
        """Label on this machine and return the files that readers look at."""
        cache = self._folder / f"local-{time.time_ns():x}"
        config = self._config("local", source=str(pictures), cache=str(cache))
        before = self._batches()
        figures = decant("label", config, log=self._folder / "local.log")
        self.num_batches = self._batches() - before
        self.num_units = figures["num_units"]
        return cache_files(cache)

    def _batches(self) -> int:
        return self.log.stat().st_size if self.log.exists() else 0

    def _config(self, name: str, *, source: str, cache: str) -> str:
        data = label_config(source=source, cache=cache, teacher=Path())
        path = self._folder / f"{name}.json"
        path.write_text(json.dumps({**data, "teacher": self._teacher}))
        return str(path)

    def run(self, fault: str, *, number: int, rng: random.Random, expected: dict[str, bytes]) -> Outcome:
        """Label on the cluster, with a fault in the middle.

        Raises:
            TooLateError: the run was faster.
        """
        cache = f"faults/{number}"
        config = self._config("cluster", source=f"s3://{BUCKET}/pictures", cache=f"s3://{BUCKET}/{cache}")
        before = self._batches()
        started = time.monotonic()
        num_committed = None
        words: list[str] = []
        num_commands = 0
        succeeded = False
        while not succeeded and num_commands < _MOST_COMMANDS:
            num_commands += 1
            command = self._submit(config, to=self._processes)
            others: list[subprocess.Popen[str]] = []
            try:
                if num_commands == 1 and fault != NOTHING:
                    # A second run needs a while before it labels, on another cluster as long as the first.
                    enough = {SECOND_RUN: 1, SECOND_CLUSTER: 0}.get(fault, rng.randint(1, self.num_units - 3))
                    num_committed = self._when_committed(enough, command=command, cache=cache)
                    time.sleep(rng.random())
                    self._check_goes_on(command)
                    if fault == SECOND_RUN:
                        others.append(self._start(config))
                    elif fault == SECOND_CLUSTER:
                        assert self._second is not None
                        others.append(self._submit(config, to=self._second))
                    else:
                        self._harm(fault, command=command, rng=rng)
                said = [process.communicate(timeout=_RUN_SECONDS)[1] for process in (command, *others)]
            finally:
                for process in (command, *others):
                    process.kill()
            succeeded = all(process.returncode == 0 for process in (command, *others))
            words += [text.strip() for text in said if text.strip()]
        files = files_on_cluster(self._processes, cache=cache)
        differing = [name for kind in compare_caches(expected, files) for name in kind.differing]
        return Outcome(
            fault=fault,
            num_committed=num_committed,
            num_commands=num_commands,
            words=tuple(words),
            num_units_again=(self._batches() - before - self.num_batches) / (self.num_batches / self.num_units),
            seconds=time.monotonic() - started,
            differing=tuple(differing),
        )

    def _submit(self, config: str, *, to: Processes) -> subprocess.Popen[str]:
        return self._start(config, *submission_arguments(to, through_job_server=False), environment=submission_environment(to))

    def _start(self, config: str, *arguments: str, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "decant", "label", config, *arguments, "--json"],
            cwd=ROOT,
            env={**os.environ, **(environment or submission_environment(self._processes)), **self.through_proxy},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _when_committed(self, enough: int, *, command: subprocess.Popen[str], cache: str) -> int:
        """Wait until so many parts are committed, and return how many are."""
        found = 0
        while found < enough and command.poll() is None:
            time.sleep(1)
            found = sum(name.endswith(".tar") for name in object_names(self._store, prefix=f"{cache}/requests"))
        return found

    def _check_goes_on(self, command: subprocess.Popen[str]) -> None:
        if command.poll() is not None:
            raise TooLateError(f"the run ended with status {command.returncode}: {command.communicate()[1]}")

    def _harm(self, fault: str, *, command: subprocess.Popen[str], rng: random.Random) -> None:
        host = rng.randint(1, 2)
        if fault == POOL:
            self._kill_and_start(f"worker-pool-{host}")
        elif fault == TASK_MANAGER:
            self._kill_and_start(f"task-manager-{host}")
        elif fault == STORE:
            self.proxy.start(lambda request: Fault.UNAVAILABLE)
            time.sleep(_DARK_SECONDS)
            self.proxy.start(lambda request: None)
        else:
            command.kill()

    def _kill_and_start(self, name: str) -> None:
        """Do what the loss of a machine and its supervisor do."""
        service = self._processes.started[name].service
        self._processes.stop(name, kill=True)
        self._processes.start(service)


def markdown(outcomes: list[Outcome], *, num_units: int) -> str:
    """Return the table of the outcomes."""
    lines = [
        "| fault | trials | same bytes as the local run | units computed again: mean, most | commands run: most | seconds: median |",
        "|---|---|---|---|---|---|",
    ]
    for fault in FAULTS.values():
        mine = [outcome for outcome in outcomes if outcome.fault == fault]
        if mine:
            again = [outcome.num_units_again for outcome in mine]
            seconds = sorted(outcome.seconds for outcome in mine)[len(mine) // 2]
            lines.append(
                f"| {fault} | {len(mine)} | {sum(not outcome.differing for outcome in mine)} "
                f"| {sum(again) / len(again):.1f}, {max(again):.1f} of {num_units} "
                f"| {max(outcome.num_commands for outcome in mine)} | {seconds:.0f} |"
            )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the trial and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10, help="of each fault (default: 10)")
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=[*FAULTS], help="which (default: all)")
    parser.add_argument("--seed", type=int, default=1, help="of the moments at which faults happen (default: 1)")
    parser.add_argument("--folder", type=Path, default=Path("runs/cluster-faults"))
    parser.add_argument("--pictures", type=int, default=_NUM_PICTURES, help=f"pictures a run labels (default: {_NUM_PICTURES})")
    parser.add_argument(
        "--teacher", type=Path, help="checkpoint of a resnet10t for the ten classes (default: one trained for it)"
    )
    parser.add_argument("--downloads", type=Path, default=DEFAULT, help="where Flink and Beam's jar are kept")
    parser.add_argument("--output", type=Path, help="also write every trial to this JSON file")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    shape = Shape()
    # Workers import the network from this repository, and all of them write to one file.
    os.environ["PYTHONPATH"] = str(ROOT)
    os.environ[LOG] = str(folder / f"batches-{time.time_ns():x}")
    os.environ.pop("AWS_PROFILE", None)
    unwind_on_signals()
    say: Callable[[str], Any] = lambda text: sys.stderr.write(f"{text}\n")  # noqa: E731
    demo = Demo(folder=folder, shape=shape, num_pictures=arguments.pictures, teacher=arguments.teacher)
    pictures, checkpoint, _ = prepare(demo, say=say)
    kwargs = {"checkpoint": str(checkpoint), "pixels": PIXELS + 4, "num_classes": 10, "seconds_per_batch": _SECONDS_PER_BATCH}
    teacher = {"kind": "factory", "name": "tests.trials.counted_network:counted", "kwargs": kwargs, "device": "cpu"}
    outcomes = []
    with only_one(folder):
        processes = bring_up(folder, shape=shape, downloads=arguments.downloads, say=say)
        second = None
        try:
            if "second-cluster" in arguments.faults:
                second = bring_up(folder / "second", shape=shape, downloads=arguments.downloads, say=say)
            trial = Trial(folder, processes, second=second, pictures=pictures, teacher=teacher)
            expected = trial.run_here(pictures)
            wanted = [FAULTS[name] for name in arguments.faults for _ in range(1 if name == "none" else arguments.trials)]
            number = 0
            while wanted:
                number += 1
                rng = random.Random(f"{arguments.seed} {number}")
                try:
                    outcomes.append(trial.run(wanted[0], number=number, rng=rng, expected=expected))
                except TooLateError as error:
                    say(f"{wanted[0]}, once more: {error}")
                    continue
                wanted.pop(0)
                say(f"{len(outcomes)}: {outcomes[-1]}")
                if arguments.output:
                    arguments.output.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=2))
        finally:
            for cluster in (processes, second):
                if cluster is not None:
                    cluster.stop_all()
    sys.stdout.write(markdown(outcomes, num_units=trial.num_units))
    return 1 if any(outcome.differing for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
