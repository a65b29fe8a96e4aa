"""The hosts that are played: addresses on loopback, or networks and disks of their own (Linux, root)."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from cluster.downloads import find_program
from cluster.errors import ClusterError
from cluster.processes import Processes

_HERE = "127.0.0.1"
_NETWORK = "198.18.{}"
"""Set aside for benchmarks of networks: nobody's real address."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Host:
    """A machine that is played.

    Attributes:
        address: where others reach it.
        enter: what before a command runs it there.
        disk: folder that holds what lies on this host's own disk where others have the cluster's folder; None: all share it.
    """

    number: int
    address: str
    enter: tuple[str, ...] = ()
    disk: Path | None = None

    def enter_without_shared_disk(self, folder: Path) -> tuple[str, ...]:
        """Return what before a command runs it there, with the host's disk in the place of a folder."""
        if self.disk is None:
            return self.enter
        script = 'mount --bind "$1" "$2" && cd / && shift 2 && exec "$@"'
        return (*self.enter, "sh", "-c", script, "sh", str(self.disk), str(folder))


@dataclass(frozen=True, kw_only=True, slots=True)
class Hosts:
    """All of them.

    Attributes:
        center: address of the host that has the JobManager and the store.
        workers: hosts with a TaskManager and a worker pool.
        are_apart: they have networks of their own, so that each finds its pool under `localhost`.
    """

    center: str
    workers: list[Host]
    are_apart: bool


def hosts_on_loopback(num_hosts: int) -> Hosts:
    """Return hosts that are addresses of this machine."""
    workers = [Host(number=number, address=f"127.0.0.{1 + number}") for number in range(1, num_hosts + 1)]
    return Hosts(center=_HERE, workers=workers, are_apart=False)


def check_own_networks() -> None:
    """Refuse networks of their own where they cannot be made.

    Raises:
        ClusterError: not root, or there is no `ip`.
    """
    find_program("ip", remedy="install iproute2, or leave out --own-networks")
    if os.geteuid() != 0:
        raise ClusterError("hosts with networks of their own can only be made by root; leave out --own-networks")


def hosts_with_own_networks(processes: Processes, *, num_hosts: int) -> Hosts:
    """Make a network namespace for each host, all on one bridge, and a disk; they go when the cluster is taken down.

    Raises:
        ClusterError: they cannot be made.
    """
    short = processes.id[:8]
    network = _NETWORK.format(int(short[:2], 16))
    bridge = f"dc{short}"
    processes.undo_later(["ip", "link", "del", bridge])
    _ip("link", "add", bridge, "type", "bridge")
    _ip("addr", "add", f"{network}.1/24", "dev", bridge)
    _ip("link", "set", bridge, "up")
    workers = []
    for number in range(1, num_hosts + 1):
        name, wire, address = f"decant-{short}-{number}", f"dv{short}n{number}", f"{network}.{1 + number}"
        processes.undo_later(["ip", "netns", "del", name])
        _ip("netns", "add", name)
        _ip("link", "add", wire, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("link", "set", wire, "master", bridge, "up")
        _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
        _ip("-n", name, "link", "set", "eth0", "up")
        _ip("-n", name, "link", "set", "lo", "up")
        disk = processes.home(f"disk-{number}").resolve()
        workers.append(Host(number=number, address=address, enter=("ip", "netns", "exec", name), disk=disk))
    return Hosts(center=f"{network}.1", workers=workers, are_apart=True)


def _ip(*words: str) -> None:
    finished = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if finished.returncode:
        raise ClusterError(f"`ip {' '.join(words)}` failed ({finished.stderr.strip()}); leave out --own-networks")
