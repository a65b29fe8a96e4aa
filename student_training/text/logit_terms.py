"""Terms that compare logits: with cached soft labels, with the logits of a teacher's kept head, with hard tokens and labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from storage.config.terms import HardLabelTerm, HardTokensTerm, SoftLabelsTerm
from storage.sources.base import NO_LABEL
from student_training.heads import HeadModule
from student_training.losses.dense import dense_kl, dense_reverse_kl, hard_cross_entropy
from student_training.losses.drawn import drawn_cross_entropy
from student_training.losses.reverse import reverse_kl
from student_training.losses.soft_labels import bucket_rest_kl, mean_rest_kl, renormalized_kl, uniform_rest_kl
from student_training.text.chunks import sum_of_rows
from student_training.text.interface import TargetRows, TextBatch
from student_training.text.rows import Outputs, RowSet, positions_of
from student_training.text.term import Term

_KL: dict[str, Callable[..., Tensor]] = {
    "uniform": uniform_rest_kl,
    "mean": mean_rest_kl,
    "bucket": bucket_rest_kl,
    "renormalize": renormalized_kl,
}


class SparseLabels(Term):
    """Cached soft labels: divergence or cross entropy at the rows that have them, times T^2 where asked for."""

    mean_class_probs: Tensor | None

    def __init__(
        self,
        config: SoftLabelsTerm,
        *,
        name: str,
        target: str,
        row_set: RowSet,
        loss: str,
        generation_temperature: float,
        mean_class_probs: Tensor | None,
    ) -> None:
        super().__init__(name=name, weight=config.weight, divisor=config.divisor)
        self.target, self.row_set = target, row_set
        self._config = config
        self._loss = loss
        self._generation_temperature = generation_temperature
        # Derived from the label set, so no part of a checkpoint.
        self.register_buffer("mean_class_probs", mean_class_probs, persistent=False)

    def num_rows(self, batch: TextBatch) -> int:
        """Return the rows that have labels."""
        return len(self.rows_of(batch))

    def total(self, outputs: Outputs) -> Tensor:
        """Return the sum over rows."""
        labels = self.rows_of(outputs.batch).soft_labels
        assert labels is not None
        assert self.row_set is not None
        logits = outputs.logits_at(self.row_set)
        total = sum_of_rows(self._losses, logits, labels.class_ids, labels.probs, labels.rest, entries_per_row=logits.shape[1])
        return _scale(self._config) * total

    def _losses(self, logits: Tensor, class_ids: Tensor, probs: Tensor, rest: Tensor) -> Tensor:
        config = self._config
        if self._loss == "cross_entropy":
            return drawn_cross_entropy(logits, class_ids=class_ids, weights=probs, temperature=config.temperature)
        function: Callable[..., Tensor] = _KL[config.rest] if self._loss == "kl" else reverse_kl
        arguments: dict[str, Any] = {} if config.rest == "renormalize" else {"rest": rest}
        if config.rest == "mean":
            arguments["mean_class_probs"] = self.mean_class_probs
        if self._loss == "reverse_kl":
            arguments |= {"rest_policy": config.rest, "rest_floor": config.rest_floor}
        return function(
            logits,
            class_ids=class_ids,
            probs=probs,
            temperature=config.temperature,
            generation_temperature=self._generation_temperature,
            **arguments,
        )


class HeadLabels(Term):
    """The logits that a teacher's kept head makes of its cached hidden states: dense soft labels that were never stored."""

    def __init__(self, config: SoftLabelsTerm, *, name: str, target: str, tensor: str, row_set: RowSet, head: HeadModule) -> None:
        super().__init__(name=name, weight=config.weight, divisor=config.divisor)
        self.target, self.row_set = target, row_set
        self._config = config
        self._tensor = tensor
        # Buffers that no checkpoint holds: it moves with the student and is not trained.
        self.head = head

    def num_rows(self, batch: TextBatch) -> int | Tensor:
        """Return the rows whose logits are compared."""
        match self.row_set:
            case "masked":
                assert batch.masked is not None
                return batch.masked.sum()
            case "next":
                return batch.attention_mask[:, 1:].sum()
            case "view":
                return len(batch)
            case _:
                return batch.attention_mask.sum()

    def total(self, outputs: Outputs) -> Tensor:
        """Return the sum over rows."""
        rows, batch = self.rows_of(outputs.batch), outputs.batch
        assert rows.features is not None
        assert self.row_set is not None
        hidden = self._where_compared(rows.features.tensors[self._tensor], rows=rows, batch=batch)
        logits = outputs.logits_at(self.row_set)
        total = sum_of_rows(self._losses, logits, hidden, entries_per_row=logits.shape[1])
        return _scale(self._config) * total

    def _losses(self, logits: Tensor, hidden: Tensor) -> Tensor:
        with torch.no_grad():
            # The head of a language model may be padded to a round number of tokens.
            teacher_logits = self.head(hidden)[:, : logits.shape[1]]
        function = dense_reverse_kl if self._config.loss == "reverse_kl" else dense_kl
        return function(logits, teacher_logits=teacher_logits, temperature=self._config.temperature)

    def _where_compared(self, hidden: Tensor, *, rows: TargetRows, batch: TextBatch) -> Tensor:
        """Return the hidden states whose logits are compared: a vocabulary of logits is made of no others."""
        if self.row_set == "all" or (self.row_set == "view" and len(rows) == len(batch)):
            return hidden
        row_of_token = torch.zeros_like(batch.input_ids)
        row_of_token[rows.sequence, rows.position] = torch.arange(len(rows), device=hidden.device)
        if self.row_set == "view":
            return hidden[row_of_token[:, 0]]
        assert self.row_set is not None
        at = positions_of(batch, row_set=self.row_set)
        assert at is not None
        return hidden[row_of_token[at.sequence, at.position]]


