"""Follow a job that runs elsewhere: an engine that is gone ends the command, instead of leaving it waiting for ever."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Protocol

from pipelines.engine.addresses import Address, why_silent
from storage.errors import DecantError

LOST_SECONDS = 15
"""An engine that was silent for so long is taken for dead; shorter pauses are what restarts and networks cost."""

_CONNECT_SECONDS = 5

RESUME = "What was committed is whole: run the same command again to go on"


class EngineLostError(DecantError):
    """The engine, or what it needs, went away while a job ran."""


class Watch(Protocol):
    """A running job as it is seen from the process that submitted it."""

    @property
    def sees_job(self) -> bool:
        """Whether it sees the job itself, so that its word goes before that of Beam's connection."""

    def look(self) -> bool:
        """Return whether the job is known to have ended well.

        Raises:
            EngineLostError: the engine is gone.
            Exception: the job failed; `failure_of` makes a message of it.
        """

    def error_so_far(self) -> str:
        """Return what went wrong last in a job that may go on; "" where nothing did, or the engine keeps it to itself."""

    def cancel(self) -> None:
        """End the job, as far as the engine can be reached."""

    def cancel_what_comes(self) -> None:
        """End the job also where it comes up only now: handing it over was interrupted."""


@dataclass(kw_only=True)
class Silence:
    """How long something has not answered.

    Attributes:
        what: what is silent, for the message, with where it is.
        remedy: what to do about it.
    """

    what: str
    remedy: str
    _since: float | None = field(default=None, init=False)

    def over(self) -> None:
        """Note an answer."""
        self._since = None

    def goes_on(self, reason: str) -> None:
        """Note that there was no answer.

        Raises:
            EngineLostError: there was none for too long.
        """
        now = time.monotonic()
        if self._since is None:
            self._since = now
        if now - self._since >= LOST_SECONDS:
            raise EngineLostError(
                f"{self.what} has not answered for {now - self._since:.0f} seconds while the job ran ({reason}); {self.remedy}. "
                f"{RESUME}"
            )


@dataclass(kw_only=True)
class AddressWatch:
    """Addresses that must answer as long as a job runs."""

    watched: dict[Address, Silence]

    @property
    def sees_job(self) -> bool:
        """False: it sees addresses."""
        return False

    def look(self) -> bool:
        """Knock at every address; how the job ended, Beam says.

        Raises:
            EngineLostError: one has been silent for too long.
        """
        for address, silence in self.watched.items():
            reason = why_silent(address, seconds=_CONNECT_SECONDS)
            if reason is None:
                silence.over()
            else:
                silence.goes_on(reason)
        return False

    def error_so_far(self) -> str:
        """Return nothing: addresses do not speak of jobs."""
        return ""

    def cancel(self) -> None:
        """Leave it to Beam."""

    def cancel_what_comes(self) -> None:
        """Do nothing: addresses do not tell jobs apart."""
