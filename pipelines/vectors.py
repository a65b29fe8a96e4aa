"""Vectors of a batch of samples, taken from what a teacher gave: hidden states, attention, relations, embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

import numpy as np
import numpy.typing as npt
import torch

from pipelines.teachers.outputs import VectorOutputs, Wanted
from storage.features import FeatureRows
from storage.specs import (
    AttentionSpec,
    EmbeddingsSpec,
    FeaturesSpec,
    Float16Codec,
    HiddenStatesSpec,
    RelationsSpec,
    SoftLabelsSpec,
    TargetSpec,
)

_FLOAT16_MAX = 65504.0


def wanted_of(targets: Sequence[TargetSpec]) -> Wanted:
    """Return what a forward pass must give for some targets."""
    attention: set[int] = set()
    for target in targets:
        if isinstance(target, AttentionSpec):
            attention |= set(target.layers)
        if isinstance(target, RelationsSpec):
            attention.add(target.layer)
    return Wanted(
        labels=any(isinstance(target, SoftLabelsSpec) for target in targets),
        hidden=any(isinstance(target, HiddenStatesSpec) for target in targets),
        attention_layers=frozenset(attention),
        embedding=any(isinstance(target, EmbeddingsSpec) for target in targets),
    )


@torch.inference_mode()
def extract_vectors(
    outputs: VectorOutputs, *, target: FeaturesSpec, there: torch.Tensor
) -> tuple[FeatureRows, npt.NDArray[np.bool_]]:
    """Return the rows of some samples, sample by sample, and bool [rows], whether the target's codec can store each.

    Args:
        there: bool [samples, tokens], of the batch's first samples, False where a sample is padded.
    """
    num = len(there)
    tensors: dict[str, torch.Tensor] = {}
    match target:
        case HiddenStatesSpec():
            for layer in target.layers:
                tensors[f"hidden.{layer}"] = _of_tokens(outputs.hidden(layer)[:num], there=there, tokens=target.tokens)
        case AttentionSpec():
            for layer in target.layers:
                for name in target.vectors:
                    tensors[f"{name}.{layer}"] = outputs.attention(layer).vectors(name)[:num][there]
        case RelationsSpec():
            for name in target.vectors:
                vectors = outputs.attention(target.layer).vectors(name)[:num]
                found = relations(vectors, there=there, num_heads=target.num_relation_heads)
                tensors[f"{name}_relations.{target.layer}"] = found
        case EmbeddingsSpec():
            tensors["embedding"] = outputs.embedding()[:num]
        case _:
            assert_never(target)
    limit = _FLOAT16_MAX if isinstance(target.codec, Float16Codec) else torch.inf
    rows = FeatureRows(tensors={name: values.cpu().numpy() for name, values in tensors.items()})
    storable = np.ones(len(rows), dtype=np.bool_)
    for values in tensors.values():
        storable &= ((values.abs() <= limit) & values.isfinite()).all(dim=1).cpu().numpy()
    return rows, storable


def _of_tokens(hidden: torch.Tensor, *, there: torch.Tensor, tokens: str) -> torch.Tensor:
    if tokens == "all":
        return hidden[there]
    if tokens == "first":
        return hidden[:, 0]
    # Padding may hold anything, NaN too, which times 0 is no 0.
    return torch.where(there[:, :, None], hidden, 0.0).sum(dim=1) / there.sum(dim=1, keepdim=True)


def relations(vectors: torch.Tensor, *, there: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Return float32 [pairs, heads], scaled dot products of a sample's tokens, row by row of the lower triangle.

    Args:
        vectors: float32 [samples, tokens, width], of all heads end to end; they are cut anew into `num_heads`.
        there: bool [samples, tokens].
    """
    heads = vectors.unflatten(2, (num_heads, -1)).transpose(1, 2)
    products = heads @ heads.transpose(2, 3) / heads.shape[-1] ** 0.5
    pairs = there[:, :, None] & there[:, None, :]
    lower = torch.ones(pairs.shape[1:], dtype=torch.bool, device=pairs.device).tril()
    return products.permute(0, 2, 3, 1)[pairs & lower]
