"""What is tried again, for how long, and what is said in the end."""

from __future__ import annotations

import random
import socket

import aiohttp
import pytest
from botocore import exceptions as boto
from fsspec.exceptions import FSTimeoutError
from hypothesis import given
from hypothesis import strategies as st

from storage import retries
from storage.retries import Health, Patience, ShortAnswerError, StillFailingError, is_passing, is_unreached, retried


class Clock:
    """A clock that only sleeping moves."""

    def __init__(self, monkeypatch):
        self.now, self.waits = 100.0, []
        monkeypatch.setattr(retries.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(retries.time, "sleep", self.sleep)

    def sleep(self, seconds):
        self.waits.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def failing(times, error):
    left = [error] * times

    def action():
        if left:
            raise left.pop()
        return "done"

    return action


def client_error(status, code, *, wrapped=OSError):
    """As s3fs raises it: an error of Python whose cause is botocore's."""
    cause = boto.ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "GetObject")
    error = wrapped(code)
    error.__cause__ = cause
    return error


def test_what_passes_is_tried_until_it_succeeds(clock):
    assert retried(failing(6, ConnectionResetError("reset")), patience=Patience(), health=Health(answered=True)) == "done"
    patience = Patience()
    for attempt, wait in enumerate(clock.waits):
        mean = min(patience.longest_wait_seconds, patience.first_wait_seconds * 2**attempt)
        assert mean / 2 <= wait <= mean * 1.5
    assert len(clock.waits) == 6
    assert clock.waits[4] > clock.waits[0]


def test_what_goes_on_failing_is_given_up_in_time_and_says_so(clock):
    with pytest.raises(StillFailingError, match=r"reset \(tried \d+ times in \d+ s\)") as caught:
        retried(failing(10**6, ConnectionResetError("reset")), patience=Patience(seconds=20), health=Health(answered=True))
    assert 10 < clock.now - 100 <= 20
    assert isinstance(caught.value.__cause__, ConnectionResetError)


def test_an_address_where_nothing_ever_answered_is_given_up_sooner(clock):
    refused = boto.EndpointConnectionError(endpoint_url="http://127.0.0.1:9", error="refused")
    with pytest.raises(StillFailingError, match="127.0.0.1:9"):
        retried(failing(10**6, refused), patience=Patience(), health=Health())
    assert clock.now - 100 <= Patience().hopeless_seconds
    assert retried(failing(7, refused), patience=Patience(), health=Health(answered=True)) == "done"


def test_after_an_operation_was_given_up_the_next_is_given_up_sooner_until_one_succeeds(clock):
    health, busy = Health(answered=True), client_error(503, "SlowDown")
    for limit in (Patience().seconds, Patience().hopeless_seconds, Patience().hopeless_seconds):
        started = clock.now
        with pytest.raises(StillFailingError):
            retried(failing(10**6, busy), patience=Patience(), health=health)
        assert limit / 3 < clock.now - started <= limit
    assert retried(failing(2, busy), patience=Patience(), health=health) == "done"
    assert not health.given_up
    with pytest.raises(StillFailingError):
        retried(failing(10**6, busy), patience=Patience(), health=health)
    assert clock.now - started > Patience().seconds / 2


def test_a_store_that_answers_at_first_that_it_is_busy_is_waited_for(clock):
    assert retried(failing(7, client_error(503, "SlowDown")), patience=Patience(), health=Health()) == "done"


@pytest.mark.parametrize("error", [FileNotFoundError("x"), PermissionError("x"), ValueError("x"), KeyboardInterrupt()])
def test_what_does_not_pass_is_raised_at_once(clock, error):
    with pytest.raises(type(error)):
        retried(failing(1, error), patience=Patience(), health=Health(answered=True))
    assert clock.waits == []


