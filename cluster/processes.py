"""Processes of a cluster: started, waited for, noted in a file, and taken down: those, what they started, and no others."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from cluster.errors import ClusterError
from cluster.ports import answers
from cluster.signals import unhurried

MARK = "DECANT_CLUSTER"
"""Environment variable that holds a cluster's id in all its processes; those are taken down by it, also what they started."""

FOLDER_MARK = "DECANT_CLUSTER_FOLDER"
"""The same with the folder that holds its state, for when that is gone."""

_STATE = "state.json"
_LOGS = "logs"
_LOG_TAIL_LINES = 15
_TERM_SECONDS = 5.0
_POLL_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Service:
    """How one long-running process of the cluster is started.

    Attributes:
        environment: variables beside those of the process that starts it.
        address: "host:port" that answers once it serves; None: something else tells.
        host: which of the hosts that are played it belongs to, for people.
    """

    name: str
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    address: str | None = None
    host: str = "-"


@dataclass(frozen=True, kw_only=True, slots=True)
class Started:
    """A service that runs, or ran.

    Attributes:
        created: POSIX time at which the process began; with the id it names one process for ever.
    """

    service: Service
    pid: int
    created: float


class Processes:
    """The processes of one cluster, noted in a folder so that another command can find and end them.

    Args:
        folder: holds the state file, and logs and scratch space of every service.
        id: what the environment of all its processes holds.
    """

    def __init__(self, folder: Path, *, id: str, started: dict[str, Started], facts: dict[str, str]) -> None:
        self.folder = folder
        self.id = id
        self.started = started
        self.facts = facts
        self.undo: list[list[str]] = []
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    @classmethod
    def create(cls, folder: Path) -> Processes:
        """Begin a cluster in a folder.

        Raises:
            ClusterError: there is one.
        """
        if (folder / _STATE).exists():
            raise ClusterError(f"{folder} holds a cluster already; take it down first, or choose another --folder")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder / _LOGS, ignore_errors=True)
        (folder / _LOGS).mkdir()
        (folder / "scratch").mkdir(exist_ok=True)
        processes = cls(folder, id=uuid.uuid4().hex, started={}, facts={})
        processes.save()
        return processes

    @classmethod
    def find(cls, folder: Path) -> Processes | None:
        """Return the cluster of a folder, None where there is none.

        Raises:
            ClusterError: its state file is damaged.
        """
        path = folder / _STATE
        try:
            data = json.loads(path.read_text())
            started = {
                name: Started(
                    service=Service(**{**entry["service"], "command": tuple(entry["service"]["command"])}),
                    pid=entry["pid"],
                    created=entry["created"],
                )
                for name, entry in data["started"].items()
            }
            found = cls(folder, id=data["id"], started=started, facts=data["facts"])
            found.undo = data["undo"]
            return found
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise ClusterError(
                f"{path} is damaged ({error}); end the processes that have {MARK} in their environment, and remove it"
            ) from error

    def save(self) -> None:
        """Write the state file, all or nothing."""
        state = {
            "id": self.id,
            "started": {name: asdict(started) for name, started in self.started.items()},
            "facts": self.facts,
            "undo": self.undo,
        }
        partial = self.folder / f"{_STATE}.partial"
        partial.write_text(json.dumps(state, indent=2))
        partial.replace(self.folder / _STATE)

    def undo_later(self, command: list[str]) -> None:
        """Note a command that is run when the cluster is taken down, before what it undoes is done."""
        self.undo.append(command)
        self.save()

    @property
    def scratch(self) -> Path:
        """Folder for what services need no longer than they run; it goes with them."""
        return self.folder / "scratch"

    def home(self, name: str) -> Path:
        """Return the working folder of a service; it is made."""
        home = self.scratch / name
        home.mkdir(parents=True, exist_ok=True)
        return home

    def log(self, name: str) -> Path:
        """Return the file that holds what a service says."""
        return self.folder / _LOGS / f"{name}.log"

    def start(self, service: Service) -> Started:
        """Start a service, or start it again, and note it.

        Raises:
            ClusterError: its program is not there.
        """
        environment = {**os.environ, **service.environment, MARK: self.id, FOLDER_MARK: str(self.folder.resolve())}
        home = self.home(service.name)
        with self.log(service.name).open("ab") as log:
            try:
                # A session of its own: an interrupt from the terminal is the starting process's to handle.
                child = subprocess.Popen(
                    service.command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=home,
                    env=environment,
                    start_new_session=True,
                )
            except OSError as error:
                raise ClusterError(f"{service.name} cannot be started: {error}") from error
        self._children[child.pid] = child
        with contextlib.suppress(psutil.Error):
            started = Started(service=service, pid=child.pid, created=psutil.Process(child.pid).create_time())
            self.started[service.name] = started
            self.save()
            return started
        raise self._ended(service.name)

    def is_alive(self, name: str) -> bool:
        """Return whether a service's process runs."""
        started = self.started[name]
        child = self._children.get(started.pid)
        if child is not None:
            return child.poll() is None
        try:
            process = psutil.Process(started.pid)
            return bool(process.create_time() == started.created and process.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False

    def wait_for(self, names: list[str], *, ready: Callable[[], bool], what: str, timeout_seconds: float) -> None:
        """Wait until services are ready.

        Raises:
            ClusterError: one of them ended, or time is over; the message shows the end of its log.
        """
        deadline = time.monotonic() + timeout_seconds
        while not ready():
            for name in names:
                if not self.is_alive(name):
                    raise self._ended(name)
            if time.monotonic() > deadline:
                said = "\n".join(f"{self.log(name)}:\n{self._tail(name)}" for name in names)
                raise ClusterError(f"{what} after {timeout_seconds:.0f} seconds; what was said last:\n{said}")
            time.sleep(_POLL_SECONDS)

    def wait_for_port(self, name: str, *, timeout_seconds: float = 60) -> None:
        """Wait until a service answers on its address.

        Raises:
            ClusterError: it ended, or does not answer in time.
        """
        address = self.started[name].service.address
        assert address is not None
        self.wait_for(
            [name],
            ready=lambda: answers(address),
            what=f"{name} does not answer on {address}",
            timeout_seconds=timeout_seconds,
        )

    def _tail(self, name: str) -> str:
        try:
            lines = self.log(name).read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return ""
        return "\n".join(f"  {line}" for line in lines[-_LOG_TAIL_LINES:])

    def _ended(self, name: str) -> ClusterError:
        child = self._children.get(self.started[name].pid) if name in self.started else None
        status = f" with status {child.returncode}" if child is not None and child.returncode is not None else ""
        return ClusterError(f"{name} ended{status}; what it said last, in {self.log(name)}:\n{self._tail(name)}")

    def members(self) -> list[psutil.Process]:
        """Return every process of the cluster, those that services started too."""
        return _marked(MARK, self.id)

    def stop(self, name: str, *, kill: bool = False) -> None:
        """End one service and what it started: politely, or as a machine that fails does."""
        started = self.started[name]
        with contextlib.suppress(psutil.Error):
            _end([process for process in self.members() if os.getsid(process.pid) == started.pid], kill=kill)
        self._reap()

    def stop_all(self) -> int:
        """End every process of the cluster, forget it, and return how many there were."""
        # What is about to start another process when it is asked to end may do so first.
        with unhurried():
            num_ended = _end_all(self.members)
            self._reap()
            for command in reversed(self.undo):
                subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
            shutil.rmtree(self.scratch, ignore_errors=True)
            (self.folder / _STATE).unlink(missing_ok=True)
        return num_ended

    def _reap(self) -> None:
        for child in self._children.values():
            child.poll()


def end_strays(folder: Path) -> int:
    """End what runs of clusters that a folder held before somebody removed it, and return how many processes there were."""
    with unhurried():
        return _end_all(lambda: _marked(FOLDER_MARK, str(folder.resolve())))


def _marked(name: str, value: str) -> list[psutil.Process]:
    """Return the processes that have such a variable, those that services started too."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(name) == value and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _end_all(members: Callable[[], list[psutil.Process]]) -> int:
    ended: set[int] = set()
    while found := members():
        ended.update(process.pid for process in found)
        _end(found, kill=False)
    return len(ended)


def _end(processes: list[psutil.Process], *, kill: bool) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            (process.kill if kill else process.terminate)()
    _, alive = psutil.wait_procs(processes, timeout=_TERM_SECONDS)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=_TERM_SECONDS)


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold a folder against other commands that bring up or take down.

    Raises:
        ClusterError: another one is at work there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ClusterError(f"another cluster command is at work in {folder}; wait for its end") from error
        yield
