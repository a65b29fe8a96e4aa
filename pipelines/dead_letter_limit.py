"""How many rows may have no label: known of each label set before it is made, so that a run ends once too many are lost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from storage.cache import Cache
from storage.errors import DeadLetterLimitError
from storage.parts import DeadLetter, PartRecord

SHOWN_LETTERS = 5
_LONG_SECONDS = 0.2
_REST = 20.0
"""Times as long as counting took, a worker does not count again."""


@dataclass(kw_only=True)
class DeadLetterLimit:
    """What share of rows may have no label, for workers that share nothing but the cache. Picklable.

    Attributes:
        share: generation.dead_letter_limit.
        num_rows: rows of each whole label set, by request; none of one of which that shows only when it is made.
    """

    share: float
    num_rows: dict[str, int]
    _counts_again: float = field(default=0.0, init=False)

    def check(self, cache: Cache, *, run: str, record: PartRecord) -> None:
        """Count the dead rows of a part that was just committed to those of the run; nothing is read where it has none.

        Counting takes longer the more parts have some. Where it takes long, most parts are noted only, so that it stays a small
        share of a worker's time; whoever commits the label set counts all.

        Args:
            run: the run's folder.

        Raises:
            DeadLetterLimitError: whatever else is computed, more rows of the label set will have no label than are allowed.
        """
        request = record.part.request
        num_dead = num_dead_rows(record.dead_letters, views=range(record.part.first_view, _end(record)))
        if not num_dead or request not in self.num_rows:
            return
        folder = f"{run}/dead"
        # Another attempt at the same part writes the same name. Who writes last sees all.
        cache.store.write(f"{folder}/{request}.{record.part.name}.{num_dead}.json", b"{}")
        started = time.monotonic()
        if started < self._counts_again:
            return
        marks = (name.rsplit("/", 1)[-1].split(".") for name in cache.store.names(folder))
        total = sum(int(mark[-2]) for mark in marks if mark[0] == request)
        ended = time.monotonic()
        if ended - started > _LONG_SECONDS:
            self._counts_again = ended + _REST * (ended - started)
        if total > self.share * self.num_rows[request]:
            shown = [describe_letter(record.unit_name, letter) for letter in record.dead_letters[:SHOWN_LETTERS]]
            raise limit_error(total, num_rows=self.num_rows[request], share=self.share, shown=shown, so_far=True)


def num_dead_rows(letters: Sequence[DeadLetter], *, views: range) -> int:
    """Return the rows of some views that have no label."""
    return sum(len(views) if letter.view is None else letter.view in views for letter in letters)


def describe_letter(unit: str, letter: DeadLetter) -> str:
    """Return a line about a dead letter."""
    return f"  {unit} {letter.key}: {letter.stage}: {letter.reason}"


def limit_error(
    num_dead: int, *, num_rows: int, share: float, shown: Sequence[str], so_far: bool = False
) -> DeadLetterLimitError:
    """Return the error that ends a run.

    Args:
        shown: lines about some of the dead letters.
        so_far: the run was stopped before all rows were computed.
    """
    ended = ", and the run was stopped" if so_far else ""
    return DeadLetterLimitError(
        f"{num_dead} of {num_rows} rows have no label, more than generation.dead_letter_limit {share} allows{ended}; "
        "no label set was made, what was computed is kept:\n" + "\n".join(shown) + "\n"
        "Mend these samples where they lie, run again with --retry-dead-letters if the samples are right and the failure was not "
        "theirs, or raise the limit, and run the same command again. Removing samples from a source without shards shifts the "
        "units behind them, which are then computed anew"
    )


def _end(record: PartRecord) -> int:
    return record.part.first_view + record.part.num_views
