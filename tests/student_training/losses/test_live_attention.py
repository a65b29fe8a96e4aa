"""Scores and relations from stored vectors are those of the model's own attention, run beside it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from pipelines.teachers.attention_capture import install, recorded
from storage.codecs import features
from storage.features import FeatureRows
from storage.specs import AttentionSpec, Float16Codec, Int8Codec, RelationsSpec
from student_training.losses.attention import attention_scores, visible_keys
from student_training.losses.relations import relation_scores, symmetric_scores

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48, "vocab_size": 60, "initializer_range": 0.2}
LENGTHS = (5, 9, 1, 12)
MODELS = {
    "BertModel": ({**SIZES, "num_attention_heads": 4}, 4, False),
    "LlamaModel": ({**SIZES, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32}, 2, True),
}
CODECS = {"float16": (Float16Codec(), 1e-3), "int8": (Int8Codec(group=8), 2e-2)}


def live(name):
    """Lengths, and of layer 2: vectors [tokens, width] of every sequence end to end, and eager attention maps [B, A, L, L]."""
    settings, _, _ = MODELS[name]
    torch.manual_seed(0)
    model_class = getattr(transformers, name)
    model = model_class._from_config(model_class.config_class(**settings), attn_implementation="eager").eval()
    lengths = torch.tensor(LENGTHS)
    mask = torch.arange(max(LENGTHS)) < lengths[:, None]
    input_ids = torch.randint(60, mask.shape)
    with torch.inference_mode():
        maps = model(input_ids, attention_mask=mask.long(), output_attentions=True).attentions[1]
        model.set_attn_implementation("sdpa")
        assert install(model, name=name)
        with recorded({2}) as found:
            model(input_ids, attention_mask=mask.long())
    vectors = {f"{kind}.2": found[2].vectors(kind)[mask].numpy() for kind in ("query", "key", "value")}
    assert found[2].causal == MODELS[name][2]
    return mask, vectors, maps


def stored(vectors, spec):
    rows = FeatureRows(tensors=vectors)
    return features.decode(features.encode(rows, spec=spec), num_rows=len(rows), spec=spec).tensors


def padded(values, mask):
    filled = torch.zeros(*mask.shape, values.shape[1])
    filled[mask] = torch.from_numpy(values.astype(np.float32))
    return filled


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("name", MODELS)
def test_maps_are_those_of_eager_attention(name, codec):
    _, num_key_value_heads, causal = MODELS[name]
    mask, vectors, maps = live(name)
    spec = AttentionSpec(
        layers=(2,),
        vectors=("query", "key", "value"),
        num_heads=4,
        num_key_value_heads=num_key_value_heads,
        head_width=8,
        causal=causal,
        codec=CODECS[codec][0],
    )
    found = stored(vectors, spec)
    scores = attention_scores(
        padded(found["query.2"], mask), key=padded(found["key.2"], mask), num_heads=4, num_key_value_heads=num_key_value_heads
    )
    rebuilt = scores.masked_fill(~visible_keys(mask, causal=causal), -torch.inf).softmax(dim=3)
    queries = mask[:, None, :].expand(-1, 4, -1)
    assert maps[queries].max() > 0.9
    assert (rebuilt[queries] - maps[queries]).abs().max() < CODECS[codec][1]


@pytest.mark.parametrize("num_relation_heads", [1, 4, 8])
def test_stored_relations_are_those_of_the_vectors(num_relation_heads):
    mask, vectors, _ = live("BertModel")
    wanted = relation_scores(padded(vectors["value.2"], mask), num_relation_heads=num_relation_heads)
    pairs, sequence, position = [], [], []
    for index, length in enumerate(LENGTHS):
        for token in range(length):
            pairs.append(wanted[index, :, token, : token + 1].T)
            sequence += [index] * (token + 1)
            position += [token] * (token + 1)
    spec = RelationsSpec(layer=2, vectors=("value",), num_relation_heads=num_relation_heads, codec=Float16Codec())
    found = stored({"value_relations.2": torch.cat(pairs).numpy()}, spec)["value_relations.2"]
    assert len(found) == sum(length * (length + 1) // 2 for length in LENGTHS)
    rebuilt = symmetric_scores(
        torch.from_numpy(found),
        sequence=torch.tensor(sequence),
        position=torch.tensor(position),
        num_sequences=len(LENGTHS),
        num_tokens=max(LENGTHS),
    )
    seen = (mask[:, :, None] & mask[:, None, :])[:, None].expand_as(wanted)
    assert (rebuilt - wanted)[seen].abs().max() < 1e-3 * wanted.abs().max()
    assert (rebuilt[~seen] == 0).all()
