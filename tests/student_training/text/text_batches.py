"""Batches of token sequences with random targets of any kind, and tiny students to read them."""

from __future__ import annotations

import json

import numpy as np
import torch
from pydantic import TypeAdapter

from storage.config.students import AnyStudentConfig
from storage.config.terms import TermConfig
from storage.sources.base import NO_LABEL
from storage.specs import (
    AttentionSpec,
    EmbeddingsSpec,
    ExactCodec,
    Float16Codec,
    HiddenStatesSpec,
    MaskedTokensView,
    RelationsSpec,
    SampledCodec,
    SoftLabelsSpec,
    TokensView,
)
from student_training.objective import SparseTargets
from student_training.terms.interface import FeatureTargets, TargetRows
from student_training.text.interface import TextBatch
from student_training.text.students import create_text_student

VOCABULARY = 40
CLASSES = 3
MAX_TOKENS = 16
TOKENS = TokensView(
    tokenizer_sha256="0" * 64, vocabulary_size=VOCABULARY, layout="truncate", length=MAX_TOKENS, special_tokens=True
)
MASKED = MaskedTokensView(
    tokenizer_sha256="0" * 64,
    vocabulary_size=VOCABULARY,
    layout="truncate",
    length=MAX_TOKENS,
    special_tokens=True,
    mask_token_id=4,
)
BERT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": MAX_TOKENS,
}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": MAX_TOKENS, "bos_token_id": 0, "eos_token_id": 0}
STUDENTS = {
    "bert": {"architecture": "bert", "config": BERT},
    "distilbert": {"architecture": "distilbert", "config": {**BERT, "hidden_dim": 24}},
    "albert": {"architecture": "albert", "config": {**BERT, "embedding_size": 8}},
    "roberta": {"architecture": "roberta", "config": {**BERT, "max_position_embeddings": MAX_TOKENS + 2}},
    "gpt2": {"architecture": "gpt2", "config": GPT2},
    "llama": {"architecture": "llama", "config": {**BERT, "num_key_value_heads": 1, "bos_token_id": 0, "eos_token_id": 0}},
}
SOFT = {"k": 4, "codec": ExactCodec()}
SPECS = {
    "classes": SoftLabelsSpec(num_classes=CLASSES, k=2, codec=ExactCodec()),
    "masked": SoftLabelsSpec(num_classes=VOCABULARY, positions="masked", **SOFT),
    "all": SoftLabelsSpec(num_classes=VOCABULARY, positions="all", **SOFT),
    "next": SoftLabelsSpec(num_classes=VOCABULARY, positions="next", **SOFT),
    "drawn": SoftLabelsSpec(num_classes=VOCABULARY, k=None, codec=SampledCodec(draws=5), positions="next"),
    "hidden": HiddenStatesSpec(layers=(0, 2, 4), tokens="all", width=20, codec=Float16Codec()),
    "first": HiddenStatesSpec(layers=(4,), tokens="first", width=20, codec=Float16Codec()),
    "mean": HiddenStatesSpec(layers=(4,), tokens="mean", width=20, codec=Float16Codec()),
    "attention": AttentionSpec(
        layers=(2, 4),
        vectors=("query", "key", "value"),
        num_heads=2,
        num_key_value_heads=2,
        head_width=12,
        causal=False,
        codec=Float16Codec(),
    ),
    "relations": RelationsSpec(layer=4, vectors=("query", "value"), num_relation_heads=4, codec=Float16Codec()),
    "embeddings": EmbeddingsSpec(width=10, codec=Float16Codec()),
}


def student_config(name, *, head="masked_lm", **fields):
    data = {"kind": "transformers", "head": head, **STUDENTS.get(name, {}), **fields}
    if name in STUDENTS and "config" in fields:
        data["config"] = {**STUDENTS[name]["config"], **fields["config"]}
    return parse_student(data)


def parse_student(data):
    return TypeAdapter(AnyStudentConfig).validate_json(json.dumps(data))


