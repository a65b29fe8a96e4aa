"""What runners are called."""

from __future__ import annotations

from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

LOCAL_RUNNER = "FnApiRunner"

SWITCHING_RUNNERS = {"directrunner", "switchingdirectrunner"}
"""Beam's default among them: they would first try to download and execute a binary."""

LOCAL_RUNNERS = {"fnapirunner", "bundlebaseddirectrunner"}


def runner_name(options: PipelineOptions) -> str:
    """Return the runner's class name in lower case; Beam takes it with its package, and without the ending."""
    name = str(options.view_as(StandardOptions).runner).rsplit(".", 1)[-1].lower()
    return name if name.endswith("runner") else f"{name}runner"
