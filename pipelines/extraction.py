"""Logits to ranked labels, on the device: only the kept classes leave it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from storage.codecs import RankedLabels
from storage.specs import SoftLabelsSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtractedBatch:
    """What a teacher step leaves of a batch.

    Attributes:
        rows: one row for every view of the batch, also for those that are not finite.
        finite: bool [batch], False where a logit, over the temperature, is NaN or infinite; such a row's values mean nothing.
        probability_sums: float64 [classes], sum of all class probabilities over the rows that are alive and finite.
    """

    rows: RankedLabels
    finite: npt.NDArray[np.bool_]
    probability_sums: npt.NDArray[np.float64]


@torch.inference_mode()
def extract(logits: torch.Tensor, *, spec: SoftLabelsSpec, alive: npt.NDArray[np.bool_]) -> ExtractedBatch:
    """Return the most probable classes of a batch of logits, and the mass of all others.

    Args:
        logits: float32 [batch, classes], any device.
        alive: bool [rows], for the rows in front that belong to the unit, whether the sample could be rendered; the rows behind
            pad the batch.
    """
    logits = logits[: len(alive)].float() / spec.generation_temperature
    finite = torch.isfinite(logits).all(dim=1)
    counted = finite & torch.from_numpy(alive).to(logits.device)
    # A row that is not finite becomes a dead letter; zeros keep its neighbours' arithmetic clean.
    logits = torch.where(finite[:, None], logits, 0.0)
    log_probs = torch.log_softmax(logits, dim=1)
    kept, class_ids = torch.topk(log_probs, spec.max_entries, dim=1, sorted=True)
    # 1 - sum(kept) would lose a small rest to rounding.
    log_rest = torch.logsumexp(log_probs.scatter(1, class_ids, -torch.inf), dim=1)
    sums = (log_probs.exp() * counted[:, None]).sum(dim=0)
    return ExtractedBatch(
        rows=RankedLabels(
            class_ids=class_ids.cpu().numpy().astype(np.uint32),
            log_probs=kept.cpu().numpy(),
            log_rest=log_rest.cpu().numpy(),
        ),
        finite=finite.cpu().numpy(),
        probability_sums=sums.cpu().numpy().astype(np.float64),
    )
