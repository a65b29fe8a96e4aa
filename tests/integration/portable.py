"""Beam's job service and pools of workers for the length of a block, with an environment or a view of the disk of their own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

from tests.integration.job_service import Server, free_port
from tests.pipelines.support import ROOT


def worker_environment(*, path=(ROOT,), **changes):
    """Environment variables of a pool whose workers have this Python and import from `path`."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, path)),
        "OMP_NUM_THREADS": "1",
        # The pool starts workers as `python`.
        "PATH": f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}",
        **changes,
    }


@contextlib.contextmanager
def _server(module, *words, port, log, before=(), env=None):
    with log.open("a") as file:
        process = subprocess.Popen(
            [*before, sys.executable, "-m", module, *map(str, words)],
            env=env or worker_environment(),
            stdout=file,
            stderr=file,
            cwd=log.parent,
            start_new_session=True,
        )
    server = Server(process, port, log)
    try:
        yield server.wait().port
    finally:
        server.end()


def job_service(folder):
    """Beam's own job service, as a context; gives its port."""
    folder, port = Path(folder), free_port()
    module = "apache_beam.runners.portability.local_job_service_main"
    return _server(module, "-p", port, "--staging_dir", folder / "staging", port=port, log=folder / "service.log")


def worker_pool(folder, *, env=None, before=()):
    """A pool of workers, as a context; gives its port.

    Args:
        env: its environment, and that of its workers; None: as here.
        before: words that start it, as `unshare`.
    """
    port = free_port()
    module = "apache_beam.runners.worker.worker_pool_main"
    return _server(module, "--service_port", port, port=port, log=Path(folder) / f"pool-{port}.log", env=env, before=before)


def portable_options(service_port, pool_port):
    """Options of Beam for a job service and a pool of workers."""
    return [
        "--runner=PortableRunner",
        f"--job_endpoint=127.0.0.1:{service_port}",
        "--environment_type=EXTERNAL",
        f"--environment_config=127.0.0.1:{pool_port}",
    ]
