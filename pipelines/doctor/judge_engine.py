"""What an engine's own words mean: why a job did not start, ended, or never came back."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass

from pipelines.doctor.findings import Finding, Heard

_SHOWN_CHARACTERS = 600
_SHIP = (
    "install it in the environment whose `python` the worker pool finds, or, where Beam's entry point starts workers "
    "(docs/cluster.md), ship it with the job: --setup_file ./setup.py"
)


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Where the job went.

    Attributes:
        runner: as it was asked for.
        local: the job ran on this machine.
        place: address of the job manager or job service; "" where none was given.
        environment: kind of the workers' environment (EXTERNAL, DOCKER, PROCESS, LOOPBACK); "" where none was given.
        workers_at: configuration of that environment, an address for EXTERNAL.
    """

    runner: str
    local: bool
    place: str = ""
    environment: str = ""
    workers_at: str = ""

    def in_words(self) -> str:
        """Return where the job went, in words."""
        parts = [self.runner]
        if self.place:
            parts.append(f"at {self.place}")
        if self.environment:
            parts.append(f"workers: {self.environment} {self.workers_at}".rstrip())
        return ", ".join(parts)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How the job went.

    Attributes:
        num_elements: that were sent.
        seconds: until it was known how.
        failure: all that the engine says of what went wrong; None: nothing did.
        cause: the same in short.
        timed_out: it did not come back in time, and was cancelled.
    """

    num_elements: int
    seconds: float
    failure: str | None = None
    cause: str = ""
    timed_out: bool = False


def judge_engine(heard: Heard, *, engine: Engine, outcome: Outcome) -> Iterator[Finding]:
    """Yield how the job went, and whom it met."""
    num_processes, num_hosts = len(heard.workers), len(heard.hosts)
    num_met = len({number for worker in heard.workers for number in worker.elements})
    met = f"met {_count(num_processes, 'worker process', 'worker processes')} on {_count(num_hosts, 'host', 'hosts')}"
    if outcome.failure is not None:
        yield explain_failure(outcome.failure, cause=outcome.cause, engine=engine)
    elif outcome.timed_out:
        yield _explain_silence(engine, outcome=outcome, met=met if num_processes else "no worker answered")
    elif num_met < outcome.num_elements:
        yield Finding(
            level="error",
            topic="engine",
            message=f"{engine.in_words()}: the job ended, but {outcome.num_elements - num_met} of {outcome.num_elements} "
            "elements were met by no worker that could be heard",
            remedy="An engine that loses elements loses labels: look at its log, and use another one if it says nothing",
        )
    if num_processes:
        yield Finding(
            level="ok",
            topic="workers",
            message=f"{met}, in {outcome.seconds:.1f} s, by {outcome.num_elements} elements"
            + ("" if engine.local else "; a worker that got none of them was not met: --elements asks for more"),
        )


def explain_failure(text: str, *, cause: str, engine: Engine) -> Finding:
    """Return what an engine's error means, and what to do.

    Args:
        text: all that it says.
        cause: the same in short, for what is not known here.
    """
    missing = re.search(r"No module named '([\w.]+)'", text)
    if missing is not None:
        return _of_module(missing[1])
    for pattern, message, remedy in _KNOWN:
        if re.search(pattern, text):
            return _finding(f"{message.format(engine=engine, python=platform.python_version())}", remedy.format(engine=engine))
    last = cause.strip()
    if len(last) > _SHOWN_CHARACTERS:
        last = f"... {last[-_SHOWN_CHARACTERS:]}"
    return _finding(
        f"{engine.in_words()}: the job failed: {last or 'the engine does not say why'}",
        "Look at the job in the engine's page or log; --verbose shows all that it said here",
    )


def _of_module(name: str) -> Finding:
    top = name.partition(".")[0]
    if name.startswith("pipelines.") and top != name:
        return _finding(f"workers have another decant, without {name}", f"It is older than this one: {_SHIP}")
    if top in ("pipelines", "storage", "decant"):
        return _finding("workers have no decant: their Python finds no module " + name, f"Once: {_SHIP}")
    return _finding(f"workers find no module {name}", f"As decant needs it: {_SHIP.replace('install it', 'install its package')}")


def _finding(message: str, remedy: str) -> Finding:
    return Finding(level="error", topic="engine", message=message, remedy=remedy)


def _explain_silence(engine: Engine, *, outcome: Outcome, met: str) -> Finding:
    message = f"{engine.in_words()}: the job did not come back within {outcome.seconds:.0f} s; {met}"
    if engine.environment == "EXTERNAL":
        remedy = (
            f"A worker pool must listen at {engine.workers_at} as each host of the engine sees it, and start workers that find "
            "their way back to the engine: look at the pool's log, and run `python -c 'import apache_beam, pipelines.doctor'` "
            "with the `python` of its PATH"
        )
    elif engine.environment == "DOCKER":
        remedy = "Hosts pull the image at the first job: look at their log, and give --timeout more seconds; or use worker pools"
    else:
        remedy = "Look at the job in the engine's page: are there free slots, and do its workers start? --timeout gives it longer"
    return _finding(message, f"{remedy}. The job was cancelled")


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


_KNOWN = (
    (
        r"NoResourceAvailableException|Could not acquire the minimum required resources|Not enough resources",
        "{engine.place}: there are no free slots for the job",
        "Wait for, or cancel, what runs there; add TaskManagers; or ask for fewer: --parallelism",
    ),
    (
        r"serialVersionUID|InvalidClassException|NoSuchMethodError|NoClassDefFoundError|IncompatibleClassChangeError",
        "the engine and Beam's jar are not of one version",
        "Use the jar of the cluster's minor version: --flink_version for Flink, --flink_job_server_jar for a jar of your own",
    ),
    (
        r"Cannot run program \"docker\"|docker: (?:command )?not found|permission denied while trying to connect to the Docker",
        "workers were to run in Docker, which is not there on the engine's hosts",
        "Start worker pools and say --environment_type=EXTERNAL --environment_config=HOST:PORT, or install Docker there",
    ),
    (
        r"code\(\) (?:takes|argument|expected)|bad marshal data|unknown opcode|Python (?:major|minor)? ?version mismatch",
        "functions did not survive the way: workers do not run Python {python}",
        "Use the same minor version of Python on both sides",
    ),
    (
        r"worker pool.*refused|StatusCode\.UNAVAILABLE|failed to connect to all addresses|UNAVAILABLE: io exception",
        "{engine.runner}: nothing answers where the job's workers should be ({engine.workers_at}), or on their way back",
        (
            "Start a worker pool there (python -m apache_beam.runners.worker.worker_pool_main --service_port=PORT); the address "
            "is looked up on the engine's hosts, not here"
        ),
    ),
)
