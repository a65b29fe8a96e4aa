"""A run is detached only where it outlives the command that started it."""

from __future__ import annotations

import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineState

from pipelines import detaching
from pipelines.detaching import check_detachable, confirm
from storage.errors import ConfigError, DecantError


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--runner=FnApiRunner"], "--runner FnApiRunner computes in this command and in processes that it starts"),
        (["--runner=BundleBasedDirectRunner"], "computes in this command"),
        (["--runner=PrismRunner"], "--runner PrismRunner starts a Prism as a process of this command"),
        (["--runner=FlinkRunner"], r"--flink_master \[auto\] starts a Flink as a process of this command"),
        (["--runner=FlinkRunner", "--flink_master=h:8081"], "without --flink_submit_uber_jar starts Beam's job server"),
        (["--runner=SparkRunner"], r"--spark_master_url local\[4\] starts a Spark"),
        (["--runner=SparkRunner", "--spark_master_url=spark://h:7077"], "without --spark_submit_uber_jar starts"),
        (["--runner=PortableRunner", "--job_endpoint=embed"], "--job_endpoint embed makes this command's own process"),
        (
            ["--runner=PortableRunner", "--job_endpoint=h:1", "--environment_type=LOOPBACK"],
            "LOOPBACK lets this command's own process do the work",
        ),
    ],
)
def test_runs_that_would_end_with_the_command_are_refused(words, reason):
    with pytest.raises(ConfigError, match=f"^--detach: .*{reason}.*so that the run would end with it.*--runner=FlinkRunner"):
        check_detachable(PipelineOptions(words))


@pytest.mark.parametrize(
    "words",
    [
        ["--runner=FlinkRunner", "--flink_master=h:8081", "--flink_submit_uber_jar"],
        ["--runner=FlinkRunner", "--flink_master=h:8081", "--job_endpoint=h:8099"],
        ["--runner=SparkRunner", "--spark_master_url=spark://h:7077", "--spark_submit_uber_jar"],
        ["--runner=PortableRunner", "--job_endpoint=h:8099", "--environment_type=EXTERNAL"],
        ["--runner=PrismRunner", "--job_endpoint=h:8073"],
        ["--runner=DataflowRunner"],
    ],
)
def test_engines_that_run_by_themselves_are_taken(words):
    check_detachable(PipelineOptions(words))


class Job:
    """What an engine says of a job, one word at a time, the last one for ever."""

    def __init__(self, *states, error=None):
        self._states = list(states)
        self._error = error

    @property
    def state(self):
        return self._states.pop(0) if len(self._states) > 1 else self._states[0]

    def wait_until_finish(self):
        if self._error is not None:
            raise self._error


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(detaching, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(detaching, "_CONFIRM_SECONDS", 0.2)


@pytest.mark.parametrize(
    "states",
    [
        [PipelineState.STARTING, PipelineState.STOPPED, PipelineState.RUNNING],
        [PipelineState.DONE],
        # It waits for its turn; that may take hours.
        [PipelineState.PENDING],
    ],
)
def test_a_job_that_begins_or_waits_is_taken(states):
    confirm(Job(*states))


def test_a_job_that_the_engine_refuses_says_why():
    job = Job(PipelineState.STARTING, PipelineState.FAILED, error=RuntimeError("no slots are left"))
    with pytest.raises(DecantError, match="no slots are left"):
        confirm(job)
    with pytest.raises(DecantError, match="CANCELLED before it began"):
        confirm(Job(PipelineState.CANCELLED))
