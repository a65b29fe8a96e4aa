"""Prism, Beam's engine in Go: on this machine, from a binary that the user names."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, PortableOptions, PrismRunnerOptions

from storage.errors import ConfigError


def check_prism(options: PipelineOptions) -> list[str]:
    """Refuse to let Beam download a binary and execute it; a user's own is run.

    Raises:
        ConfigError: no binary is named, or it is none.
    """
    if options.view_as(PortableOptions).job_endpoint is not None:
        return []
    location = options.view_as(PrismRunnerOptions).prism_location
    install = f"`go install github.com/apache/beam/sdks/v2/go/cmd/prism@v{beam.version.__version__}` makes one"
    if location is None:
        raise ConfigError(
            "--runner PrismRunner would download a binary and execute it; name one with --prism_location=/path/to/prism "
            f"({install}), or the --job_endpoint of one that runs"
        )
    if "://" not in location and not (Path(location).is_file() and os.access(location, os.X_OK)):
        raise ConfigError(f"--prism_location {location}: there is no program; {install}")
    if not logging.getLogger().isEnabledFor(logging.INFO):
        # Of "console", the default, Beam shows every line, whatever the level.
        options.view_as(PrismRunnerOptions).prism_log_kind = "json"
    return []
