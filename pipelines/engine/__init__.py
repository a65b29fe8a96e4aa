"""Beam's engines without their traps: options are checked, workers and engines watched, failures told in a line."""

from pipelines.engine.failures import failure_of
from pipelines.engine.following import EngineLostError
from pipelines.engine.job_service import waits_for_dead_workers
from pipelines.engine.local import WorkerDiedError
from pipelines.engine.names import LOCAL_RUNNER, runner_name
from pipelines.engine.options import pipeline_options
from pipelines.engine.pipeline import make_pipeline, runs_elsewhere, runs_in_this_process, workers_per_machine
from pipelines.engine.reach import check_reach, resource_hints
from pipelines.engine.running import run_pipeline, submit_pipeline

__all__ = [
    "LOCAL_RUNNER",
    "EngineLostError",
    "WorkerDiedError",
    "check_reach",
    "failure_of",
    "make_pipeline",
    "pipeline_options",
    "resource_hints",
    "run_pipeline",
    "runner_name",
    "runs_elsewhere",
    "runs_in_this_process",
    "submit_pipeline",
    "waits_for_dead_workers",
    "workers_per_machine",
]