class HardTokens(Term):
    """Cross entropy with the text's own tokens: masked ones, or next ones."""

    def __init__(self, config: HardTokensTerm, *, name: str, row_set: RowSet) -> None:
        super().__init__(name=name, weight=config.weight, divisor=config.divisor)
        self.row_set = row_set
        self._smoothing = config.smoothing

    def num_rows(self, batch: TextBatch) -> Tensor:
        """Return the tokens that are predicted."""
        if self.row_set == "masked":
            assert batch.masked is not None
            return batch.masked.sum()
        return batch.attention_mask[:, 1:].sum()

    def total(self, outputs: Outputs) -> Tensor:
        """Return the sum over tokens that are predicted."""
        assert self.row_set is not None
        at = positions_of(outputs.batch, row_set=self.row_set)
        assert at is not None
        tokens = outputs.batch.token_ids[at.sequence, at.position + (self.row_set == "next")]
        logits = outputs.logits_at(self.row_set)
        return sum_of_rows(self._losses, logits, tokens, entries_per_row=logits.shape[1])

    def _losses(self, logits: Tensor, tokens: Tensor) -> Tensor:
        return hard_cross_entropy(logits, labels=tokens, smoothing=self._smoothing)


class HardLabels(Term):
    """Cross entropy with the source's own labels."""

    row_set: RowSet | None = "view"

    def __init__(self, config: HardLabelTerm, *, name: str) -> None:
        super().__init__(name=name, weight=config.weight, divisor=config.divisor)
        self._smoothing = config.smoothing

    def num_rows(self, batch: TextBatch) -> Tensor:
        """Return the sequences that have a label."""
        return (batch.labels != NO_LABEL).sum()

    def total(self, outputs: Outputs) -> Tensor:
        """Return the sum over sequences that have a label."""
        return hard_cross_entropy(outputs.logits_at("view"), labels=outputs.batch.labels, smoothing=self._smoothing).sum()


def _scale(config: SoftLabelsTerm) -> float:
    return config.temperature**2 if config.scale_by_temperature_squared else 1.0