def make_student(name, *, head="masked_lm", seed=0, **fields):
    torch.manual_seed(seed)
    config = student_config(name, head=head, **fields)
    return create_text_student(
        config,
        num_classes=CLASSES if head == "sequence_classifier" else VOCABULARY,
        vocabulary_size=VOCABULARY,
        max_tokens=MAX_TOKENS,
    )


def make_terms(*terms):
    return TypeAdapter(tuple[TermConfig, ...]).validate_json(json.dumps(terms))


def make_batch(lengths, *, specs=(), seed=0, padded_to=None, masks=True) -> TextBatch:
    """Return sequences of these lengths; what is random depends on the sequences, not on the padding."""
    rng = np.random.default_rng(seed)
    size = padded_to or max(lengths)
    token_ids = np.zeros((len(lengths), size), dtype=np.int64)
    masked = np.zeros((len(lengths), size), dtype=bool)
    for row, length in enumerate(lengths):
        token_ids[row, :length] = rng.integers(5, VOCABULARY, length)
        masked[row, rng.choice(length, size=max(1, length // 3), replace=False)] = True
    attention_mask = np.arange(size) < np.array(lengths)[:, None]
    inputs = np.where(masked & masks, 4, token_ids)
    return TextBatch(
        step=0,
        keys=[f"document{row}" for row in range(len(lengths))],
        input_ids=torch.tensor(inputs),
        token_ids=torch.tensor(token_ids),
        attention_mask=torch.tensor(attention_mask),
        masked=torch.tensor(masked) if masks else None,
        labels=torch.tensor([row % CLASSES if row else NO_LABEL for row in range(len(lengths))]),
        targets={name: make_rows(name, lengths=lengths, masked=masked, rng=rng) for name in specs},
    )


def make_rows(name, *, lengths, masked, rng) -> TargetRows:
    spec = SPECS[name]
    if isinstance(spec, SoftLabelsSpec):
        positions = {"view": [[0]] * len(lengths), "masked": [np.flatnonzero(row) for row in masked]}
        positions["all"] = [np.arange(length) for length in lengths]
        positions["next"] = [np.arange(length - 1) for length in lengths]
        chosen = positions[spec.positions]
    elif isinstance(spec, RelationsSpec):
        chosen = [np.repeat(np.arange(length), np.arange(length) + 1) for length in lengths]
    else:
        chosen = [np.arange(length if spec.per_token else 1) for length in lengths]
    sequence = torch.tensor(np.repeat(np.arange(len(lengths)), [len(rows) for rows in chosen]))
    position = torch.tensor(np.concatenate([np.asarray(rows, dtype=np.int64) for rows in chosen]))
    if isinstance(spec, SoftLabelsSpec):
        labels = random_labels(len(sequence), num_classes=spec.num_classes, k=spec.max_entries, rng=rng, drawn=spec.k is None)
        return TargetRows(spec=spec, sequence=sequence, position=position, soft_labels=labels)
    tensors = {
        tensor: torch.tensor(rng.normal(size=(len(sequence), width)), dtype=torch.float32)
        for tensor, width in spec.tensors.items()
    }
    return TargetRows(spec=spec, sequence=sequence, position=position, features=FeatureTargets(tensors=tensors))


def random_labels(rows, *, num_classes, k, rng, drawn=False) -> SparseTargets:
    dense = torch.tensor(rng.normal(scale=2, size=(rows, num_classes)), dtype=torch.float32).softmax(dim=1)
    if drawn:
        class_ids = torch.tensor(rng.integers(0, num_classes, size=(rows, k)))
        return SparseTargets(class_ids=class_ids, probs=torch.full((rows, k), 1 / k), rest=torch.zeros(rows))
    probs, class_ids = dense.topk(min(k, num_classes), dim=1)
    return SparseTargets(class_ids=class_ids.int(), probs=probs, rest=1 - probs.sum(dim=1))
