"""Losses between attentions, rebuilt from query and key vectors. Shapes: B sequences, L tokens with padding, A heads."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_NEVER = -1e30
"""Score of a key that a query cannot see; finite, so that no gradient becomes NaN."""


def attention_scores(query: Tensor, *, key: Tensor, num_heads: int, num_key_value_heads: int) -> Tensor:
    """Return [B, A, L, L], q.k / sqrt(d) of every head, before mask and softmax; float32 or wider.

    Args:
        query: [B, L, A * d], heads side by side.
        key: [B, L, A' * d]; each key head serves A / A' query heads.
        num_heads: A.
        num_key_value_heads: A'.
    """
    queries, keys = _heads(query, num_heads=num_heads), _heads(key, num_heads=num_key_value_heads)
    if num_key_value_heads < num_heads:
        keys = keys.repeat_interleave(num_heads // num_key_value_heads, dim=1)
    return queries @ keys.transpose(2, 3) / math.sqrt(queries.shape[3])


def visible_keys(attention_mask: Tensor, *, causal: bool) -> Tensor:
    """Return bool [B, 1, 1 or L, L], which keys each query sees.

    Args:
        attention_mask: bool [B, L], False where there is padding.
        causal: whether a query sees no later keys.
    """
    visible = attention_mask[:, None, None, :]
    if not causal:
        return visible
    length = attention_mask.shape[1]
    return visible & torch.ones(length, length, dtype=torch.bool, device=attention_mask.device).tril()


def score_mse(student_scores: Tensor, *, teacher_scores: Tensor, visible: Tensor) -> Tensor:
    """Mean over heads and visible keys of (s - t)^2, of every query. Keys that cannot be seen count nothing, as in TinyBERT.

    Args:
        student_scores: s [B, A, L, L], before mask and softmax.
        teacher_scores: t [B, A, L, L]; no gradient flows to them.
        visible: as `visible_keys` gives it; every query sees some key.

    Returns:
        [B, L]; rows of padding queries mean nothing.

    References:
        Jiao et al., TinyBERT: Distilling BERT for Natural Language Understanding, https://arxiv.org/abs/1909.10351
    """
    squares = (student_scores - teacher_scores.detach()).square().masked_fill(~visible, 0.0)
    return squares.sum(dim=(1, 3)) / (squares.shape[1] * visible.sum(dim=3)[:, 0])


def map_kl(student_scores: Tensor, *, teacher_scores: Tensor, visible: Tensor) -> Tensor:
    """Mean over heads of KL(softmax(t) || softmax(s)) over visible keys, of every query, in nats.

    MiniALBERT divides by the number of keys too.

    Args:
        student_scores: s [B, A, L, L], before mask and softmax.
        teacher_scores: t [B, A, L, L]; no gradient flows to them.
        visible: as `visible_keys` gives it.

    Returns:
        [B, L]; rows of padding queries mean nothing.

    References:
        Nouriborji et al., MiniALBERT: Model Distillation via Parameter-Efficient Recursive Transformers,
        https://arxiv.org/abs/2210.06425
    """
    log_q = student_scores.masked_fill(~visible, _NEVER).log_softmax(dim=3)
    log_p = teacher_scores.detach().masked_fill(~visible, _NEVER).log_softmax(dim=3)
    return (log_p.exp() * (log_p - log_q)).sum(dim=3).mean(dim=1)


def _heads(vectors: Tensor, *, num_heads: int) -> Tensor:
    """Return [B, A, L, d] of [B, L, A * d], float32 or wider."""
    wide = vectors.float() if vectors.dtype in (torch.float16, torch.bfloat16) else vectors
    return wide.reshape(*wide.shape[:2], num_heads, -1).transpose(1, 2)
