"""A worker process of the local runner: Beam's own, quieter, and gone when the process that started it is gone."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ask Linux to end this process when its parent ends; elsewhere a killed run leaves its workers to finish their unit."""
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


def main() -> None:
    """Serve the runner named by the environment until it closes the connection."""
    die_with_parent()
    # Beam raises the root logger to INFO at start; a handler of our own keeps that off the terminal. What is logged, errors too,
    # goes to the process that started this one.
    handler = logging.StreamHandler()
    handler.setLevel(logging.CRITICAL)
    logging.getLogger().addHandler(handler)
    from apache_beam.runners.worker import sdk_worker_main

    # Beam prints the traceback of every error besides sending it; it is the runner's to tell.
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
        sdk_worker_main.main(sys.argv)
    # Taking the interpreter down while threads of Beam still run can abort, and that would look as if the work had failed.
    os._exit(0)


if __name__ == "__main__":
    main()