def test_an_error_that_says_that_it_was_done_counts_only_after_a_failure(clock):
    errors = [FileNotFoundError("gone"), ConnectionResetError("answer lost")]

    def remove():
        raise errors.pop()

    assert retried(remove, patience=Patience(), health=Health(answered=True), done=(FileNotFoundError,)) is None
    with pytest.raises(FileNotFoundError):
        retried(
            failing(1, FileNotFoundError("never there")),
            patience=Patience(),
            health=Health(answered=True),
            done=(FileNotFoundError,),
        )


PASSING_ERRORS = [
    *[client_error(status, str(status)) for status in (408, 429, 500, 502, 503, 504)],
    *[client_error(400, code) for code in ("RequestTimeout", "IncompleteBody", "BadDigest")],
    client_error(409, "ConditionalRequestConflict"),
    client_error(404, "NoSuchUpload", wrapped=FileNotFoundError),
    client_error(503, "503", wrapped=FileNotFoundError),
    boto.ConnectionClosedError(endpoint_url="x"),
    boto.EndpointConnectionError(endpoint_url="x"),
    boto.ReadTimeoutError(endpoint_url="x"),
    boto.ConnectTimeoutError(endpoint_url="x"),
    boto.IncompleteReadError(actual_bytes=1, expected_bytes=2),
    boto.ResponseStreamingError(error="x"),
    aiohttp.ClientPayloadError("cut"),
    aiohttp.ServerDisconnectedError(),
    FSTimeoutError(),
    TimeoutError(),
    ConnectionResetError(),
    BrokenPipeError(),
    ShortAnswerError(),
]


@pytest.mark.parametrize("error", PASSING_ERRORS, ids=lambda error: f"{type(error).__name__}-{error}")
def test_errors_that_pass(error):
    assert is_passing(error)


LASTING_ERRORS = [
    *[
        client_error(status, code)
        for status, code in [(400, "InvalidArgument"), (403, "AccessDenied"), (412, "PreconditionFailed")]
    ],
    client_error(404, "NoSuchKey", wrapped=FileNotFoundError),
    client_error(404, "NoSuchBucket", wrapped=FileNotFoundError),
    client_error(501, "NotImplemented"),
    boto.NoCredentialsError(),
    boto.ParamValidationError(report="x"),
    StillFailingError(16, "busy"),
    FileNotFoundError(),
    FileExistsError(),
    PermissionError(),
    IsADirectoryError(),
    OSError(28, "No space left on device"),
    TypeError(),
]


@pytest.mark.parametrize("error", LASTING_ERRORS, ids=lambda error: f"{type(error).__name__}-{error}")
def test_errors_that_last(error):
    assert not is_passing(error)


def test_a_payload_error_passes_though_its_cause_has_the_number_of_a_bad_request():
    error = aiohttp.ClientPayloadError("cut")
    error.__cause__ = aiohttp.http_exceptions.ContentLengthError("few bytes")
    assert error.__cause__.code == 400
    assert is_passing(error)


def test_errors_of_google_cloud_storage_are_told_apart_by_their_code():
    retry = pytest.importorskip("gcsfs.retry")
    assert is_passing(retry.HttpError({"code": 503, "message": "x"}))
    assert not is_passing(retry.HttpError({"code": 401, "message": "x"}))
    assert is_passing(retry.ChecksumError())


def test_what_was_not_reached_is_told_from_what_answered_badly():
    assert is_unreached(boto.EndpointConnectionError(endpoint_url="x"))
    assert is_unreached(ConnectionRefusedError())
    assert is_unreached(socket.gaierror())
    assert not is_unreached(boto.ConnectionClosedError(endpoint_url="x"))
    assert not is_unreached(client_error(503, "SlowDown"))


@given(attempt=st.integers(0, 10**6))
def test_waits_are_bounded_and_leave_the_random_numbers_of_the_process_alone(attempt):
    random.seed(1)
    state = random.getstate()
    patience = Patience()
    assert 0 < patience.wait_seconds(attempt) <= 1.5 * patience.longest_wait_seconds
    assert random.getstate() == state
