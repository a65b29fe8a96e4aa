"""Pictures that cannot be read: training and evaluation go on without them, count them and list them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator
from accelerate.utils import gather_object

from storage.errors import DeadLetterLimitError
from student_training.output_folder import writing

DEAD_LETTERS_FILE = "dead_letters.jsonl"

Use = Literal["training", "evaluation"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOut:
    """A picture that a batch went without.

    Attributes:
        key: of the sample.
        stage: `read` from the source, or `decode`.
        reason: what is wrong with it.
    """

    key: str
    stage: Literal["read", "decode"]
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class DeadLetter:
    """A line of the list: a picture that was left out, and since when.

    Attributes:
        use: what it was for.
        step: updates done when it was first left out.
        key, stage, reason: see `LeftOut`.
    """

    use: Use
    step: int
    key: str
    stage: str
    reason: str


class DeadLetters:
    """The list of a run, `dead_letters.jsonl`: each picture once, the same whatever the number of processes.

    It is part of a run's state, so that a run that goes on lists what one without a break would.
    """

    def __init__(self, folder: Path, *, limit: float, num_samples: int) -> None:
        """Begin with an empty list; nothing is written.

        Args:
            folder: of the run.
            limit: share of samples that may be left out.
            num_samples: of an epoch.
        """
        self._folder = folder
        self._limit = limit
        self._num_samples = num_samples
        self._found: dict[tuple[Use, str], DeadLetter] = {}
        self._new: list[DeadLetter] = []

    def count(self, use: Use) -> int:
        """Return the pictures that are listed, of training or of evaluation."""
        return sum(letter.use == use for letter in self._found.values())

    def add(self, left_out: Iterable[LeftOut], *, step: int) -> None:
        """Note what this process went without in an update; `settle` lists it."""
        self._new += [_letter(found, use="training", step=step) for found in left_out]

    def settle(self, accelerator: Accelerator) -> None:
        """List what all processes have noted; every process must call it.

        Raises:
            DeadLetterLimitError: more were left out than may be.
            OutputError: the list cannot be written.
        """
        new: list[DeadLetter] = gather_object(self._new)
        self._new = []
        self._list(new, accelerator=accelerator, num_samples=self._num_samples)

    def add_evaluation(self, left_out: Sequence[LeftOut], *, step: int, num_samples: int, accelerator: Accelerator) -> None:
        """List what an evaluation went without, over all processes.

        Args:
            left_out: the same on every process.
            step: updates done.
            num_samples: pictures of the evaluation.
            accelerator: of this run.

        Raises:
            DeadLetterLimitError, OutputError: see `settle`.
        """
        letters = [_letter(found, use="evaluation", step=step) for found in left_out]
        self._list(letters, accelerator=accelerator, num_samples=num_samples)

    def _list(self, letters: list[DeadLetter], *, accelerator: Accelerator, num_samples: int) -> None:
        before = len(self._found)
        for letter in sorted(letters, key=lambda letter: (letter.step, letter.key)):
            self._found.setdefault((letter.use, letter.key), letter)
        if len(self._found) == before:
            return
        if accelerator.is_main_process:
            self.write()
        use = letters[0].use
        if self.count(use) <= self._limit * num_samples:
            return
        first = next(letter for letter in self._found.values() if letter.use == use)
        source = "training.evaluation.source" if use == "evaluation" else "the source"
        raise DeadLetterLimitError(
            f"{self.count(use)} of {num_samples:,} pictures of {source} cannot be read, more than generation.dead_letter_limit "
            f"{self._limit:g} allows; the first is {first.key!r}: {first.reason}. {self._folder / DEAD_LETTERS_FILE} lists them. "
            "Mend their files in place, or raise the limit: either way the same command goes on from the last checkpoint"
        )

    def write(self) -> None:
        """Write the list, whole; one that is empty has no file.

        Raises:
            OutputError: it cannot be written.
        """
        path = self._folder / DEAD_LETTERS_FILE
        with writing("the list of pictures that were left out", folder=self._folder):
            if not self._found:
                path.unlink(missing_ok=True)
                return
            temporary = path.with_name(path.name + ".tmp")
            temporary.write_text("".join(json.dumps(line) + "\n" for line in self.state()), encoding="utf-8")
            temporary.replace(path)

    def state(self) -> list[dict[str, Any]]:
        """Return the list as plain data."""
        return [asdict(letter) for letter in self._found.values()]

    def load_state(self, state: list[dict[str, Any]]) -> None:
        """Go on from a list."""
        letters = [DeadLetter(**line) for line in state]
        self._found = {(letter.use, letter.key): letter for letter in letters}


def _letter(found: LeftOut, *, use: Use, step: int) -> DeadLetter:
    return DeadLetter(use=use, step=step, key=found.key, stage=found.stage, reason=found.reason)
