"""Why a pipeline failed is told in a line."""

from __future__ import annotations

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from pipelines.engine import failure_of, make_pipeline, pipeline_options, run_pipeline
from storage.errors import CacheError, DecantError


def failing(_):
    raise CacheError("the store is full: no space\nleft; make room")


def test_an_error_in_a_worker_is_raised_and_can_be_told_in_a_line():
    pipeline = make_pipeline(pipeline_options([]), workers=1)
    _ = pipeline | beam.Create([1]) | "Fail" >> beam.Map(failing)
    with pytest.raises(CacheError) as caught:
        run_pipeline(pipeline)
    told = failure_of(caught.value)
    assert type(told) is CacheError
    assert str(told) == "the store is full: no space\nleft; make room"


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        (
            "Traceback (most recent call last):\n  File x\nstorage.errors.CacheError: no space; make room [while running 'A/B']\n",
            CacheError,
            "no space; make room",
        ),
        (
            "Traceback\nKeyError: 'a'\n\nDuring handling\n\nValueError: two\nlines\n",
            DecantError,
            "the pipeline failed: ValueError: two\nlines",
        ),
        (
            (
                "java.lang.RuntimeException: Error received from SDK harness: Traceback (most recent call last):\nModuleNotFoundError: "
                "No module named 'pipelines'\n\n\tat org.apache.beam.A$B.onNext(A.java:1)\n\t... 3 more\n"
            ),
            DecantError,
            (
                "the pipeline failed: ModuleNotFoundError: No module named 'pipelines'; workers have no decant: install it on every worker "
                "as it is here, use the worker image, or, where Beam's entry point starts workers (docs/cluster.md), give "
                "--setup_file=./setup.py"
            ),
        ),
        (
            (
                "org.apache.flink.runtime.JobException: Recovery is suppressed\n\tat a.B.c(B.java:1)\nCaused by: "
                "org.apache.beam.vendor.grpc.v1p60p1.io.grpc.StatusRuntimeException: UNAVAILABLE: io exception\n\tat a.B.c(B.java:1)\n"
                "Caused by: org.apache.beam.vendor.A$AnnotatedConnectException: Connection refused: localhost/127.0.0.1:50000\n"
            ),
            DecantError,
            (
                "the pipeline failed: org.apache.beam.vendor.A$AnnotatedConnectException: Connection refused: localhost/127.0.0.1:50000; an "
                "engine's host does not reach its worker pool: start it on every host, at the address of --environment_config"
            ),
        ),
        ("connection refused", DecantError, "the pipeline failed: connection refused"),
        (
            "requests.exceptions.ConnectionError: HTTPSConnectionPool(host='hub', port=443): [Errno 111] Connection refused\n",
            DecantError,
            (
                "the pipeline failed: requests.exceptions.ConnectionError: HTTPSConnectionPool(host='hub', port=443): [Errno 111] "
                "Connection refused"
            ),
        ),
        (
            "HTTPConnectionPool(host='h', port=8081): Max retries exceeded with url: /v1/jars/upload ([Errno 111] Connection refused)",
            DecantError,
            (
                "the pipeline failed: HTTPConnectionPool(host='h', port=8081): Max retries exceeded with url: /v1/jars/upload ([Errno 111] "
                "Connection refused); the Flink of --flink_master ended, or cannot be reached any more, while the job was handed to it: "
                "start it again, and run the same command again"
            ),
        ),
        (
            "Unable to fetch remote job server jar at https://m/x.jar: <urlopen error [Errno 111] Connection refused>. stage it at /c/x.jar",
            DecantError,
            (
                "the pipeline failed: Unable to fetch remote job server jar at https://m/x.jar: <urlopen error [Errno 111] Connection "
                "refused>. stage it at /c/x.jar; give Beam's job server jar as --flink_job_server_jar=FILE or "
                "--spark_job_server_jar=FILE, or put it where the message says"
            ),
        ),
        ("", DecantError, "the pipeline failed: RuntimeError('')"),
    ],
)
def test_beams_tracebacks_are_cut_to_what_went_wrong(text, kind, message):
    told = failure_of(RuntimeError(text))
    assert type(told) is kind
    assert str(told) == message


def test_a_pool_that_nobody_answers_at_is_named():
    """As Flink 1.19 says it."""
    said = "Caused by: java.net.ConnectException: finishConnect(..) failed: Connection refused\n"
    options = PipelineOptions(["--environment_type=EXTERNAL", "--environment_config=worker-pool:1"])
    expected = "does not reach its worker pool: start it on every host, at the address of --environment_config worker-pool:1"
    assert str(failure_of(RuntimeError(said), options=options)).endswith(expected)
