"""Handing a job to Flink leaves nothing behind, here or there, however it ends."""

from __future__ import annotations

import os
import signal
import tempfile
import zipfile

import apache_beam as beam
import pytest

from pipelines.engine import flink_job, make_pipeline, pipeline_options, submit_pipeline


@pytest.fixture
def pipeline(rest, listening, tmp_path, monkeypatch):
    """One that Beam's own code hands over, to a server that speaks as Flink does; temporary files lie in `temporary`."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    with zipfile.ZipFile(tmp_path / "server.jar", "w") as jar:
        jar.writestr("META-INF/MANIFEST.MF", "Manifest-Version: 1.0\n")
    words = ["--runner=FlinkRunner", f"--flink_master={rest.address}", f"--flink_job_server_jar={tmp_path / 'server.jar'}"]
    words += ["--environment_type=EXTERNAL", f"--environment_config={listening}"]
    made = make_pipeline(pipeline_options(words), workers=1, name="uploads")
    _ = made | beam.Create([1])
    return made


def left_in(folder):
    return [*(folder / "temporary").glob("*.jar"), *(folder / "temporary").glob("apache-beam-flink*")]


def test_a_job_that_was_handed_over(rest, pipeline, tmp_path):
    seen = []
    rest.when_asked_to_run = lambda: seen.extend(rest.jars)
    submit_pipeline(pipeline)
    assert seen == ["0_beam.jar"]
    assert (rest.jars, left_in(tmp_path)) == ([], [])


def test_an_interrupt_while_the_job_begins(rest, pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr(flink_job, "_LOOK_SECONDS", 0.05)

    def begin_and_interrupt():
        rest.add_job("a1", pipeline._options.get_all_options()["job_name"])
        os.kill(os.getpid(), signal.SIGINT)

    rest.when_asked_to_run = begin_and_interrupt
    with pytest.raises(KeyboardInterrupt):
        submit_pipeline(pipeline)
    assert rest.cancelled == ["/v1/jobs/a1?mode=cancel"]
    assert (rest.jars, left_in(tmp_path)) == ([], [])


def test_a_flink_that_refuses(rest, pipeline, tmp_path):
    rest.when_asked_to_run = lambda: 500
    with pytest.raises(RuntimeError, match="/v1/jars/0_beam.jar/run failed with status 500"):
        submit_pipeline(pipeline)
    assert (rest.jars, left_in(tmp_path)) == ([], [])
