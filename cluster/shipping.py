"""Decant as a job brings it: to workers whose Python has everything but Decant, by Beam's own entry point of workers."""

from __future__ import annotations

import importlib.metadata
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from cluster.downloads import go_program, run_program
from cluster.errors import ClusterError

INSTALLED, WHEEL, SETUP_FILE = CODES = ("installed", "wheel", "setup-file")
"""How workers get Decant: it is installed there, or comes with the job, built or as a source tree."""

_ROOT = Path(__file__).resolve().parents[1]
_TREE = ("setup.py", "MANIFEST.in", "pyproject.toml", "decant.py", "pipelines", "storage", "student_training")
_FIND_DECANT = "import importlib.util as u; print(*(n for n in ('decant', 'pipelines', 'storage') if u.find_spec(n)))"


def option_that_ships(code: str, *, folder: Path) -> str:
    """Make what a job is to bring along, and return Beam's option for it. Nothing is downloaded.

    Args:
        folder: holds it as long as jobs are submitted.

    Raises:
        ClusterError: no wheel can be built.
    """
    tree = folder / "tree"
    shutil.rmtree(folder, ignore_errors=True)
    tree.mkdir(parents=True)
    for name in _TREE:
        if (_ROOT / name).is_dir():
            shutil.copytree(_ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif (_ROOT / name).exists():
            shutil.copy(_ROOT / name, tree)
    if code == SETUP_FILE:
        return f"--setup_file={tree / 'setup.py'}"
    offline = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation")
    run_program(
        [sys.executable, "-m", "pip", "wheel", *offline, "--wheel-dir", str(folder), str(tree)],
        doing="building Decant's wheel",
        remedy="pip and setuptools must be in this environment (make install)",
        folder=folder,
    )
    (wheel,) = folder.glob("decant-*.whl")
    return f"--extra_package={wheel}"


def python_without_decant(folder: Path) -> None:
    """Make a virtual environment that has this one's packages, as links, and no Decant.

    Raises:
        ClusterError: it would find one all the same.
    """
    venv.create(folder, symlinks=True)
    site = folder / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
    for packages in {Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")}:
        # Of this folder alone: where the source tree can be imported from it says that it is installed, too.
        installed = importlib.metadata.distributions(name="decant", path=[str(packages)])
        own = {file.parts[0] for one in installed for file in one.files or ()} | {"__pycache__"}
        for entry in packages.iterdir():
            if entry.name not in own and not (site / entry.name).exists():
                (site / entry.name).symlink_to(entry)
    program = folder / "bin" / "python"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(program), "-P", "-c", _FIND_DECANT]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()
    if found:
        raise ClusterError(f"the Python of {folder} is to have no Decant, and finds {found}; use a virtual environment")


def has_decant(folder: Path) -> bool:
    """Return whether a job has installed Decant into such an environment."""
    return any(folder.glob("lib/python*/site-packages/decant-*.dist-info"))


def entry_point(downloads: Path) -> Path:
    """Return Beam's program that starts a worker as its containers do, with what the job brings; it is built once.

    Raises:
        ClusterError: Go is not there, or the source cannot be downloaded.
    """
    version = importlib.metadata.version("apache-beam")
    program = downloads / f"beam-entry-point-{version}" / "container"
    module = "github.com/apache/beam/sdks/v2/python/container"
    return go_program(module, version=version, program=program, without_go="install Go, or leave out --code")


def start_script(python: Path) -> Path:
    """Return what a worker pool calls to start a worker: its `--container_executable`."""
    return python / "bin" / "start-worker"


def write_start_script(python: Path, *, program: Path, scratch: Path) -> None:
    """Write the start script of an environment.

    Args:
        program: Beam's entry point.
        scratch: where the host puts what the job brings.
    """
    script = start_script(python)
    script.write_text(f'#!/bin/sh\nexec {shlex.quote(str(program))} "$@" --semi_persist_dir={shlex.quote(str(scratch))}\n')
    script.chmod(0o755)


def shipped_environment(python: Path) -> dict[str, str]:
    """Return the variables of a pool whose workers get Decant from the job.

    Args:
        python: the environment, as the pool sees it.
    """
    return {
        "PATH": f"{python}/bin{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PYTHONPATH": "",
        # An environment of the entry point's own would see the packages of the system's Python, and not those of this one.
        "RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT": "1",
        # What a job brings needs nothing more: where pip asked for it, the job would fail.
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",
    }
