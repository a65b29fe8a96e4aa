"""Which rows each update reads: a pure function of the stream's size, independent of processes and loader workers."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate

from storage.errors import ConfigError
from storage.streams.base import BlockStream


@dataclass(frozen=True, kw_only=True, slots=True)
class StepPlan:
    """Steps of all epochs: step g of an epoch reads rows [g * batch_size, (g + 1) * batch_size) of the epoch's order.

    Attributes:
        batch_size: rows of a step over all processes together.
        epoch_rows: rows of each epoch.
        epoch_steps: steps of each epoch.
    """

    batch_size: int
    epoch_rows: tuple[int, ...]
    epoch_steps: tuple[int, ...]

    @property
    def num_steps(self) -> int:
        """Steps of all epochs."""
        return sum(self.epoch_steps)

    @property
    def steps_per_epoch(self) -> float:
        """Steps of one epoch, on average."""
        return self.num_steps / len(self.epoch_steps)

    def position(self, step: int) -> tuple[int, int]:
        """Return (epoch, step inside the epoch) of a step; the number of steps itself is (number of epochs, 0)."""
        ends = list(accumulate(self.epoch_steps))
        epoch = bisect_right(ends, step)
        return epoch, step - (ends[epoch - 1] if epoch else 0)

    def rows(self, step: int, *, rank: int, world_size: int) -> tuple[int, int, int]:
        """Return (epoch, first row, end row) of one process's contiguous slice of a step."""
        epoch, inside = self.position(step)
        start = inside * self.batch_size
        count = min(self.batch_size, self.epoch_rows[epoch] - start)
        return epoch, start + count * rank // world_size, start + count * (rank + 1) // world_size


def plan_training(stream: BlockStream, *, epochs: int, batch_size: int, world_size: int) -> StepPlan:
    """Return the plan of a training: each epoch's incomplete last batch is dropped.

    Raises:
        ConfigError: an epoch has no full batch, or a batch has fewer rows than there are processes.
    """
    if batch_size < world_size:
        raise ConfigError(
            f"training.batch_size is {batch_size} over all processes together but there are {world_size} processes, so some "
            "would have no rows; raise batch_size"
        )
    epoch_rows = tuple(int(stream.block_rows(epoch=epoch).sum()) for epoch in range(epochs))
    if min(epoch_rows) < batch_size:
        raise ConfigError(
            f"training.batch_size is {batch_size} but epoch {epoch_rows.index(min(epoch_rows))} has {min(epoch_rows)} rows: it "
            f"would have no full batch; lower batch_size to {max(1, min(epoch_rows))} or less, or raise training.sample_fraction"
        )
    return StepPlan(batch_size=batch_size, epoch_rows=epoch_rows, epoch_steps=tuple(rows // batch_size for rows in epoch_rows))


def plan_evaluation(stream: BlockStream, *, batch_size: int) -> StepPlan:
    """Return the plan of one pass over all rows; the last batch may be smaller."""
    rows = int(stream.block_rows(epoch=0).sum())
    return StepPlan(batch_size=batch_size, epoch_rows=(rows,), epoch_steps=(-(-rows // batch_size),))
