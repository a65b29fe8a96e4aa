"""What training tells while it runs: metrics.jsonl, TensorBoard events, and a bar on a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch.utils.tensorboard.writer import SummaryWriter
from tqdm import tqdm

from student_training.output_folder import writing

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"
_SHOWN = ("loss", "top1", "perplexity", "images_per_second", "sequences_per_second")


class MetricsLog:
    """Lines of `metrics.jsonl`, each with `kind` and `step`, and the same figures for TensorBoard.

    Opened at a step, it drops what was written after it, so that no step appears twice when a killed run goes on.
    """

    def __init__(self, folder: Path, *, from_step: int, num_steps: int, progress: bool, evaluates_again: bool = False) -> None:
        """Open the log.

        Args:
            folder: the run's folder.
            from_step: updates done so far.
            num_steps: updates of the whole training.
            progress: whether to show a bar, if standard error is a terminal.
            evaluates_again: whether an evaluation of the very step is still to come.

        Raises:
            OutputError: nothing can be written there.
        """
        self._folder = folder
        self._path = folder / METRICS_FILE
        with writing("the log", folder=folder):
            folder.mkdir(parents=True, exist_ok=True)
            cut_metrics(self._path, last_step=from_step, evaluates_again=evaluates_again)
            self._file = self._path.open("a", encoding="utf-8")
            self._events = SummaryWriter(str(folder / TENSORBOARD_FOLDER), purge_step=from_step + 1 if from_step else 0)
        self._bar: tqdm[Any] = tqdm(
            total=num_steps, initial=from_step, unit="step", disable=not (progress and sys.stderr.isatty()), dynamic_ncols=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._bar.close()
        # What ended the training is what a person must read, not that its last lines could not be written either.
        with suppress(OSError) if error is not None else writing("the log", folder=self._folder):
            self._file.close()
            self._events.close()

    def advance(self) -> None:
        """Move the bar by one update."""
        self._bar.update()

    def write(self, kind: str, *, step: int, epoch: float, figures: Mapping[str, Any]) -> None:
        """Append a line and TensorBoard scalars.

        Args:
            kind: `training` or `evaluation`.
            step: updates done.
            epoch: passes over the samples done.
            figures: numbers by name; text is left out of TensorBoard.

        Raises:
            OutputError: they cannot be written.
        """
        with writing("the log", folder=self._folder):
            self._file.write(json.dumps({"kind": kind, "step": step, "epoch": epoch, **figures}) + "\n")
            self._file.flush()
            for name, value in figures.items():
                if isinstance(value, int | float):
                    self._events.add_scalar(f"{kind}/{name}", value, global_step=step)
        shown = {name: f"{figures[name]:.4g}" for name in _SHOWN if name in figures}
        self._bar.set_postfix(shown)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics file in order; a last line that a kill cut short is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    records = []
    for line in lines:
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


def cut_metrics(path: Path, *, last_step: int, evaluates_again: bool = False) -> None:
    """Drop lines of later steps and a line that was cut short; the file is replaced as a whole.

    Args:
        path: of metrics.jsonl.
        last_step: the last one that is kept.
        evaluates_again: whether its evaluation is dropped, too.
    """
    if not path.exists():
        return
    kept = [record for record in read_metrics(path) if record["step"] <= last_step]
    if evaluates_again:
        kept = [record for record in kept if (record["kind"], record["step"]) != ("evaluation", last_step)]
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
    temporary.replace(path)
