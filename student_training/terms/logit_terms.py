"""Terms that compare the logits of whole samples or of tokens: with cached soft labels, and with hard labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from storage.config.terms import HardLabelTerm, SoftLabelsTerm
from storage.sources.base import NO_LABEL
from student_training.losses.dense import hard_cross_entropy
from student_training.losses.drawn import drawn_cross_entropy
from student_training.losses.reverse import reverse_kl
from student_training.losses.soft_labels import bucket_rest_kl, mean_rest_kl, renormalized_kl, uniform_rest_kl
from student_training.terms.chunks import sum_of_rows
from student_training.terms.interface import TermBatch
from student_training.terms.rows import Outputs, RowSet
from student_training.terms.term import Term

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

    def num_rows(self, batch: TermBatch) -> int:
        """Return the rows that have labels."""
        return len(self.rows_of(batch))

    def total(self, outputs: Outputs) -> Tensor:
        """Return the sum over rows."""
        labels = self.rows_of(outputs.batch).soft_labels
        assert labels is not None
        assert self.row_set is not None
        logits = outputs.logits_at(self.row_set)
        total = sum_of_rows(self._losses, logits, labels.class_ids, labels.probs, labels.rest, entries_per_row=logits.shape[1])
        return temperature_scale(self._config) * total

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


class HardLabels(Term):
    """Cross entropy with the source's own labels."""

    row_set: RowSet | None = "view"

    def __init__(self, config: HardLabelTerm, *, name: str) -> None:
        super().__init__(name=name, weight=config.weight, divisor=config.divisor)
        self._smoothing = config.smoothing

    def num_rows(self, batch: TermBatch) -> Tensor:
        """Return the samples that have a label."""
        return (batch.labels != NO_LABEL).sum()

    def total(self, outputs: Outputs) -> Tensor:
        """Return the sum over samples that have a label."""
        return hard_cross_entropy(outputs.logits_at("view"), labels=outputs.batch.labels, smoothing=self._smoothing).sum()


def temperature_scale(config: SoftLabelsTerm) -> float:
    """Return the factor that the square of the temperature makes."""
    return config.temperature**2 if config.scale_by_temperature_squared else 1.0
