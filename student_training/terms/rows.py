"""What a student gave of a batch, for terms to read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from student_training.terms.interface import StudentOutput, TermBatch

RowSet = Literal["view", "masked", "all", "next"]
"""One row a sample; of texts, masked tokens, all tokens, or tokens that have a next one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outputs:
    """A student's output for a batch.

    Attributes:
        student: what it gave.
        batch: what it was given.
    """

    student: StudentOutput
    batch: TermBatch

    def logits_at(self, row_set: RowSet) -> Tensor:
        """Return [R, C], the logits of a set of rows."""
        del row_set
        assert self.student.logits is not None
        return self.student.logits
