"""Beam's portable job service and worker pools: servers of this machine, each a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.pipelines.support import ROOT

_START_SECONDS = 90


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass(frozen=True)
class Server:
    """A process with a group of its own, in which what it starts is, too."""

    process: subprocess.Popen
    port: int
    log: Path

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    def wait(self):
        deadline = time.monotonic() + _START_SECONDS
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return self
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    def end(self, number=signal.SIGTERM):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)
        self.process.wait(timeout=30)


def _start(module, *words, folder, name, path=()):
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*map(str, path), str(ROOT)]),
        "OMP_NUM_THREADS": "1",
        # A pool starts workers as `python`.
        "PATH": f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}",
    }
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{name}.log"
    with log.open("w") as file:
        return subprocess.Popen(
            [sys.executable, "-m", module, *words],
            env=environment,
            stdout=file,
            stderr=file,
            cwd=folder,
            start_new_session=True,
        ), log


def start_job_service(folder):
    port = free_port()
    module = "apache_beam.runners.portability.local_job_service_main"
    process, log = _start(module, "-p", str(port), "--staging_dir", str(folder / "staging"), folder=folder, name="service")
    return Server(process, port, log)


def start_worker_pool(folder, *, path=()):
    """Start a pool whose workers have `folder` as their working folder, and folders of `path` before all others to import from."""
    port = free_port()
    module = "apache_beam.runners.worker.worker_pool_main"
    process, log = _start(module, "--service_port", str(port), folder=folder, name="pool", path=path)
    return Server(process, port, log)


def options_for(service, pool):
    """Return the command line's options of a job on these servers."""
    return [
        "--runner=PortableRunner",
        f"--job_endpoint={service.address}",
        "--environment_type=EXTERNAL",
        f"--environment_config={pool.address}",
    ]
