"""A job on Flink is followed where it runs: its end, its failure, and the end of Flink."""

from __future__ import annotations

import threading

import pytest

from pipelines.engine import failure_of, flink_job, following
from pipelines.engine.flink import FlinkMaster
from pipelines.engine.flink_job import FlinkWatch
from pipelines.engine.following import EngineLostError
from storage.errors import CacheError, DecantError
from tests.pipelines.engine.flink_rest import flink_rest

FAILURE = """org.apache.flink.runtime.JobException: Recovery is suppressed by NoRestartBackoffTimeStrategy
\tat org.apache.flink.runtime.executiongraph.failover.ExecutionFailureHandler.handleFailure(ExecutionFailureHandler.java:180)
\tat java.base/java.lang.Thread.run(Thread.java:840)
Caused by: java.lang.RuntimeException: Error received from SDK harness for instruction 3: Traceback (most recent call last):
  File "apache_beam/runners/worker/sdk_worker.py", line 307, in _execute
    response = task()
storage.errors.CacheError: no space
left; make room [while running 'LabelTasks/LabelUnits-ptransform-12']

\tat org.apache.beam.runners.fnexecution.control.FnApiControlClient$ResponseStreamObserver.onNext(FnApiControlClient.java:180)
\t... 12 more
"""


@pytest.fixture
def watch(rest):
    """Of a job called `decant-1`; one of the same name is from before."""
    rest.add_job("a0", "decant-1", "FAILED")
    return FlinkWatch(FlinkMaster(url=rest.url), job_name="decant-1")


def test_a_job_is_followed_from_before_it_is_known_to_its_end(rest, watch):
    assert not watch.look()
    assert not watch.sees_job
    rest.add_job("b0", "another", "FAILED")
    assert not watch.look()
    job = rest.add_job("a1", "decant-1", "CREATED")
    assert not watch.look()
    assert watch.sees_job
    job["state"] = "RESTARTING"
    assert not watch.look()
    job["state"] = "FINISHED"
    assert watch.look()


@pytest.mark.parametrize(
    "said", [{"root-exception": FAILURE}, {"exceptionHistory": {"entries": [{"exceptionName": "x", "stacktrace": FAILURE}]}}]
)
def test_a_job_that_failed_says_what_the_worker_said(rest, watch, said):
    rest.add_job("a1", "decant-1", "FAILED")
    rest.exceptions = said
    with pytest.raises(RuntimeError) as caught:
        watch.look()
    told = failure_of(caught.value)
    assert type(told) is CacheError
    assert str(told) == "no space\nleft; make room"


def test_a_job_that_failed_without_a_word(rest, watch):
    rest.add_job("a1", "decant-1", "FAILED")
    with pytest.raises(RuntimeError, match="a1 failed on the Flink at http.*which does not say why"):
        watch.look()


def test_a_job_that_somebody_cancelled(rest, watch):
    rest.add_job("a1", "decant-1", "CANCELED")
    with pytest.raises(DecantError, match="a1 was cancelled on the Flink at .*run the same command again to go on"):
        watch.look()


def test_a_job_manager_that_dies_is_noticed_and_short_pauses_are_borne(monkeypatch):
    with flink_rest() as rest:
        watch = FlinkWatch(FlinkMaster(url=rest.url), job_name="decant-1")
        rest.add_job("a1", "decant-1")
        assert not watch.look()
    assert not watch.look()
    monkeypatch.setattr(following, "LOST_SECONDS", 0)
    with pytest.raises(
        EngineLostError, match=r"has not answered for \d+ seconds while the job ran \(Connection refused\); its job m"
    ):
        watch.look()


def test_a_job_manager_that_came_back_without_its_jobs_is_noticed(rest, watch):
    rest.add_job("a1", "decant-1")
    assert not watch.look()
    rest.jobs.clear()
    with pytest.raises(EngineLostError, match="no longer knows job a1: its job manager was started again"):
        watch.look()


def test_a_job_manager_that_died_while_a_run_was_planned_is_named():
    with flink_rest() as rest:
        master = FlinkMaster(url=rest.url)
    with pytest.raises(EngineLostError, match=rf"the Flink at {rest.url} does not answer any more \(Connection refused\)"):
        FlinkWatch(master, job_name="decant-1")


@pytest.mark.parametrize("seen", [True, False])
def test_a_job_can_be_cancelled_also_before_it_was_seen(rest, watch, seen):
    watch.cancel()
    assert rest.cancelled == []
    rest.add_job("b0", "another")
    rest.add_job("a1", "decant-1")
    if seen:
        watch.look()
    watch.cancel()
    assert rest.cancelled == ["/v1/jobs/a1?mode=cancel"]


def test_a_job_that_comes_up_when_handing_it_over_was_interrupted_is_cancelled(rest, watch, monkeypatch):
    monkeypatch.setattr(flink_job, "_LOOK_SECONDS", 0.05)
    coming = threading.Timer(0.5, rest.add_job, ("a1", "decant-1"))
    coming.start()
    watch.cancel_what_comes()
    assert rest.cancelled == ["/v1/jobs/a1?mode=cancel"]


def test_a_job_that_never_comes_up_is_not_waited_for_for_ever(rest, watch, monkeypatch):
    monkeypatch.setattr(flink_job, "_LOOK_SECONDS", 0.05)
    monkeypatch.setattr(flink_job, "_COMES_SECONDS", 0.3)
    watch.cancel_what_comes()
    assert rest.cancelled == []
