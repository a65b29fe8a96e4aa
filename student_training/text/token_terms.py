"""Terms that compare logits of tokens: with those of a teacher's kept head, and with the text's own tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from storage.config.terms import HardTokensTerm, SoftLabelsTerm
from student_training.heads import HeadModule
from student_training.losses.dense import dense_kl, dense_reverse_kl, hard_cross_entropy
from student_training.terms.chunks import sum_of_rows
from student_training.terms.interface import TargetRows, TermBatch
from student_training.terms.logit_terms import temperature_scale
from student_training.terms.rows import Outputs, RowSet
from student_training.terms.term import Term
from student_training.text.interface import TextBatch
from student_training.text.rows import positions_of


class HeadLabels(Term):
    """The logits that a teacher's kept head makes of its cached hidden states: dense soft labels that were never stored."""

    def __init__(self, config: SoftLabelsTerm, *, name: str, target: str, tensor: str, row_set: RowSet, head: HeadModule) -> None:
        super().__init__(name=name, weight=config.weight, divisor=config.divisor)
        self.target, self.row_set = target, row_set
        self._config = config
        self._tensor = tensor
        # Buffers that no checkpoint holds: it moves with the student and is not trained.
        self.head = head

    def num_rows(self, batch: TermBatch) -> int | Tensor:
        """Return the rows whose logits are compared."""
        match self.row_set:
            case "masked":
                masked = _text(batch).masked
                assert masked is not None
                return masked.sum()
            case "next":
                return batch.attention_mask[:, 1:].sum()
            case "view":
                return len(batch)
            case _:
                return batch.attention_mask.sum()

    def total(self, outputs: Outputs) -> Tensor:
        """Return the sum over rows."""
        rows, batch = self.rows_of(outputs.batch), _text(outputs.batch)
        assert rows.features is not None
        assert self.row_set is not None
        hidden = self._where_compared(rows.features.tensors[self._tensor], rows=rows, batch=batch)
        logits = outputs.logits_at(self.row_set)
        total = sum_of_rows(self._losses, logits, hidden, entries_per_row=logits.shape[1])
        return temperature_scale(self._config) * total

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

    def num_rows(self, batch: TermBatch) -> Tensor:
        """Return the tokens that are predicted."""
        if self.row_set == "masked":
            masked = _text(batch).masked
            assert masked is not None
            return masked.sum()
        return batch.attention_mask[:, 1:].sum()

    def total(self, outputs: Outputs) -> Tensor:
        """Return the sum over tokens that are predicted."""
        assert self.row_set is not None
        batch = _text(outputs.batch)
        at = positions_of(batch, row_set=self.row_set)
        assert at is not None
        tokens = batch.token_ids[at.sequence, at.position + (self.row_set == "next")]
        logits = outputs.logits_at(self.row_set)
        return sum_of_rows(self._losses, logits, tokens, entries_per_row=logits.shape[1])

    def _losses(self, logits: Tensor, tokens: Tensor) -> Tensor:
        return hard_cross_entropy(logits, labels=tokens, smoothing=self._smoothing)


def _text(batch: TermBatch) -> TextBatch:
    assert isinstance(batch, TextBatch)
    return batch
