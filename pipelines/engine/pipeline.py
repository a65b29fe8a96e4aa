"""Make pipelines that fit the engine they run on."""

from __future__ import annotations

import copy
import re
import uuid

import apache_beam as beam
from apache_beam.options.pipeline_options import DirectOptions, GoogleCloudOptions, PipelineOptions, PortableOptions

from pipelines.engine.dataflow import prepare_dataflow
from pipelines.engine.local import local_pipeline, require_main_thread
from pipelines.engine.names import LOCAL_RUNNERS, runner_name

_MOST_NAME_CHARACTERS = 40


def runs_in_this_process(options: PipelineOptions, *, workers: int) -> bool:
    """Return whether a pipeline made with these arguments sees this process's memory."""
    in_memory = options.view_as(DirectOptions).direct_running_mode == "in_memory"
    return runner_name(options) in LOCAL_RUNNERS and workers == 1 and in_memory


def runs_elsewhere(options: PipelineOptions) -> bool:
    """Return whether workers may be on other machines."""
    return runner_name(options) not in LOCAL_RUNNERS


def workers_per_machine(options: PipelineOptions, *, workers: int) -> int:
    """Return how many processes of a machine share its cores: what the user told Beam, else the config's `workers`."""
    said = str(options.view_as(PortableOptions).sdk_worker_parallelism)
    # Beam's default is a number; what a user gives stays text. 0 leaves it to the runner.
    given = isinstance(options.view_as(PortableOptions).sdk_worker_parallelism, str) and said.isdecimal() and int(said) > 0
    return int(said) if given and runs_elsewhere(options) else workers


def make_pipeline(options: PipelineOptions, *, workers: int, name: str = "") -> beam.Pipeline:
    """Return an empty pipeline. The options stay as they are.

    Args:
        workers: worker processes on each machine; on the local runner, on this one.
        name: what the engine's pages call the job, beside a number that is its own.

    Raises:
        ConfigError: worker processes of this machine, asked for in another thread than the main one.
    """
    if not runs_elsewhere(options):
        if not runs_in_this_process(options, workers=workers):
            require_main_thread()
        return beam.Pipeline(options=options) if workers == 1 else local_pipeline(options, workers=workers)
    options = copy.deepcopy(options)
    portable, cloud = options.view_as(PortableOptions), options.view_as(GoogleCloudOptions)
    # Beam's default is a number; what a user gives stays text.
    if isinstance(portable.sdk_worker_parallelism, int):
        portable.sdk_worker_parallelism = workers
    if cloud.job_name is None:
        cloud.job_name = _job_name(name)
    if runner_name(options) == "dataflowrunner":
        prepare_dataflow(options, workers=workers)
    return beam.Pipeline(options=options)


def _job_name(name: str) -> str:
    """Return a name that no other job has, of the characters that Google allows."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:_MOST_NAME_CHARACTERS].strip("-")
    return "-".join(part for part in ("decant", plain, uuid.uuid4().hex[:8]) if part)
