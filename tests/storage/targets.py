"""Targets of every kind, rows of them, and sequences to go with them, drawn at random."""

from __future__ import annotations

import numpy as np

from storage.codecs import DrawnLabels
from storage.codecs.sampled import num_shares
from storage.features import FeatureRows
from storage.specs import (
    AttentionSpec,
    CompactCodec,
    DenseCodec,
    EmbeddingsSpec,
    ExactCodec,
    Float16Codec,
    HiddenStatesSpec,
    Int8Codec,
    RelationsSpec,
    SampledCodec,
    SoftLabelsSpec,
    ThresholdCodec,
)
from storage.text.token_rows import MaskRows, TokenRows, offsets_of
from tests.storage.drawn import make_drawn
from tests.storage.rows import make_rows

VOCABULARY = 300


def soft_labels(codec, positions="view", *, k=None):
    return SoftLabelsSpec(num_classes=40, k=k, codec=codec, positions=positions)


TARGETS = {
    "labels of a view": soft_labels(CompactCodec(), k=3),
    "labels of masked tokens": soft_labels(ExactCodec(), "masked", k=3),
    "labels of all tokens": soft_labels(CompactCodec(levels=31), "all"),
    "labels of next tokens, sampled": soft_labels(SampledCodec(draws=9), "next"),
    "labels of next tokens, by threshold": soft_labels(ThresholdCodec(levels=7), "next"),
    "labels of next tokens, dense": soft_labels(DenseCodec(), "next"),
    "hidden states": HiddenStatesSpec(layers=(0, 2), tokens="all", width=6, codec=Int8Codec()),
    "hidden states of first tokens": HiddenStatesSpec(
        layers=(2,), tokens="first", width=6, codec=Float16Codec(), head_sha256="a0" * 32
    ),
    "hidden states, mean": HiddenStatesSpec(layers=(1,), tokens="mean", width=9, codec=Int8Codec(group=8)),
    "attention": AttentionSpec(
        layers=(1, 2),
        vectors=("query", "key"),
        num_heads=4,
        num_key_value_heads=2,
        head_width=3,
        causal=True,
        codec=Int8Codec(),
    ),
    "relations": RelationsSpec(layer=2, vectors=("value",), num_relation_heads=3, codec=Float16Codec()),
    "embeddings": EmbeddingsSpec(width=5, codec=Float16Codec()),
}
OF_PICTURES = ("hidden states", "hidden states, mean", "attention", "relations", "embeddings")
"""Those that pictures have, too; their soft labels have a block of their own."""


def make_values(target, *, num_rows, seed=0):
    """Rows as a teacher gives them."""
    rng = np.random.default_rng(seed)
    if not isinstance(target, SoftLabelsSpec):
        return FeatureRows(
            tensors={name: rng.normal(size=(num_rows, width)).astype(np.float32) for name, width in target.tensors.items()}
        )
    if isinstance(target.codec, SampledCodec | ThresholdCodec):
        shares = num_shares(target.codec)
        return make_drawn(rng, num_rows=num_rows, num_classes=target.num_classes, shares=shares, shape="peaked")
    return make_rows(rng, num_rows=num_rows, num_classes=target.num_classes, entries=target.max_entries, shape="peaked")


def take_values(values, rows):
    """Some rows of what `make_values` gives."""
    if isinstance(values, FeatureRows | DrawnLabels):
        return values.take(rows)
    return type(values)(class_ids=values.class_ids[rows], log_probs=values.log_probs[rows], log_rest=values.log_rest[rows])


def make_tokens(lengths, *, masked=True, vocabulary_size=VOCABULARY, seed=0):
    """Sequences of given lengths; where masked, about a third of their tokens, of some none."""
    rng = np.random.default_rng(seed)
    offsets = offsets_of(np.asarray(lengths, dtype=np.int64))
    token_ids = rng.integers(0, vocabulary_size, size=offsets[-1]).astype(np.uint32)
    if not masked:
        return TokenRows(offsets=offsets, token_ids=token_ids)
    chosen = [np.flatnonzero(rng.random(length) < 1 / 3) for length in lengths]
    positions = np.concatenate([*chosen, np.zeros(0, dtype=np.int64)]).astype(np.int64)
    masks = MaskRows(
        offsets=offsets_of(np.array([len(some) for some in chosen], dtype=np.int64)),
        positions=positions,
        input_ids=rng.integers(0, vocabulary_size, size=len(positions)).astype(np.uint32),
    )
    return TokenRows(offsets=offsets, token_ids=token_ids, masks=masks)


def tokens_as_lists(tokens):
    """Sequences as (ids, positions of masked ones, inputs there), one by one."""
    found = []
    for index in range(len(tokens)):
        ids = tokens.token_ids[tokens.offsets[index] : tokens.offsets[index + 1]].tolist()
        if tokens.masks is None:
            found.append((ids, [], []))
            continue
        bounds = slice(tokens.masks.offsets[index], tokens.masks.offsets[index + 1])
        found.append((ids, tokens.masks.positions[bounds].tolist(), tokens.masks.input_ids[bounds].tolist()))
    return found
