"""What a student minimises: distillation and hard-label terms, mixed as the config says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from storage.config.training import LossConfig
from storage.errors import ConfigError
from storage.sources.base import NO_LABEL
from student_training.losses.dense import dense_kl, hard_cross_entropy
from student_training.losses.soft_labels import bucket_rest_kl, mean_rest_kl, renormalized_kl, uniform_rest_kl


@dataclass(frozen=True, kw_only=True, slots=True)
class SparseTargets:
    """Sparse soft labels of a batch as tensors; see `storage.soft_labels.SoftLabels`.

    Attributes:
        class_ids: int32 or int64 [B, K].
        probs: float32 [B, K].
        rest: float32 [B].
    """

    class_ids: Tensor
    probs: Tensor
    rest: Tensor

    def pin_memory(self) -> SparseTargets:
        """Return the targets in page-locked memory."""
        return SparseTargets(class_ids=self.class_ids.pin_memory(), probs=self.probs.pin_memory(), rest=self.rest.pin_memory())

    def to(self, device: torch.device) -> SparseTargets:
        """Return the targets on a device, copied without waiting where memory is page-locked."""
        return SparseTargets(
            class_ids=self.class_ids.to(device, non_blocking=True),
            probs=self.probs.to(device, non_blocking=True),
            rest=self.rest.to(device, non_blocking=True),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """loss = (1 - hard_weight) * distillation_loss + hard_weight * hard_loss.

    distillation_loss is the mean over rows of KL(teacher || student) at `distillation_temperature`, times its square if
    `scale_by_temperature_squared`. hard_loss is the mean cross entropy over the rows that have a label. A part whose weight is 0
    is not computed and not reported.

    Attributes:
        kind: where targets come from; `hard` has the hard loss alone.
        config: temperatures, rest policy and weight.
        smoothing: label smoothing of the hard loss.
        generation_temperature: temperature of stored probabilities.
        mean_class_probs: [C], for the rest policy `mean`.
    """

    kind: Literal["cached", "hard", "live"]
    config: LossConfig
    smoothing: float = 0.0
    generation_temperature: float = 1.0
    mean_class_probs: Tensor | None = None

    @property
    def hard_weight(self) -> float:
        """Weight of the hard loss."""
        return 1.0 if self.kind == "hard" else self.config.hard_weight

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the losses that are computed."""
        distillation = ("distillation_loss",) if self.hard_weight < 1 else ()
        hard = ("hard_loss",) if self.hard_weight > 0 else ()
        return ("loss", *distillation, *hard)

    def __call__(
        self,
        student_logits: Tensor,
        *,
        labels: Tensor,
        targets: SparseTargets | None = None,
        teacher_logits: Tensor | None = None,
        num_rows: float | None = None,
        num_labelled: Tensor | None = None,
        present: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return scalars `loss` and, of what is part of it, `distillation_loss` and `hard_loss`.

        Args:
            student_logits: [B, C].
            labels: int64 [B], NO_LABEL where there is none.
            targets: for `cached`.
            teacher_logits: [B, C], for `live`.
            num_rows: divisor of the distillation loss; None: B. Several processes share a batch, and the mean over processes of
                their losses is that of the whole batch when each divides by its rows over the number of processes.
            num_labelled: divisor of the hard loss, likewise; None: the labelled rows of this batch.
            present: bool [B], the rows that the distillation loss is of; None: all. Labels say it for the hard loss.
        """
        losses: dict[str, Tensor] = {}
        if self.hard_weight > 0:
            divisor = count_labelled(labels) if num_labelled is None else num_labelled
            rows = hard_cross_entropy(student_logits, labels=labels, smoothing=self.smoothing)
            losses["hard_loss"] = rows.sum() / divisor.clamp(min=1e-9)
        if self.hard_weight < 1:
            rows = self._distillation_rows(student_logits, targets=targets, teacher_logits=teacher_logits)
            if present is not None:
                rows = rows * present
            losses["distillation_loss"] = rows.sum() * (self._scale() / (len(labels) if num_rows is None else num_rows))
        if len(losses) == 1:
            return {"loss": next(iter(losses.values())), **losses}
        weight = self.hard_weight
        return {"loss": (1 - weight) * losses["distillation_loss"] + weight * losses["hard_loss"], **losses}

    def to(self, device: torch.device) -> Objective:
        """Return the objective with its tensors on a device."""
        mean = None if self.mean_class_probs is None else self.mean_class_probs.to(device)
        return Objective(
            kind=self.kind,
            config=self.config,
            smoothing=self.smoothing,
            generation_temperature=self.generation_temperature,
            mean_class_probs=mean,
        )

    def _scale(self) -> float:
        return self.config.distillation_temperature**2 if self.config.scale_by_temperature_squared else 1.0

    def _distillation_rows(self, logits: Tensor, *, targets: SparseTargets | None, teacher_logits: Tensor | None) -> Tensor:
        if teacher_logits is not None:
            return dense_kl(logits, teacher_logits=teacher_logits, temperature=self.config.distillation_temperature)
        if targets is None:
            raise ValueError("distillation needs sparse targets or teacher logits, and this batch has neither")
        return self._sparse_kl(targets)(logits)

    def _sparse_kl(self, targets: SparseTargets) -> Callable[[Tensor], Tensor]:
        temperature, generation_temperature = self.config.distillation_temperature, self.generation_temperature
        if self.config.rest == "renormalize":
            return partial(
                renormalized_kl,
                class_ids=targets.class_ids,
                probs=targets.probs,
                temperature=temperature,
                generation_temperature=generation_temperature,
            )
        function: Callable[..., Tensor] = uniform_rest_kl if self.config.rest == "uniform" else bucket_rest_kl
        if self.mean_class_probs is not None:
            function = partial(mean_rest_kl, mean_class_probs=self.mean_class_probs)
        return partial(
            function,
            class_ids=targets.class_ids,
            probs=targets.probs,
            rest=targets.rest,
            temperature=temperature,
            generation_temperature=generation_temperature,
        )


def build_objective(
    config: LossConfig,
    *,
    kind: Literal["cached", "hard", "live"],
    smoothing: float = 0.0,
    generation_temperature: float = 1.0,
    mean_class_probs: npt.NDArray[np.floating] | None = None,
) -> Objective:
    """Return the objective of a config.

    Raises:
        ConfigError: `loss.rest: mean` without mean class probabilities.
    """
    needs_mean = kind == "cached" and config.rest == "mean"
    if needs_mean and mean_class_probs is None:
        raise ConfigError(
            "training.loss.rest is mean but this label set holds no mean class probabilities; use uniform, bucket or renormalize"
        )
    mean = torch.tensor(mean_class_probs, dtype=torch.float64) if needs_mean else None
    return Objective(
        kind=kind, config=config, smoothing=smoothing, generation_temperature=generation_temperature, mean_class_probs=mean
    )


def count_labelled(labels: Tensor) -> Tensor:
    """Return the number of rows with a hard label, a float32 scalar on the labels' device."""
    return (labels != NO_LABEL).sum().float()
