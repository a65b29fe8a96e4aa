"""KL(student || teacher) against sparse soft labels: the student is to stay where the teacher has mass."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from student_training.losses.soft_labels import NEVER, spread_weights, student_log_probs, temper_rows

ReverseRestPolicy = Literal["uniform", "mean", "bucket"]


def reverse_kl(
    student_logits: Tensor,
    *,
    class_ids: Tensor,
    probs: Tensor,
    rest: Tensor,
    rest_policy: ReverseRestPolicy,
    rest_floor: float,
    mean_class_probs: Tensor | None = None,
    temperature: float = 1.0,
    generation_temperature: float = 1.0,
) -> Tensor:
    """KL(Q || P) = sum of Q_j (log Q_j - log P_j), Q = softmax(z / T), without a dense target.

    The rest must have mass wherever a class is not kept, else the divergence is infinite: it is raised to `rest_floor`, and the
    row normalised. It is spread evenly, by the mean, or stays one bucket, as in `student_training.losses.soft_labels`; there is
    no reverse of renormalising.

    Args:
        student_logits: z [B, C].
        class_ids: integer [B, K]; used ids of a row differ from each other.
        probs: [B, K], at the generation temperature G; 0 where unused.
        rest: [B].
        rest_policy: what becomes of the rest.
        rest_floor: smallest rest of a row that does not keep all classes.
        mean_class_probs: [C], for `mean`.
        temperature: T.
        generation_temperature: G.

    Returns:
        [B], in nats, float32 or wider, without a factor of T^2.

    Raises:
        ValueError: `mean` without `mean_class_probs`.

    References:
        Gu et al., MiniLLM: Knowledge Distillation of Large Language Models, https://arxiv.org/abs/2306.08543
    """
    log_q = student_log_probs(student_logits, temperature=temperature)
    ids, exponent = class_ids.long(), generation_temperature / temperature
    if rest_policy == "mean" and mean_class_probs is None:
        raise ValueError("spreading the rest by the mean class probability needs mean_class_probs; give them, or use uniform")
    with torch.no_grad():
        kept = probs > 0
        num_others = (log_q.shape[1] - kept.sum(dim=1)).double()
        rest_weight = tempered_weight = num_others
        log_powered = None
        if rest_policy == "mean" and mean_class_probs is not None:
            weights = spread_weights(mean_class_probs)
            log_powered = exponent * weights.log()
            others = torch.zeros_like(log_q, dtype=torch.float64).scatter_add(1, ids, kept.double()).eq(0).double()
            rest_weight, tempered_weight = others @ weights, others @ log_powered.exp()
        kept_p, rest_p = temper_rows(
            probs,
            rest=torch.where(num_others > 0, rest.double().clamp(min=rest_floor), 0.0),
            rest_weight=rest_weight,
            tempered_weight=tempered_weight,
            exponent=exponent,
        )
        log_kept = torch.where(kept, kept_p.clamp(min=1e-300).log(), 0.0).to(log_q.dtype)
        spread = torch.ones_like(rest_p) if rest_policy == "bucket" else tempered_weight
        log_other = torch.where(num_others > 0, (rest_p / spread.clamp(min=1e-300)).clamp(min=1e-300).log(), 0.0)
        without_kept = torch.where(kept, NEVER, 0.0).to(log_q.dtype)
        log_other = log_other.to(log_q.dtype)
    log_q_kept = log_q.gather(1, ids)
    q_kept = torch.where(kept, log_q_kept.exp(), 0.0)
    log_q_rest = torch.logsumexp(log_q.scatter_add(1, ids, without_kept), dim=1)
    kept_part = (q_kept * (log_q_kept - log_kept)).sum(dim=1)
    if rest_policy == "bucket":
        return kept_part + log_q_rest.exp() * (log_q_rest - log_other)
    q = log_q.exp()
    entropy_part = (q * log_q).sum(dim=1) - (q_kept * log_q_kept).sum(dim=1)
    cross = log_q_rest.exp() * log_other
    if log_powered is not None:
        cross = cross + (q * (others * log_powered).to(q.dtype)).sum(dim=1)
    return kept_part + entropy_part - cross
