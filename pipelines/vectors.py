"""Vectors of a batch of samples, taken from what a teacher gave: hidden states, attention, relations, embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

import numpy as np
import numpy.typing as npt
import torch

from pipelines.teachers.outputs import RawOutputs, VectorOutputs, Wanted
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
_CHUNK_VALUES = 1 << 24
"""Dot products made at a time: 64 MB."""


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
        # NaN stays NaN; and nothing as large as the rows is made beside them.
        largest = torch.linalg.vector_norm(values, ord=torch.inf, dim=1)
        storable &= ((largest <= limit) & largest.isfinite()).cpu().numpy()
    return rows, storable


def num_tokens_of(raw: RawOutputs) -> int:
    """Return the tokens of every picture of a batch; 1 where nothing of each token was asked for."""
    if raw.hidden:
        return int(raw.hidden[0].shape[1])
    if raw.attention:
        return int(next(iter(raw.attention.values())).query.shape[2])
    return 1


def extract_picture_vectors(
    outputs: VectorOutputs, *, target: FeaturesSpec, num_pictures: int, device: torch.device
) -> tuple[FeatureRows, npt.NDArray[np.bool_]]:
    """Return the rows of a batch's first pictures, picture by picture, and bool [pictures], whether each can be stored."""
    there = torch.ones((num_pictures, num_tokens_of(outputs.raw)), dtype=torch.bool, device=device)
    rows, storable = extract_vectors(outputs, target=target, there=there)
    return rows, np.asarray(storable.reshape(num_pictures, -1).all(axis=1), dtype=np.bool_)


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
    num_samples, num_tokens, _ = vectors.shape
    heads = vectors.unflatten(2, (num_heads, -1)).transpose(1, 2)
    lower = torch.ones((num_tokens, num_tokens), dtype=torch.bool, device=vectors.device).tril()
    lengths = there.sum(dim=1)
    num_pairs = int((lengths * (lengths + 1) // 2).sum())
    found = torch.empty((num_pairs, num_heads), dtype=vectors.dtype, device=vectors.device)
    # All products of a batch at once are several times what is kept of them.
    step = max(1, _CHUNK_VALUES // (num_heads * num_tokens**2))
    filled = 0
    for first in range(0, num_samples, step):
        some, here = heads[first : first + step], there[first : first + step]
        products = (some @ some.transpose(2, 3)).div_(heads.shape[-1] ** 0.5)
        rows = products.permute(0, 2, 3, 1)[here[:, :, None] & here[:, None, :] & lower]
        found[filled : filled + len(rows)] = rows
        filled += len(rows)
    return found
