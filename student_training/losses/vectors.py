"""Losses between rows of vectors: hidden states, embeddings."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def mse_rows(student: Tensor, *, teacher: Tensor) -> Tensor:
    """Mean over channels of (s - t)^2.

    Args:
        student: s [R, W].
        teacher: t [R, W]; no gradient flows to it.

    Returns:
        [R], float32 or wider.

    References:
        Jiao et al., TinyBERT: Distilling BERT for Natural Language Understanding, https://arxiv.org/abs/1909.10351
    """
    return (_wide(student) - _wide(teacher.detach())).square().mean(dim=1)


def mae_rows(student: Tensor, *, teacher: Tensor) -> Tensor:
    """Mean over channels of |s - t|; arguments as of `mse_rows`."""
    return (_wide(student) - _wide(teacher.detach())).abs().mean(dim=1)


def cosine_rows(student: Tensor, *, teacher: Tensor) -> Tensor:
    """1 - s.t / (|s| |t|); arguments as of `mse_rows`. A row of zeros has cosine 0.

    References:
        Sanh et al., DistilBERT, a distilled version of BERT, https://arxiv.org/abs/1910.01108
    """
    return 1 - torch.nn.functional.cosine_similarity(_wide(student), _wide(teacher.detach()), dim=1)


VECTOR_LOSSES: dict[str, Callable[..., Tensor]] = {"mse": mse_rows, "mae": mae_rows, "cosine": cosine_rows}


def _wide(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
