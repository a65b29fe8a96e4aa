"""Relations between the tokens of a sequence: how much its query, key or value vectors resemble each other (MiniLM)."""

from __future__ import annotations

import torch
from torch import Tensor

from student_training.losses.attention import attention_scores, map_kl, visible_keys


def relation_scores(vectors: Tensor, *, num_relation_heads: int) -> Tensor:
    """Return [B, R, L, L], a.a' / sqrt(d) of vectors cut into R relation heads of d channels, whatever heads they came from.

    Args:
        vectors: [B, L, R * d], of one kind: queries, keys or values.
        num_relation_heads: R.
    """
    return attention_scores(vectors, key=vectors, num_heads=num_relation_heads, num_key_value_heads=num_relation_heads)


def symmetric_scores(pairs: Tensor, *, sequence: Tensor, position: Tensor, num_sequences: int, num_tokens: int) -> Tensor:
    """Return [B, R, L, L] of relations stored as the lower triangle of each sequence, row by row; 0 at padding.

    Args:
        pairs: [P, R], a row a pair of tokens.
        sequence: int64 [P], ascending.
        position: int64 [P], the later token of each pair.
        num_sequences: B.
        num_tokens: L.
    """
    sizes = torch.bincount(sequence, minlength=num_sequences)
    inside = torch.arange(len(sequence), device=pairs.device) - (sizes.cumsum(0) - sizes)[sequence]
    other = inside - position * (position + 1) // 2
    scores = pairs.new_zeros(num_sequences, num_tokens, num_tokens, pairs.shape[1])
    scores[sequence, position, other] = pairs
    scores[sequence, other, position] = pairs
    return scores.permute(0, 3, 1, 2).float()


def relation_kl(student_scores: Tensor, *, teacher_scores: Tensor, attention_mask: Tensor) -> Tensor:
    """Mean over relation heads of KL(softmax(t) || softmax(s)) over the tokens of the sequence, of every token, in nats.

    Args:
        student_scores: s [B, R, L, L].
        teacher_scores: t [B, R, L, L]; no gradient flows to them.
        attention_mask: bool [B, L].

    Returns:
        [B, L]; rows of padding mean nothing.

    References:
        Wang et al., MiniLMv2: Multi-Head Self-Attention Relation Distillation, https://arxiv.org/abs/2012.15828
    """
    return map_kl(student_scores, teacher_scores=teacher_scores, visible=visible_keys(attention_mask, causal=False))
