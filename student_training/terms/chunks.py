"""Sums of losses over many rows, in little memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

MAX_ENTRIES = 1 << 26
"""Numbers of one tensor that a loss makes at a time: a quarter of a gigabyte in single precision."""


def sum_of_rows(losses: Callable[..., Tensor], *rows: Tensor, entries_per_row: int, max_entries: int | None = None) -> Tensor:
    """Return the sum of `losses(*rows)`, a scalar, chunk by chunk where there are many rows.

    A loss makes several tensors of `entries_per_row` numbers a row: as many as there are tokens in a vocabulary, or scores in the
    attention of a sequence. Of chunks they are made one after the other, and again in the backward pass; what is kept in between
    is what the loss was given.

    Args:
        losses: of rows, losses of each row by itself, of any shape.
        rows: [R, ...] each.
        entries_per_row: numbers that the loss makes of a row.
        max_entries: numbers of one chunk; None: `MAX_ENTRIES`.
    """
    chunk = max(1, (max_entries or MAX_ENTRIES) // entries_per_row)
    if len(rows[0]) <= chunk:
        return losses(*rows).sum()
    # `split` gives the gradient back in one piece; a slice a chunk would give one of full size each.
    pieces = zip(*(torch.split(tensor, chunk) for tensor in rows), strict=True)
    found = [checkpoint(_sum, losses, *piece, use_reentrant=False, preserve_rng_state=False) for piece in pieces]
    return torch.stack(found).sum()


def _sum(losses: Callable[..., Tensor], *piece: Tensor) -> Tensor:
    return losses(*piece).sum()
