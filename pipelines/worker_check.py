"""What every worker of a job must have as the process that submitted it: versions, and files at the same paths."""

from __future__ import annotations

import contextlib
import json
import platform
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipelines.doctor.judge_versions import same_release
from pipelines.doctor.machine import installed_packages
from pipelines.local_paths import local_paths
from storage.cache import Cache
from storage.config import SourceConfig, TeacherConfig
from storage.errors import AnotherCacheError, CacheError, MismatchError, SourceError, TeacherError
from storage.filesystem import Store
from storage.label_runs.folder import RunFolder

_ALWAYS = ("decant",)
_COMPARED = (*_ALWAYS, "torch", "timm", "transformers", "tokenizers", "numpy", "pillow")
"""Packages that decide what labels are, or whether processes understand each other; builds (`+cpu`, `+cu130`) may differ."""

_MISSING = "none"

SETUP = "setup-"
"""What names of reports begin with that are of workers, and not of units."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What the process that builds a job has; travels with the job.

    Attributes:
        host: its machine's name.
        python: minor version.
        packages: versions of those that count, where they are installed.
        paths: local paths that workers read, by their keys in the config.
    """

    host: str
    python: str
    packages: dict[str, str]
    paths: dict[str, str]

    @classmethod
    def of_this_process(cls, *, teacher: TeacherConfig, source: SourceConfig) -> Expected:
        """Look at this process and machine."""
        packages = installed_packages()
        return cls(
            host=socket.gethostname(),
            python=_python_minor(),
            packages={name: packages[name] for name in _COMPARED if name in packages},
            paths={key: path for key, path in local_paths(teacher=teacher, source=source).items() if Path(path).exists()},
        )

    def check_versions(self, *, allow_differences: bool) -> None:
        """Refuse a worker with other versions.

        Args:
            allow_differences: of libraries; another decant or Python never works.

        Raises:
            MismatchError: with all differences, and where the worker is.
        """
        found = installed_packages()
        grave: list[str] = []
        others: list[str] = []
        if self.python != _python_minor():
            grave.append(f"Python {_python_minor()} (there: {self.python})")
        for name in _COMPARED:
            mine, wanted = found.get(name, _MISSING), self.packages.get(name, _MISSING)
            if not same_release(mine, wanted):
                (grave if name in _ALWAYS else others).append(f"{name} {mine} (there: {wanted})")
        if not grave and (allow_differences or not others):
            return
        remedy = (
            "Install the same versions on every worker and restart the worker pools, or use one image for all (docs/cluster.md)"
        )
        if not grave:
            remedy += ". Where other libraries are meant to label, say so: generation.allow_version_differences: true"
        raise MismatchError(
            f"a worker on host {socket.gethostname()} has other versions than {self.host}, where the job was submitted: "
            f"{', '.join([*grave, *others])}. {remedy}"
        )

    def check_paths(self) -> None:
        """Refuse a worker that lacks a file or folder.

        Raises:
            TeacherError: of the teacher.
            SourceError: of the source.
        """
        for key, path in self.paths.items():
            if not Path(path).exists():
                kind = TeacherError if key.startswith("teacher.") else SourceError
                raise kind(
                    f"{key} {path} does not exist on worker host {socket.gethostname()}; it was there on {self.host}, where the "
                    "job was submitted. Put it at the same path on every host, on a disk that all of them share, or "
                    + (
                        "into the workers' image"
                        if kind is TeacherError
                        else "into a store that all of them reach (s3://, gs://)"
                    )
                )


def check_cache(cache: Cache, *, request: str) -> None:
    """Refuse a worker that sees another cache than the process that submitted its job.

    Args:
        request: fingerprint of a request that stands in the cache.

    Raises:
        AnotherCacheError: the request is not there.
        CacheError: the store cannot be reached.
    """
    with naming_worker():
        found = cache.store.exists(f"{cache.request_folder(request)}/spec.json")
    if not found:
        raise another_cache(cache.store)


@contextlib.contextmanager
def naming_worker() -> Iterator[None]:
    """Say in errors of the store that it is a worker that has them, and on which host."""
    try:
        yield
    except CacheError as error:
        raise CacheError(f"worker host {socket.gethostname()}: {error}") from error


def another_cache(store: Store) -> AnotherCacheError:
    """Return the error of a worker that finds nothing of its job where the cache should be."""
    return AnotherCacheError(
        f"the cache {store.url}, as worker host {socket.gethostname()} sees it, is not the one of the process that submitted the "
        "job: nothing of the job is there. Use a store that all hosts reach (s3://, gs://), or a disk that all share at this path"
    )


def has_refused(run: RunFolder) -> bool:
    """Return whether a worker wrote down that it cannot take part in a run: an engine that starts it again changes nothing."""
    # What a store fails to do now, here or for a worker, it may do in a minute.
    with contextlib.suppress(CacheError, FileNotFoundError):
        reports = [name for name in run.store.names(f"{run.path}/errors") if SETUP in name]
        return any(json.loads(run.store.read(name))["kind"] != CacheError.__name__ for name in reports)
    return False


def _python_minor() -> str:
    return ".".join(platform.python_version_tuple()[:2])
