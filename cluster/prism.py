"""Prism, Beam's engine in Go, one process on one machine."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from cluster.downloads import go_program


def prism(downloads: Path) -> Path:
    """Return the program, of the installed Beam's version; it is built once.

    Raises:
        ClusterError: Go is not there, or the source cannot be downloaded.
    """
    version = importlib.metadata.version("apache-beam")
    program = downloads / f"prism-{version}" / "prism"
    module = "github.com/apache/beam/sdks/v2/go/cmd/prism"
    return go_program(module, version=version, program=program, without_go="install Go, which builds Prism")
