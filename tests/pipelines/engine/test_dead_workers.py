"""Which engines wait for ever for a worker process that is gone, so that others must notice it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import beam_job_api_pb2, beam_job_api_pb2_grpc
from apache_beam.runners.portability.local_job_service import LocalJobServicer

from pipelines.engine import waits_for_dead_workers


class OfAnEngine(beam_job_api_pb2_grpc.JobServiceServicer):
    """As far as Java's job servers, of Flink and Spark, are asked: they say what options they know."""

    def DescribePipelineOptions(self, request, context):
        described = beam_job_api_pb2.PipelineOptionDescriptor(name="flink_master", group="FlinkPipelineOptions")
        return beam_job_api_pb2.DescribePipelineOptionsResponse(options=[described])


@contextmanager
def serving(servicer):
    server = grpc.server(ThreadPoolExecutor(2))
    beam_job_api_pb2_grpc.add_JobServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"--job_endpoint=127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@pytest.mark.parametrize(("servicer", "expected"), [(LocalJobServicer, True), (OfAnEngine, False)])
def test_beams_own_job_service_is_told_from_those_of_engines(servicer, expected, tmp_path):
    made = servicer(staging_dir=str(tmp_path)) if servicer is LocalJobServicer else servicer()
    with serving(made) as endpoint:
        assert waits_for_dead_workers(PipelineOptions(["--runner=PortableRunner", endpoint])) is expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--runner=PortableRunner", "--job_endpoint=embed"], True),
        (["--runner=PrismRunner"], True),
        (["--runner=FlinkRunner", "--flink_master=127.0.0.1:9"], False),
        (["--runner=SparkRunner"], False),
        (["--runner=DataflowRunner"], False),
        (["--runner=FnApiRunner"], False),
        (["--runner=PortableRunner", "--job_endpoint=127.0.0.1:9"], False),
    ],
)
def test_engines_that_start_workers_again_or_say_nothing_are_left_alone(words, expected):
    assert waits_for_dead_workers(PipelineOptions(words)) is expected
