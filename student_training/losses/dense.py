"""Losses against targets that are not stored: a live teacher's logits, and hard labels."""

from __future__ import annotations

import torch
from torch import Tensor

from storage.sources.base import NO_LABEL


def dense_kl(student_logits: Tensor, *, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(softmax(t / T) || softmax(z / T)), without a factor of T^2.

    Args:
        student_logits: z [B, C].
        teacher_logits: t [B, C]; no gradient flows to them.
        temperature: T.

    Returns:
        [B], in nats, float32 or wider.

    References:
        Hinton et al., Distilling the Knowledge in a Neural Network, https://arxiv.org/abs/1503.02531
    """
    log_q = torch.log_softmax(_wide(student_logits) / temperature, dim=1)
    log_p = torch.log_softmax(_wide(teacher_logits.detach()) / temperature, dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


def dense_reverse_kl(student_logits: Tensor, *, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(softmax(z / T) || softmax(t / T)), without a factor of T^2; arguments and result as of `dense_kl`.

    References:
        Gu et al., MiniLLM: Knowledge Distillation of Large Language Models, https://arxiv.org/abs/2306.08543
    """
    log_q = torch.log_softmax(_wide(student_logits) / temperature, dim=1)
    log_p = torch.log_softmax(_wide(teacher_logits.detach()) / temperature, dim=1)
    return (log_q.exp() * (log_q - log_p)).sum(dim=1)


def hard_cross_entropy(student_logits: Tensor, *, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """-sum of P log softmax(z), P = 1 - smoothing on the label plus smoothing / C on every class.

    Args:
        student_logits: z [B, C].
        labels: int64 [B]; a row with NO_LABEL has loss 0.
        smoothing: share of the mass that is spread evenly.

    Returns:
        [B], in nats, float32 or wider.

    References:
        Szegedy et al., Rethinking the Inception Architecture for Computer Vision, https://arxiv.org/abs/1512.00567
    """
    return torch.nn.functional.cross_entropy(
        _wide(student_logits), labels, ignore_index=NO_LABEL, label_smoothing=smoothing, reduction="none"
    )


def _wide(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
