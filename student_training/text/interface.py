"""Batches of texts, and what reads them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from student_training.terms.interface import StudentOutput, StudentShape, TargetRows, Wants


@dataclass(frozen=True, kw_only=True, slots=True)
class TextBatch:
    """Sequences of one step that one process trains on, padded on the right to the longest of them.

    Attributes:
        step: update, counted from 0 over all epochs.
        keys: sample keys, for messages.
        input_ids: int64 [B, L], what the teacher saw: masks applied.
        token_ids: int64 [B, L], what the text is.
        attention_mask: bool [B, L], False where there is padding.
        masked: bool [B, L], tokens that are masked; None where the view masks none.
        labels: int64 [B], hard labels, NO_LABEL where there is none.
        targets: cached targets by their names in the experiment; empty from a source alone.
    """

    step: int
    keys: list[str]
    input_ids: Tensor
    token_ids: Tensor
    attention_mask: Tensor
    masked: Tensor | None
    labels: Tensor
    targets: dict[str, TargetRows]

    def __len__(self) -> int:
        return len(self.keys)

    def pin_memory(self) -> TextBatch:
        """Return the batch in page-locked memory; the DataLoader calls this."""
        return replace(
            self,
            input_ids=self.input_ids.pin_memory(),
            token_ids=self.token_ids.pin_memory(),
            attention_mask=self.attention_mask.pin_memory(),
            masked=None if self.masked is None else self.masked.pin_memory(),
            labels=self.labels.pin_memory(),
            targets={name: rows.pin_memory() for name, rows in self.targets.items()},
        )

    def to(self, device: torch.device) -> TextBatch:
        """Return the batch on a device, copied without waiting where memory is page-locked."""
        return replace(
            self,
            input_ids=self.input_ids.to(device, non_blocking=True),
            token_ids=self.token_ids.to(device, non_blocking=True),
            attention_mask=self.attention_mask.to(device, non_blocking=True),
            masked=None if self.masked is None else self.masked.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            targets={name: rows.to(device) for name, rows in self.targets.items()},
        )


class TextStudent(nn.Module):
    """A network that reads token sequences."""

    shape: StudentShape

    def forward(self, input_ids: Tensor, *, attention_mask: Tensor, wants: Wants | None = None) -> StudentOutput:
        """Return what is wanted of padded sequences; padding changes nothing.

        Args:
            input_ids: int64 [B, L].
            attention_mask: bool [B, L].
            wants: which outputs; None: logits everywhere.
        """
        raise NotImplementedError
