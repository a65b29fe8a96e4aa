"""What handing a job to Flink leaves behind: a jar in Flink's folder of uploads, the same jar and an empty folder here."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.flink_runner import FlinkRunner
from apache_beam.runners.portability.flink_uber_jar_job_server import FlinkBeamJob, FlinkUberJarJobServer


@contextlib.contextmanager
def no_uploads_left(pipeline: beam.Pipeline) -> Iterator[None]:
    """Remove them when the block, in which a pipeline is handed over, ends, well or not.

    Flink has a copy of its own for each job that began; Beam removes the others only where it sees a job end well by itself.
    """
    runner = pipeline.runner
    if not isinstance(runner, FlinkRunner):
        yield
        return
    start, servers = runner.default_job_server, []

    def remembered(options: PipelineOptions) -> Any:
        servers.append(start(options))
        return servers[-1]

    # Beam shows its server to nobody before all is handed over.
    vars(runner)["default_job_server"] = remembered
    try:
        yield
    finally:
        del vars(runner)["default_job_server"]
        for server in servers:
            if isinstance(server, FlinkUberJarJobServer):
                _clear(server)


def _clear(server: FlinkUberJarJobServer) -> None:
    for job in server._jobs.values():
        if isinstance(job, FlinkBeamJob):
            job.delete_jar()
            jar = getattr(job, "_jar", None)
            # A job that was interrupted at its very beginning has none yet.
            if jar is not None:
                Path(jar).unlink(missing_ok=True)
    shutil.rmtree(server._temp_dir, ignore_errors=True)
