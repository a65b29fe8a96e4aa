"""One weighted term of a loss."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from student_training.terms.interface import TargetRows, TermBatch
from student_training.terms.rows import Outputs, RowSet

Divisor = Literal["rows", "tokens", "sequences"]


class Term(nn.Module):
    """A sum over rows of a batch, divided by a count. What it learns itself (a projection) is its parameters.

    Attributes:
        name: as it is reported.
        weight: its factor in the loss.
        divisor: what its sum is divided by.
        target: name of the target it reads; None of the samples' own tokens and labels.
        row_set: rows at which it needs logits; None: it needs none.
        vectors: attention vectors it needs of the student.
        hidden_layers: layers of the student whose hidden states it needs.
        needs_embedding: whether it needs what the student's head reads.
    """

    target: str | None = None
    row_set: RowSet | None = None
    vectors: tuple[str, ...] = ()
    hidden_layers: tuple[int, ...] = ()
    needs_embedding: bool = False

    def __init__(self, *, name: str, weight: float, divisor: Divisor) -> None:
        super().__init__()
        self.name = name
        self.weight = weight
        self.divisor = divisor

    def total(self, outputs: Outputs) -> Tensor:
        """Return the sum of the losses of all rows, a scalar."""
        raise NotImplementedError

    def num_rows(self, batch: TermBatch) -> Tensor | int:
        """Return the rows of a batch, where the divisor is rows."""
        raise NotImplementedError

    def count(self, batch: TermBatch) -> Tensor:
        """Return what the sum of a batch is divided by, a float32 scalar on the batch's device."""
        count: Tensor | int
        match self.divisor:
            case "rows":
                count = self.num_rows(batch)
            case "tokens":
                count = batch.attention_mask.sum()
            case "sequences":
                count = len(batch)
        return torch.as_tensor(count, dtype=torch.float32, device=batch.labels.device)

    def rows_of(self, batch: TermBatch) -> TargetRows:
        """Return the rows of this term's target."""
        assert self.target is not None
        return batch.targets[self.target]


def to_padded(rows: Tensor, *, at: TargetRows, like: Tensor) -> Tensor:
    """Return [B, L, W], rows of tokens at their places, 0 at padding.

    Args:
        rows: [R, W], a row a token.
        at: which token each row is of.
        like: [B, L].
    """
    padded = rows.new_zeros(*like.shape, rows.shape[1])
    padded[at.sequence, at.position] = rows
    return padded
