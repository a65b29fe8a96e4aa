"""Runs that go on without the command that started them: which engines can do that."""

from __future__ import annotations

import time
from typing import Any

from apache_beam.options.pipeline_options import (
    FlinkRunnerOptions,
    PipelineOptions,
    PortableOptions,
    SparkRunnerOptions,
    StandardOptions,
)
from apache_beam.runners.runner import PipelineState

from pipelines.engine import failure_of, runner_name, runs_elsewhere
from storage.errors import ConfigError, DecantError

_REMEDY = (
    "give an engine that runs by itself: --runner=FlinkRunner --flink_master=HOST:8081, --runner=DataflowRunner, or "
    "--runner=PortableRunner --job_endpoint=HOST:PORT"
)
_CONFIRM_SECONDS = 10.0
_LOOK_SECONDS = 0.5
_BEGUN = {PipelineState.RUNNING, PipelineState.DONE, PipelineState.UPDATED, PipelineState.DRAINED}
_LOST = {PipelineState.FAILED, PipelineState.CANCELLED}


def check_detachable(options: PipelineOptions) -> None:
    """Refuse options of a run that would end with the command.

    Raises:
        ConfigError: it would.
    """
    reason = _why_not(options)
    if reason is not None:
        raise ConfigError(f"--detach: {reason}, so that the run would end with it; leave --detach out, or {_REMEDY}")


def _why_not(options: PipelineOptions) -> str | None:
    runner, portable = options.view_as(StandardOptions).runner, options.view_as(PortableOptions)
    if not runs_elsewhere(options):
        return f"--runner {runner} computes in this command and in processes that it starts"
    if portable.environment_type == "LOOPBACK":
        return "--environment_type LOOPBACK lets this command's own process do the work"
    if portable.job_endpoint == "embed":
        return "--job_endpoint embed makes this command's own process the job service"
    if portable.job_endpoint is not None:
        return None
    flink, spark = options.view_as(FlinkRunnerOptions), options.view_as(SparkRunnerOptions)
    match runner_name(options):
        case "prismrunner":
            return f"--runner {runner} starts a Prism as a process of this command"
        case "flinkrunner" if flink.flink_master in {"[local]", "[auto]"}:
            return f"--flink_master {flink.flink_master} starts a Flink as a process of this command"
        case "flinkrunner" if not flink.flink_submit_uber_jar:
            return f"--runner {runner} without --flink_submit_uber_jar starts Beam's job server as a process of this command"
        case "sparkrunner" if spark.spark_master_url.startswith("local"):
            return f"--spark_master_url {spark.spark_master_url} starts a Spark as a process of this command"
        case "sparkrunner" if not spark.spark_submit_uber_jar:
            return f"--runner {runner} without --spark_submit_uber_jar starts Beam's job server as a process of this command"
        case _:
            return None


def confirm(result: Any) -> None:
    """Wait a moment for a job that was submitted to begin: one that the engine refuses says so at once.

    Args:
        result: Beam's.

    Raises:
        DecantError: it failed.
    """
    deadline = time.monotonic() + _CONFIRM_SECONDS
    while (state := result.state) not in _BEGUN and time.monotonic() < deadline:
        if state in _LOST:
            try:
                result.wait_until_finish()
            except Exception as error:
                raise failure_of(error) from error
            raise DecantError(f"the job was {state} before it began; see what the engine says of it")
        time.sleep(_LOOK_SECONDS)
