"""Which Flink a job server jar of Beam is made for."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

from storage.errors import ConfigError

_LIBRARY = re.compile(r"META-INF/maven/org\.apache\.beam/beam-runners-flink-(\d+\.\d+)(?:-job-server)?/pom\.properties")
_NAME = re.compile(r"flink-(\d+\.\d+)-job-server")
_RUNTIME = ".flink-runtime.version.properties"
_VERSION = re.compile(rb"^project\.version=(\d+\.\d+)", re.MULTILINE)


def flink_of_jar(jar: str) -> str | None:
    """Return the minor version, as `1.20`, that a jar was built for; None where the jar does not say.

    A jar that lies elsewhere (a URL) says it by its name.

    Raises:
        ConfigError: a local jar is missing or is none.
    """
    if "://" not in jar:
        try:
            with zipfile.ZipFile(jar) as archive:
                found = _of_archive(archive)
        except FileNotFoundError as error:
            raise ConfigError(
                f"--flink_job_server_jar {jar}: there is no such file; give the path of Beam's job server jar, or leave the "
                "option out where Maven Central can be reached"
            ) from error
        except (OSError, zipfile.BadZipFile) as error:
            raise ConfigError(f"--flink_job_server_jar {jar}: this is no jar ({error}); download it again") from error
        if found is not None:
            return found
    named = _NAME.search(Path(jar).name)
    return named[1] if named else None


def _of_archive(archive: zipfile.ZipFile) -> str | None:
    # A jar with libraries of two versions in it would be wrong anyhow; the runner's own name goes first.
    for name in archive.namelist():
        found = _LIBRARY.fullmatch(name)
        if found:
            return found[1]
    if _RUNTIME not in archive.namelist():
        return None
    version = _VERSION.search(archive.read(_RUNTIME))
    return version[1].decode() if version else None
