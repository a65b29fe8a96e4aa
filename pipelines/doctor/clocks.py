"""How far clocks are apart, as intervals that are certain: what happened before and after what."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.doctor.report import ClockReading


@dataclass(frozen=True, kw_only=True, slots=True)
class Offset:
    """How far one clock is ahead of another: between `least` and `most` seconds; negative where it is behind."""

    least: float
    most: float

    @property
    def middle(self) -> float:
        """The best guess, in seconds."""
        return (self.least + self.most) / 2

    @property
    def doubt(self) -> float:
        """How far the truth may lie from the guess, in seconds."""
        return (self.most - self.least) / 2

    @property
    def certain_seconds(self) -> float:
        """By how much the clocks differ at least, whatever their sign; 0 where they may agree."""
        return max(self.least, -self.most, 0.0)

    def reversed(self) -> Offset:
        """Return how far the other clock is ahead of this one."""
        return Offset(least=-self.most, most=-self.least)

    def plus(self, other: Offset) -> Offset:
        """Return how far this clock is ahead of a third one: `other` is how far the second is ahead of that."""
        return Offset(least=self.least + other.least, most=self.most + other.most)

    def narrowed(self, other: Offset) -> Offset:
        """Return what two intervals of one offset leave; where they exclude each other a clock was set in between: both."""
        least, most = max(self.least, other.least), min(self.most, other.most)
        if least > most:
            return Offset(least=min(self.least, other.least), most=max(self.most, other.most))
        return Offset(least=least, most=most)


def offset_to_store(reading: ClockReading) -> Offset:
    """Return how far a process's clock is ahead of the store's.

    The file came to be between `before` and `after` by the one, and between `stored` and one resolution later by the other.
    """
    return Offset(
        least=reading.before - (reading.stored + reading.resolution_seconds),
        most=reading.after - reading.stored,
    )


def offset_by_message(said: float, *, asked: float, heard: float) -> Offset:
    """Return how far a process's clock is ahead of the submitter's.

    Args:
        said: when it spoke, by its own clock.
        asked, heard: between which times that was, by the submitter's.
    """
    return Offset(least=said - heard, most=said - asked)


def offset_to_submitter(
    *, worker: ClockReading | None, submitter: ClockReading | None, said: float, asked: float, heard: float
) -> Offset:
    """Return how far a worker's clock is ahead of the submitter's, from all that is known.

    Args:
        worker, submitter: their clocks beside the clock of one store.
        said, asked, heard: see `offset_by_message`.
    """
    found = offset_by_message(said, asked=asked, heard=heard)
    if worker is not None and submitter is not None:
        found = found.narrowed(offset_to_store(worker).plus(offset_to_store(submitter).reversed()))
    return found
