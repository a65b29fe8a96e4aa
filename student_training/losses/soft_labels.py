"""Distillation losses between student logits and sparse soft labels: pure functions, computed without dense targets.

Shapes: B rows, K stored entries a row, C classes. A row of the teacher is `class_ids` [B, K], `probs` [B, K] and `rest` [B];
an entry with probability 0 is unused, whatever its id, and may repeat another. Probabilities are at `generation_temperature` G
and are matched at `temperature` T: an exponent a = G / T re-tempers them. Every target is normalised, so rounding in
`sum(probs) + rest` does not reach the gradient. Gradients flow to the student alone.

All functions return the Kullback-Leibler divergence of each row, [B], in nats, without a factor of T^2: the soft cross entropy of
TinyViT less the teacher's own entropy, which is constant, so the gradients are the same and 0 means agreement.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

RestPolicy = Literal["uniform", "mean", "bucket", "renormalize"]

NEVER = -1e30
"""Takes a class out of a logsumexp; finite, so that a row without other classes has a finite gradient."""

_MEAN_FLOOR = 1e-8
"""Smallest mean class probability, as a share of 1 / C: a class that no label ever named still gets some of the rest."""


def uniform_rest_kl(
    student_logits: Tensor,
    *,
    class_ids: Tensor,
    probs: Tensor,
    rest: Tensor,
    temperature: float = 1.0,
    generation_temperature: float = 1.0,
) -> Tensor:
    """KL(P || softmax(z / T)) with the rest spread evenly: P_j = rest / (C - k) for each of the C - k classes that are not kept.

    Re-tempered, the rest weighs (C - k) * (rest / (C - k))^a. With all classes kept there is no rest.

    Args:
        student_logits: z [B, C].
        class_ids: integer [B, K].
        probs: [B, K], at the generation temperature.
        rest: [B], mass of all classes that are not kept.
        temperature: T.
        generation_temperature: G.

    Returns:
        [B], float32 or wider.

    References:
        Wu et al., TinyViT: Fast Pretraining Distillation for Small Vision Transformers, https://arxiv.org/abs/2207.10666
    """
    log_q = student_log_probs(student_logits, temperature=temperature)
    return _spread_kl(
        log_q, class_ids=class_ids, probs=probs, rest=rest, weights=None, exponent=generation_temperature / temperature
    )


def mean_rest_kl(
    student_logits: Tensor,
    *,
    class_ids: Tensor,
    probs: Tensor,
    rest: Tensor,
    mean_class_probs: Tensor,
    temperature: float = 1.0,
    generation_temperature: float = 1.0,
) -> Tensor:
    """KL(P || softmax(z / T)) with the rest spread by the mean: P_j = rest * w_j / sum of w over classes that are not kept.

    Re-tempered, each such class weighs (rest * w_j / sum w)^a.

    Args:
        student_logits: z [B, C].
        class_ids: integer [B, K].
        probs: [B, K], at the generation temperature.
        rest: [B].
        mean_class_probs: w [C], the mean probability of every class over the label set.
        temperature: T.
        generation_temperature: G.

    Returns:
        [B], float32 or wider.
    """
    log_q = student_log_probs(student_logits, temperature=temperature)
    return _spread_kl(
        log_q,
        class_ids=class_ids,
        probs=probs,
        rest=rest,
        weights=spread_weights(mean_class_probs),
        exponent=generation_temperature / temperature,
    )


def bucket_rest_kl(
    student_logits: Tensor,
    *,
    class_ids: Tensor,
    probs: Tensor,
    rest: Tensor,
    temperature: float = 1.0,
    generation_temperature: float = 1.0,
) -> Tensor:
    """KL over k + 1 outcomes: the kept classes, and one bucket of all others, the student's leftover mass against the rest.

    The student's bucket is logsumexp of its log-probabilities over the classes that are not kept, never 1 - sum, which cancels
    when the student is sure. The teacher's bucket is re-tempered as if its mass were spread evenly,
    (C - k) * (rest / (C - k))^a: the stored row does not say how it is spread.

    Args:
        student_logits: z [B, C].
        class_ids: integer [B, K]; used ids of a row differ from each other.
        probs: [B, K], at the generation temperature.
        rest: [B].
        temperature: T.
        generation_temperature: G.

    Returns:
        [B], float32 or wider.
    """
    log_q = student_log_probs(student_logits, temperature=temperature)
    ids = class_ids.long()
    with torch.no_grad():
        kept = probs > 0
        num_others = (log_q.shape[1] - kept.sum(dim=1)).double()
        kept_p, rest_p = temper_rows(
            probs, rest=rest, rest_weight=num_others, tempered_weight=num_others, exponent=generation_temperature / temperature
        )
        kept_p, rest_p = kept_p.to(log_q.dtype), rest_p.to(log_q.dtype)
        without_kept = torch.where(kept, NEVER, 0.0).to(log_q.dtype)
    log_q_rest = torch.logsumexp(log_q.scatter_add(1, ids, without_kept), dim=1)
    kept_kl = (torch.xlogy(kept_p, kept_p) - kept_p * log_q.gather(1, ids)).sum(dim=1)
    return kept_kl + torch.xlogy(rest_p, rest_p) - rest_p * log_q_rest


def renormalized_kl(
    student_logits: Tensor,
    *,
    class_ids: Tensor,
    probs: Tensor,
    temperature: float = 1.0,
    generation_temperature: float = 1.0,
) -> Tensor:
    """KL(P || softmax(z / T)) without the rest: P_i = probs_i^a / sum of probs^a on kept classes, 0 elsewhere.

    The student's distribution stays over all C classes. A row that keeps nothing has loss 0.

    Args:
        student_logits: z [B, C].
        class_ids: integer [B, K].
        probs: [B, K], at the generation temperature.
        temperature: T.
        generation_temperature: G.

    Returns:
        [B], float32 or wider.
    """
    log_q = student_log_probs(student_logits, temperature=temperature)
    with torch.no_grad():
        none = torch.zeros_like(probs[:, 0], dtype=torch.float64)
        kept_p, _ = temper_rows(
            probs, rest=none, rest_weight=none, tempered_weight=none, exponent=generation_temperature / temperature
        )
        kept_p = kept_p.to(log_q.dtype)
    return (torch.xlogy(kept_p, kept_p) - kept_p * log_q.gather(1, class_ids.long())).sum(dim=1)


def densify(
    class_ids: Tensor,
    *,
    probs: Tensor,
    rest: Tensor,
    num_classes: int,
    rest_policy: Literal["uniform", "mean", "renormalize"],
    mean_class_probs: Tensor | None = None,
) -> Tensor:
    """Return float64 [B, C], the normalised distribution at the generation temperature that a rest policy makes of sparse rows.

    For inspection and tests; the losses never build it. A bucket has no distribution over classes. A row that keeps nothing is
    all zero when it is renormalised.

    Raises:
        ValueError: `mean` without `mean_class_probs`.
    """
    values = probs.double()
    dense = torch.zeros(len(values), num_classes, dtype=torch.float64, device=values.device)
    others = torch.zeros_like(dense).scatter_add(1, class_ids.long(), (values > 0).double()) == 0
    dense = dense.scatter_add(1, class_ids.long(), values)
    if rest_policy != "renormalize":
        weights = others.double() * _policy_weights(rest_policy, mean_class_probs=mean_class_probs, like=dense)
        dense = dense + rest.double()[:, None] * weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-300)
    total = dense.sum(dim=1, keepdim=True)
    return dense / torch.where(total > 0, total, 1.0)


def spread_weights(mean_class_probs: Tensor) -> Tensor:
    """Return float64 [C], mean class probabilities normalised and kept above 0: how `mean_rest_kl` spreads the rest."""
    weights = mean_class_probs.double()
    return (weights / weights.sum()).clamp(min=_MEAN_FLOOR / len(weights))


def _policy_weights(policy: str, *, mean_class_probs: Tensor | None, like: Tensor) -> Tensor:
    if policy == "uniform":
        return torch.ones_like(like[0])
    if mean_class_probs is None:
        raise ValueError("spreading the rest by the mean class probability needs mean_class_probs; give them, or use uniform")
    return spread_weights(mean_class_probs)


def student_log_probs(logits: Tensor, *, temperature: float) -> Tensor:
    """Return log softmax(z / T) in float32 or wider."""
    wide = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    return torch.log_softmax(wide / temperature if temperature != 1.0 else wide, dim=1)


def temper_rows(
    probs: Tensor, *, rest: Tensor, rest_weight: Tensor, tempered_weight: Tensor, exponent: float
) -> tuple[Tensor, Tensor]:
    """Return float64 probabilities of kept classes [B, K] and of the rest [B], re-tempered and normalised together.

    The rest is (rest / rest_weight)^a * tempered_weight, sums over the classes that are not kept of their spread weights and of
    these to the power a; 0 where there is no such class.
    """
    kept = probs.double().pow(exponent)
    others = (rest.double() / rest_weight.clamp(min=1e-300)).pow(exponent) * tempered_weight
    others = torch.where(rest_weight > 0, others, 0.0)
    total = kept.sum(dim=1) + others
    scale = torch.where(total > 0, 1.0 / total, 0.0)
    return kept * scale[:, None], others * scale


def _spread_kl(
    log_q: Tensor, *, class_ids: Tensor, probs: Tensor, rest: Tensor, weights: Tensor | None, exponent: float
) -> Tensor:
    """KL with the rest spread over the classes that are not kept in proportion to `weights` [C], evenly if None.

    With v = weights^a and V its sum over those classes, each of them has P_j = P_rest * v_j / V, so their terms are
    P_rest * (log P_rest + sum(v log v) / V - log V - sum(v log q) / V). Evenly spread, each sum is that of all classes less the
    kept ones; by weights it is taken over [B, C], for a class that weighs nearly everything would cancel it.
    """
    ids = class_ids.long()
    log_q_kept = log_q.gather(1, ids)
    with torch.no_grad():
        kept = (probs > 0).double()
        if weights is None:
            rest_weight = tempered_weight = log_q.shape[1] - kept.sum(dim=1)
            log_weight = torch.zeros_like(rest_weight)
        else:
            others = torch.zeros_like(log_q, dtype=torch.float64).scatter_add(1, ids, kept).eq(0).double()
            powered = weights.pow(exponent)
            sums = others @ torch.stack([weights, powered, torch.xlogy(powered, powered)], dim=1)
            rest_weight, tempered_weight, log_weight = sums.unbind(dim=1)
        has_rest = (kept.sum(dim=1) < log_q.shape[1]) & (rest_weight > 0) & (tempered_weight > 0)
        rest_weight = torch.where(has_rest, rest_weight, 0.0)
        kept_p, rest_p = temper_rows(
            probs, rest=rest, rest_weight=rest_weight, tempered_weight=tempered_weight, exponent=exponent
        )
        divisor = torch.where(has_rest, tempered_weight, 1.0)
        rest_term = torch.xlogy(rest_p, rest_p) + rest_p * (log_weight / divisor - divisor.log())
        kept_p, rest_term = kept_p.to(log_q.dtype), rest_term.to(log_q.dtype)
        if weights is None:
            rest_share, kept = (rest_p / divisor).to(log_q.dtype), kept.to(log_q.dtype)
        else:
            spread = (others * powered * (rest_p / divisor)[:, None]).to(log_q.dtype)
    kept_kl = (torch.xlogy(kept_p, kept_p) - kept_p * log_q_kept).sum(dim=1)
    if weights is None:
        return kept_kl + rest_term - rest_share * (log_q.sum(dim=1) - (kept * log_q_kept).sum(dim=1))
    return kept_kl + rest_term - (spread * log_q).sum(dim=1)
