"""What the cluster needs besides this repository, kept in a folder outside it."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tarfile
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


def jars_of_package(requirement: str, *, folder: Path, within: str, expected: str, size_mb: int) -> Path:
    """Return a folder with the jars that a Python package carries; it is downloaded once.

    Args:
        requirement: "name==version".
        within: the package's folder of jars, with slashes around.
        expected: name of one of them.
        size_mb: of the download, for people.

    Raises:
        ClusterError: it cannot be downloaded, or does not hold that jar there.
    """
    if folder.is_dir():
        return folder
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-binary", ":all:")
    with made_whole(folder) as scratch:
        run_program(
            [sys.executable, "-m", "pip", "download", *options, "--dest", str(scratch), requirement],
            doing=f"downloading {requirement} ({size_mb} MB) from the Python package index",
            remedy="check the network, or pip's settings for a mirror, and try again",
            folder=scratch,
        )
        (archive,) = scratch.glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            for member in tar:
                if member.isfile() and within in member.name and member.name.endswith(".jar"):
                    member.name = member.name.rpartition("/")[2]
                    tar.extract(member, scratch, filter="data")
        archive.unlink()
        if not (scratch / expected).exists():
            raise ClusterError(f"{requirement} holds no {expected}; it is packed in another way")
    return folder


def go_program(module: str, *, version: str, program: Path, without_go: str) -> Path:
    """Return a program that Go makes of a module; it is built once.

    Args:
        program: where it is put; the folder is made for it.
        without_go: what to do where there is no Go.

    Raises:
        ClusterError: Go is not there, or the source cannot be downloaded.
    """
    if program.exists():
        return program
    go = find_program("go", remedy=without_go)
    with made_whole(program.parent) as scratch:
        run_program(
            ["env", f"GOBIN={scratch}", go, "install", f"{module}@v{version}"],
            doing=f"building {module}@v{version}",
            remedy="check the network, or Go's settings for a proxy of modules, and try again",
            folder=scratch,
        )
    return program
