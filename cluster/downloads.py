"""What the cluster needs besides this repository, kept in a folder outside it."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

from cluster.errors import ClusterError

DEFAULT = Path.home() / ".cache" / "decant-cluster"
_TAIL_LINES = 8


def find_program(name: str, *, remedy: str) -> str:
    """Return the path of a program.

    Raises:
        ClusterError: it is not there; the message ends with the remedy.
    """
    path = shutil.which(name)
    if path is None:
        raise ClusterError(f"{name} is not on the PATH; {remedy}")
    return path


@contextlib.contextmanager
def made_whole(path: Path) -> Iterator[Path]:
    """Give a scratch folder that becomes `path` when the block ends well; nothing half made is ever found under the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.parent / f"{path.name}.{uuid.uuid4().hex[:8]}.partial"
    scratch.mkdir()
    try:
        yield scratch
        with contextlib.suppress(OSError):
            # Who was first is as good.
            scratch.rename(path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def run_program(command: list[str], *, doing: str, remedy: str, folder: Path) -> None:
    """Run a program that downloads or builds something.

    Raises:
        ClusterError: it failed; the message shows the last lines it said.
    """
    finished = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if finished.returncode:
        said = "\n".join(f"  {line}" for line in finished.stdout.strip().splitlines()[-_TAIL_LINES:])
        raise ClusterError(f"{doing} failed (status {finished.returncode}); {remedy}\n{said}")
