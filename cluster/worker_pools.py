"""Beam's worker pools, one a host: they start Python workers when that host's TaskManager asks."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from cluster.errors import ClusterError
from cluster.hosts import Host
from cluster.ports import free_address
from cluster.processes import Service
from cluster.shipping import shipped_environment, start_script

POOL_NAME = "worker-pool"
"""Host name under which every TaskManager finds the pool of its own host, as a sidecar is found under `localhost`."""

OWN_POOL_PORT = 50000
"""Of pools on hosts with networks of their own."""

_MAIN = Path(__file__).with_name("worker_pool_main.py")


def pool_port(hosts: list[str]) -> int:
    """Return a port that is free on every host.

    Raises:
        ClusterError: an address is not this machine's, or no port was found.
    """
    problem: ClusterError | None = None
    for _ in range(20):
        port = int(free_address(hosts[0]).rpartition(":")[2])
        try:
            for host in hosts[1:]:
                free_address(host, port=port)
        except ClusterError as error:
            problem = error
            continue
        return port
    assert problem is not None
    raise problem


def worker_environment() -> dict[str, str]:
    """Return what makes workers use this Python: a pool starts `python` from the PATH.

    Raises:
        ClusterError: this Python is not installed as `python`.
    """
    folder = Path(sys.executable).parent
    if not (folder / "python").exists():
        raise ClusterError(
            f"{folder} has no `python`, which is how Beam's worker pool starts workers; use a virtual environment (make install)"
        )
    return {"PATH": f"{folder}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}


def worker_pool(host: Host, *, port: int, environment: dict[str, str], python: Path | None = None) -> Service:
    """Return the process of a host's pool, on that host's address.

    Args:
        environment: what workers need to reach the store, and how many threads they may use.
        python: a virtual environment without Decant, which jobs bring; None: workers use this Python.
    """
    address = f"{host.address}:{port}"
    program, starting, variables = _started_by(python)
    return Service(
        name=f"worker-pool-{host.number}",
        # Not the repository's files but what is installed is what workers import.
        command=(*host.enter, program, "-P", str(_MAIN), address, *starting),
        environment={**variables, **environment},
        address=address,
        host=host.address,
    )


def own_worker_pool(host: Host, *, folder: Path, environment: dict[str, str], python: Path | None = None) -> Service:
    """Return the process of Beam's own pool on a host with a network of its own.

    Args:
        folder: that this host has on its own disk, or not at all.
        python: a virtual environment without Decant, as the host sees it; None: workers use this Python.
    """
    enter = host.enter_without_shared_disk(folder)
    main = "apache_beam.runners.worker.worker_pool_main"
    program, starting, variables = _started_by(python)
    return Service(
        name=f"worker-pool-{host.number}",
        command=(*enter, program, "-P", "-m", main, f"--service_port={OWN_POOL_PORT}", *starting),
        environment={**variables, **environment},
        address=f"{host.address}:{OWN_POOL_PORT}",
        host=host.address,
    )


def _started_by(python: Path | None) -> tuple[str, tuple[str, ...], dict[str, str]]:
    """Return a pool's Python, the words that say how it starts workers, and its variables."""
    if python is None:
        return sys.executable, (), worker_environment()
    return str(python / "bin" / "python"), (f"--container_executable={start_script(python)}",), shipped_environment(python)
