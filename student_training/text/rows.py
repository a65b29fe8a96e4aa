"""Which tokens of a batch logits are compared at, and the student's logits there: nowhere else are they computed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from storage.specs import SoftLabelsSpec
from student_training.terms.interface import Positions
from student_training.terms.rows import Outputs, RowSet
from student_training.text.interface import TextBatch


def union_of(row_sets: Iterable[RowSet]) -> RowSet | None:
    """Return the rows that cover some sets of rows: the set itself where there is one, all tokens where they differ."""
    found = set(row_sets)
    if not found:
        return None
    return found.pop() if len(found) == 1 else "all"


def positions_of(batch: TextBatch, *, row_set: RowSet) -> Positions | None:
    """Return the tokens of a set of rows, sequence by sequence in the order of positions; None of one row a sequence."""
    if row_set == "view":
        return None
    for rows in batch.targets.values():
        if isinstance(rows.spec, SoftLabelsSpec) and rows.spec.positions == row_set:
            return Positions(sequence=rows.sequence, position=rows.position)
    if row_set == "masked":
        if batch.masked is None:
            raise ValueError("masked tokens are asked for, and nothing is masked in this batch")
        chosen = batch.masked
    else:
        chosen = batch.attention_mask if row_set == "all" else batch.attention_mask[:, 1:]
    sequence, position = chosen.nonzero(as_tuple=True)
    return Positions(sequence=sequence, position=position)


@dataclass(frozen=True, kw_only=True, slots=True)
class TextOutputs(Outputs):
    """A student's output for a batch, with its logits by sets of rows.

    Attributes:
        student: what it gave; logits of a language model are of the rows of `computed`, in their order.
        batch: what it was given.
        computed: rows that logits were computed at; None: nowhere.
    """

    batch: TextBatch
    computed: RowSet | None

    def logits_at(self, row_set: RowSet) -> Tensor:
        """Return [R, C], the logits of a set of rows; not copied where just these were computed."""
        logits = self.student.logits
        assert logits is not None
        if row_set == self.computed:
            return logits
        rows = positions_of(self.batch, row_set=row_set)
        assert rows is not None
        mask = self.batch.attention_mask
        row_of_token = mask.flatten().cumsum(0).view_as(mask) - 1
        return logits[row_of_token[rows.sequence, rows.position]]
