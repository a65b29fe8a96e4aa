"""Operations on a store that fail for a moment are tried again: 5xx, throttling, dropped connections, short answers.

Waits grow and are partly drawn, so that many workers do not come back at once. The time is bounded; then the error says so.
"""

from __future__ import annotations

import errno
import logging
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
_log = logging.getLogger(__name__)

_PASSING_STATUS = frozenset({408, 429, 500, 502, 503, 504, 509})
_PASSING_CODES = frozenset(
    {
        "BadDigest",
        "ConditionalRequestConflict",
        "IncompleteBody",
        "InternalError",
        "NoSuchUpload",  # an upload in pieces whose end was not heard of; it is begun anew
        "OperationAborted",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "XAmzContentSHA256Mismatch",
    }
)
_UNREACHED = frozenset(
    {
        "aiohttp.client_exceptions.ClientConnectorError",
        "botocore.exceptions.ConnectTimeoutError",
        "botocore.exceptions.EndpointConnectionError",
        "botocore.exceptions.ProxyConnectionError",
        "builtins.ConnectionRefusedError",
        "socket.gaierror",
    }
)
# By name, since a cache on disk needs none of these packages.
_PASSING = _UNREACHED | {
    "aiohttp.client_exceptions.ClientError",
    "botocore.exceptions.ConnectionError",
    "botocore.exceptions.HTTPClientError",
    "botocore.exceptions.IncompleteReadError",
    "botocore.parsers.ResponseParserError",
    "builtins.ConnectionError",
    "builtins.TimeoutError",
    "fsspec.exceptions.FSTimeoutError",
    "gcsfs.retry.ChecksumError",
    "google.auth.exceptions.TransportError",
    "http.client.IncompleteRead",
    "requests.exceptions.ChunkedEncodingError",
    "requests.exceptions.ConnectionError",
    "requests.exceptions.Timeout",
    "urllib3.exceptions.ProtocolError",
}
_WITH_STATUS = frozenset({"aiohttp.client_exceptions.ClientResponseError", "gcsfs.retry.HttpError"})
# Not the generator of the process, whose numbers decide what is trained on; nor one that forked workers would share.
_jitter = random.SystemRandom()


class ShortAnswerError(ConnectionError):
    """A store gave fewer bytes than it has."""


class StillFailingError(OSError):
    """What failed goes on failing after all tries."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """How long to go on after a first failure.

    Attributes:
        seconds: between the first failure and the last try.
        hopeless_seconds: the same where nothing ever answered, since then the address is wrong more often than the store is down,
            and where the operation before was given up, so that what is left to do does not wait as long again.
        first_wait_seconds: mean wait before the second try; it doubles from try to try.
        longest_wait_seconds: where it stops doubling.
    """

    seconds: float = 30.0
    hopeless_seconds: float = 4.0
    first_wait_seconds: float = 0.2
    longest_wait_seconds: float = 4.0

    def wait_seconds(self, attempt: int) -> float:
        """Return how long to wait after a try, counted from 0: half of it is drawn."""
        wait = min(self.longest_wait_seconds, self.first_wait_seconds * 2.0 ** min(attempt, 60))
        return wait * _jitter.uniform(0.5, 1.5)


@dataclass(kw_only=True, slots=True)
class Health:
    """What earlier requests to a store have shown; shared by all that use it in a process.

    Attributes:
        answered: something ever answered at its address.
        given_up: the last operation that ended was given up.
    """

    answered: bool = False
    given_up: bool = False

    def limit_seconds(self, error: Exception, *, patience: Patience) -> float:
        """Return for how long after its first failure an operation is tried again."""
        hopeless = self.given_up or (not self.answered and is_unreached(error))
        return patience.hopeless_seconds if hopeless else patience.seconds


def retried(action: Callable[[], T], *, patience: Patience, health: Health, done: tuple[type[Exception], ...] = ()) -> T:
    """Return what an action returns, which is tried until it succeeds or fails for good.

    Args:
        action: may run any number of times.
        done: errors of a later try that say that an earlier one, whose answer was lost, had succeeded; None is returned.

    Raises:
        StillFailingError: it failed in a way that passes, for as long as patience lasts.
        Exception: it failed in another way.
    """
    started = 0.0
    attempt = 0
    while True:
        try:
            result = action()
        except Exception as error:
            health.answered = health.answered or not is_unreached(error)
            if attempt and isinstance(error, done):
                return None  # type: ignore[return-value]  # only what returns nothing has `done`
            if not is_passing(error):
                raise
            now = time.monotonic()
            started = started or now
            wait = patience.wait_seconds(attempt)
            attempt += 1
            if now + wait - started > health.limit_seconds(error, patience=patience):
                health.given_up = True
                tried = f" (tried {attempt} times in {now - started:.0f} s)" if attempt > 1 else ""
                raise StillFailingError(errno.EBUSY, f"{_words(error)}{tried}") from error
            _log.info("%s; trying again in %.1f s", _words(error), wait)
        else:
            health.answered, health.given_up = True, False
            return result
        time.sleep(wait)


def is_passing(error: BaseException) -> bool:
    """Return whether an error of a store's client is of a kind that passes by itself."""
    if isinstance(error, StillFailingError):
        return False
    for cause in _causes(error):
        response = getattr(cause, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return status in _PASSING_STATUS or response.get("Error", {}).get("Code") in _PASSING_CODES
        if _is_one_of(cause, _WITH_STATUS):
            return getattr(cause, "status", getattr(cause, "code", None)) in _PASSING_STATUS
    return any(_is_one_of(cause, _PASSING) for cause in _causes(error)) and not isinstance(error, ValueError)


def is_unreached(error: BaseException) -> bool:
    """Return whether an error says that nothing answered at the store's address."""
    return any(_is_one_of(cause, _UNREACHED) for cause in _causes(error))


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    for _ in range(4):
        if cause is None:
            return
        yield cause
        cause = cause.__cause__


def _is_one_of(error: BaseException, names: frozenset[str]) -> bool:
    return any(f"{kind.__module__}.{kind.__qualname__}" in names for kind in type(error).__mro__)


def _words(error: Exception) -> str:
    words = getattr(error, "strerror", None) or str(error)
    return words or type(error).__name__
