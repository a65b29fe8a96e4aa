"""What pictures and texts do differently; the trainer does the rest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from accelerate import Accelerator
from torch import Tensor, nn

from student_training.data import Collate
from student_training.left_out import LeftOut

B = TypeVar("B")

Figures = dict[str, float]
"""What an evaluation measured, by name; `num_rows` is how many rows it looked at."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluated:
    """What came of an evaluation, the same on every process.

    Attributes:
        figures: see `Figures`.
        left_out: samples that could not be read.
        num_samples: all that were to be read.
    """

    figures: Figures
    left_out: tuple[LeftOut, ...] = ()
    num_samples: int = 0


class Task(Protocol[B]):
    """One kind of student on one kind of rows."""

    @property
    def module(self) -> nn.Module:
        """What is trained; the loop moves, wraps and averages it."""

    @property
    def collate(self) -> Collate[Any, B]:
        """Rows to batches."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the losses that are computed."""

    @property
    def samples(self) -> Literal["images", "sequences"]:
        """What a row is called where speed is told: `<samples>_per_second`."""

    @property
    def runs_teacher(self) -> bool:
        """Whether every row goes through a live teacher."""

    @property
    def trains_all(self) -> bool:
        """Whether every parameter is part of every loss; where some are not, processes have to be told."""

    @property
    def leaves_out(self) -> bool:
        """Whether batches go without samples that cannot be read, and name them as `left_out`."""

    @property
    def evaluates(self) -> bool:
        """Whether there is anything to evaluate on."""

    def losses(self, module: nn.Module, batch: B, *, num_rows: float, accelerator: Accelerator) -> dict[str, Tensor]:
        """Return the losses of a batch by name, scalars with a gradient.

        Args:
            module: as `Accelerator.prepare` gave it.
            batch: this process's share, on the CPU.
            num_rows: rows of the whole batch divided by processes.
            accelerator: device and processes.
        """

    def evaluate(self, module: nn.Module, *, accelerator: Accelerator) -> Evaluated:
        """Return the figures of a module, not wrapped, over all processes; its training mode is put back."""

    def export(self, module: nn.Module, *, folder: Path, weights: Literal["trained", "ema"]) -> None:
        """Write the student of a module, not wrapped, as others load it."""
