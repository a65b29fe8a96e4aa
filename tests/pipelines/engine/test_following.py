"""Who is believed about a job: the engine before Beam's connection to it, and nobody for ever."""

from __future__ import annotations

import threading

import grpc
import pytest

from pipelines.engine import running
from pipelines.engine.flink import FlinkMaster
from pipelines.engine.flink_job import FlinkWatch
from pipelines.engine.following import EngineLostError
from storage.errors import DecantError

JOB = "decant-1"


@pytest.fixture(autouse=True)
def _hurry(monkeypatch):
    monkeypatch.setattr(running, "_LOOK_SECONDS", 0.05)


class Result:
    """Beam's side of a job: waits until it is told how the job ended."""

    state = "RUNNING"

    def __init__(self, error=None):
        self.ended = threading.Event()
        self.error = error
        self.cancelled = False
        if error is not None:
            self.ended.set()

    def wait_until_finish(self):
        self.ended.wait(30)
        if self.error is not None:
            raise self.error

    def cancel(self):
        self.cancelled = True
        self.ended.set()


@pytest.fixture
def watch(rest):
    return FlinkWatch(FlinkMaster(url=rest.url), job_name=JOB)


def later(seconds, action):
    timer = threading.Timer(seconds, action)
    timer.daemon = True
    timer.start()
    return timer


def test_the_end_of_a_job_is_seen_before_beam_looks_again(rest, watch):
    job = rest.add_job("a1", JOB)
    later(0.3, lambda: job.update(state="FINISHED"))
    running._follow(Result(), watch=watch, until=None)
    assert job["state"] == "FINISHED"


def test_one_request_of_beams_that_fails_is_not_the_end_of_the_job(rest, watch):
    job = rest.add_job("a1", JOB)
    watch.look()
    later(0.3, lambda: job.update(state="FINISHED"))
    running._follow(Result(ConnectionError("refused")), watch=watch, until=None)
    assert job["state"] == "FINISHED"


def test_what_flink_says_of_a_failure_goes_before_what_beam_says(rest, watch):
    rest.add_job("a1", JOB, "FAILED")
    rest.exceptions = {"root-exception": "storage.errors.TeacherError: no weights; bring some"}
    with pytest.raises(RuntimeError, match="no weights; bring some"):
        running._follow(Result(), watch=watch, until=None)


def test_beam_is_believed_about_a_job_that_flink_does_not_show(rest, watch):
    with pytest.raises(RuntimeError, match="not accepted"):
        running._follow(Result(RuntimeError("not accepted")), watch=watch, until=None)


def test_a_job_service_that_hangs_up_is_lost():
    class HungUp(grpc.RpcError):
        def details(self):
            return "Socket closed"

    with pytest.raises(
        EngineLostError, match=r"job service broke while the job ran \(Socket closed\).*run the same command again"
    ):
        running._follow(Result(HungUp()), watch=None, until=None)


def test_a_job_is_cancelled_once_its_caller_has_enough(rest, watch):
    job = rest.add_job("a1", JOB)
    rest.exceptions = {"root-exception": "of a job that is tried again"}
    watch.look()
    heard = []

    def is_enough(error):
        heard.append(error)
        return len(heard) > 2

    result = Result()
    running._follow(result, watch=watch, until=is_enough)
    assert result.cancelled
    assert rest.cancelled == ["/v1/jobs/a1?mode=cancel"]
    assert heard[0] == "of a job that is tried again"
    job["state"] = "CANCELED"
    with pytest.raises(DecantError, match="was cancelled"):
        watch.look()


def test_an_interrupt_cancels_the_job(rest, watch):
    rest.add_job("a1", JOB)
    watch.look()
    result = Result()

    def interrupt(_error):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        running._follow(result, watch=watch, until=interrupt)
    assert result.cancelled
    assert rest.cancelled == ["/v1/jobs/a1?mode=cancel"]
