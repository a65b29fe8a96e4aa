"""Vectors of every kind are those of a live forward pass; several targets come from one pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from storage.errors import ConfigError, SourceError
from tests.pipelines.text.labels import MASKS, TOKENS, Bench, forward
from tests.pipelines.text.models import documents, save_model

TEXTS = documents(9)
FLOAT16 = {"kind": "float16"}
TARGETS = {
    "labels": {"kind": "soft_labels", "k": 4},
    "hidden": {"kind": "hidden_states", "layers": [0, 2], "codec": FLOAT16},
    "first": {"kind": "hidden_states", "layers": [1], "tokens": "first", "codec": FLOAT16},
    "mean": {"kind": "hidden_states", "layers": [2], "tokens": "mean", "codec": FLOAT16},
    "attention": {"kind": "attention", "layers": [1, 2], "codec": FLOAT16},
    "relations": {"kind": "relations", "layer": 2, "vectors": ["query", "value"], "num_relation_heads": 2},
    "embedding": {"kind": "embeddings"},
}


def close(stored, live):
    live = live.double().numpy()
    assert stored.shape == live.shape
    assert np.abs(stored.astype(np.float64) - live).max() <= 2e-3 * max(1.0, np.abs(live).max())


def projections(module, name, ids):
    """What the projections of the last layer give, by hooks on the modules of BERT and GPT-2."""
    found = {}
    hooks = []
    for key, layer in module.named_modules():
        if key.endswith(name):
            hooks.append(layer.register_forward_hook(lambda _m, _i, out, key=key: found.__setitem__(key, out[0])))
    forward(module, ids)
    for hook in hooks:
        hook.remove()
    return [found[key] for key in sorted(found)]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return Bench(save_model(tmp_path_factory.mktemp("bert"), "bert"), kind="masked_lm", texts=TEXTS, views=MASKS, targets=TARGETS)


@pytest.fixture(scope="module")
def labelled(bert):
    return bert.label()


def test_all_targets_of_a_unit_cover_the_same_samples_in_the_same_blocks(labelled):
    keys = {name: [(block.first_sample, block.key_hash) for block in part.blocks] for name, part in labelled.items()}
    assert len({str(found) for found in keys.values()}) == 1
    tokens = {name: np.concatenate([block.tokens.inputs() for block in part.blocks]).tobytes() for name, part in labelled.items()}
    assert len(set(tokens.values())) == 1


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_one_pass_for_all_gives_the_bytes_of_a_pass_for_one(bert, labelled, name):
    assert bert.label(only={name})[name].data == labelled[name].data


def test_hidden_states_are_those_of_the_layers_asked_for(bert, labelled):
    live = bert.live()
    for name, of in (("hidden", [0, 2]), ("first", [1]), ("mean", [2])):
        for _, ids, _, values in labelled[name].sequences():
            hidden = forward(live, ids, output_hidden_states=True).hidden_states
            for layer in of:
                expected = hidden[layer][0]
                expected = {"hidden": expected, "first": expected[:1], "mean": expected.mean(dim=0, keepdim=True)}[name]
                close(values.tensors[f"hidden.{layer}"], expected)


def test_attention_vectors_are_what_the_projections_give(bert, labelled):
    live = bert.live()
    for _, ids, _, values in labelled["attention"].sequences():
        for vector in ("query", "key", "value"):
            for layer, expected in enumerate(projections(live, f"attention.self.{vector}", ids), start=1):
                close(values.tensors[f"{vector}.{layer}"], expected)


def test_relations_are_scaled_products_of_every_pair(bert, labelled):
    live = bert.live()
    for _, ids, _, values in labelled["relations"].sequences():
        for vector in ("query", "value"):
            of = projections(live, f"attention.self.{vector}", ids)[1].reshape(len(ids), 2, 16)
            expected = torch.stack([of[i].mul(of[j]).sum(dim=1) / 4 for i in range(len(ids)) for j in range(i + 1)])
            close(values.tensors[f"{vector}_relations.2"], expected)


def test_the_embedding_of_a_language_model_is_the_mean_of_its_last_states(labelled):
    means = {key: values.tensors["hidden.2"] for key, _, _, values in labelled["mean"].sequences()}
    for key, _, _, values in labelled["embedding"].sequences():
        np.testing.assert_array_equal(values.tensors["embedding"], means[key])


def test_scores_of_a_causal_model_with_rotary_positions_are_rebuilt_from_its_vectors(tmp_path):
    attention = {"kind": "attention", "layers": [2], "codec": FLOAT16}
    bench = Bench(save_model(tmp_path, "llama"), kind="causal_lm", texts=TEXTS, views=TOKENS, targets={"attention": attention})
    live = bench.live()
    spec = bench.requests["attention"].target
    assert (spec.num_heads, spec.num_key_value_heads, spec.head_width, spec.causal) == (4, 2, 8, True)
    for _, ids, _, values in bench.label()["attention"].sequences():
        heads = {
            name: torch.from_numpy(values.tensors[f"{name}.2"].astype(np.float64)).reshape(len(ids), -1, 8).transpose(0, 1)
            for name in ("query", "key")
        }
        scores = heads["query"] @ heads["key"].repeat_interleave(2, dim=0).transpose(1, 2) / 8**0.5
        scores = scores.masked_fill(torch.ones(len(ids), len(ids)).triu(1).bool(), -torch.inf)
        expected = forward(live, ids, output_attentions=True).attentions[1][0]
        assert (scores.softmax(dim=2) - expected).abs().max() < 5e-3


@pytest.mark.parametrize("kind", ["bert_classifier", "llama_classifier"])
def test_a_classifier_gives_one_row_a_sequence_and_what_its_head_reads(tmp_path, kind):
    targets = {"labels": {"kind": "soft_labels", "k": 3, "codec": {"kind": "exact"}}, "embedding": {"kind": "embeddings"}}
    labels = [i % 3 for i in range(len(TEXTS))]
    bench = Bench(
        save_model(tmp_path, kind), kind="sequence_classifier", texts=TEXTS, views=TOKENS, targets=targets, labels=labels
    )
    live = bench.live()
    parts = bench.label()
    head = live.classifier if kind == "bert_classifier" else live.score
    embeddings = {key: values.tensors["embedding"] for key, _, _, values in parts["embedding"].sequences()}
    for key, ids, _, values in parts["labels"].sequences():
        logits = forward(live, ids).logits
        close(values.densify(), logits.softmax(dim=1))
        close(head(torch.from_numpy(embeddings[key].astype(np.float32))).detach().numpy(), logits)
    statistics = parts["labels"].record.statistics
    assert (statistics.num_rows, statistics.num_positions, statistics.num_labelled_rows) == (len(TEXTS), 0, len(TEXTS))


def test_targets_that_no_block_holds_are_refused_before_work_with_their_keys(tmp_path, monkeypatch):
    folder = save_model(tmp_path / "bert", "bert")
    targets = {"labels": {"codec": {"kind": "dense"}, "positions": "all"}}
    options = {"kind": "masked_lm", "texts": ["ka"], "views": TOKENS}
    num_classes = Bench(folder, **options, targets=targets).requests["labels"].soft_labels.num_classes
    monkeypatch.setattr("storage.block_limits.MAX_VALUES", 8000 * num_classes - 1)
    with pytest.raises(ConfigError, match=r"^targets\.labels\.codec\.kind: dense keeps .* each of up to 8,000 rows of a block"):
        Bench(folder, **options, targets=targets)
    monkeypatch.setattr("storage.block_limits.MAX_STREAM_BYTES", 8000)
    with pytest.raises(ConfigError, match=r"^targets\.states\.kind: hidden_states of .* lower views\.length"):
        Bench(folder, **options, targets={"states": {"kind": "hidden_states", "layers": [1]}})


def test_a_head_of_every_token_is_refused_with_the_first_ones_alone(tmp_path):
    options = {"texts": ["ka"], "views": TOKENS}

    def head_of(kind, *, tokens):
        folder = save_model(tmp_path / kind, "bert" if kind == "masked_lm" else "bert_classifier")
        targets = {"states": {"kind": "hidden_states", "layers": [2], "tokens": tokens, "head": True}}
        return Bench(folder, kind=kind, **options, targets=targets).requests["states"].target.head_sha256

    with pytest.raises(ConfigError, match=r"^targets\.states\.head: true, but the head of .* reads every token, .* tokens: all"):
        head_of("masked_lm", tokens="first")
    assert head_of("masked_lm", tokens="all") is not None
    assert head_of("sequence_classifier", tokens="first") is not None


def test_a_head_that_cannot_be_stored_is_refused_with_its_reason(tmp_path, monkeypatch):
    folder = save_model(tmp_path / "bert", "bert")
    targets = {"states": {"kind": "hidden_states", "layers": [2], "head": True}}
    monkeypatch.setattr("pipelines.teachers.heads.MAX_HEAD_VALUES", 100)
    with pytest.raises(ConfigError, match=r"^targets\.states\.head: true, but .* numbers, and one of at most 100 can be stored"):
        Bench(folder, kind="masked_lm", texts=["ka"], views=TOKENS, targets=targets)


def test_a_unit_that_becomes_more_sequences_than_a_part_holds_is_refused_before_the_teacher_runs(tmp_path, monkeypatch):
    folder = save_model(tmp_path / "bert", "bert")
    bench = Bench(
        folder, kind="masked_lm", texts=["ka lo"] * 4, views=TOKENS, targets={"x": {"kind": "hidden_states", "layers": [1]}}
    )
    monkeypatch.setattr("pipelines.text.labelling.MAX_UNIT_SAMPLES", 3)
    monkeypatch.setattr(type(bench.teacher), "run", None)
    with pytest.raises(SourceError, match="the 4 documents of unit .* become 4 sequences, a part holds at most 3"):
        bench.label()


@pytest.mark.parametrize(
    ("kind", "model", "positions", "words"),
    [
        ("masked_lm", "bert", "next", "a masked_lm gives at each token what the token itself may be.* give masked or all"),
        ("causal_lm", "gpt2", "all", "a causal_lm gives at each token what the next one may be.* give next"),
    ],
)
def test_labels_that_would_be_one_token_off_are_refused(tmp_path, kind, model, positions, words):
    folder = save_model(tmp_path, model)
    targets = {"labels": {"k": 4, "positions": positions}}
    with pytest.raises(ConfigError, match=rf"^targets\.labels\.positions: {positions}, but {words}, or leave positions out"):
        Bench(folder, kind=kind, texts=["ka"], views=TOKENS, targets=targets)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"problem_type": "multi_label_classification"}, "a text has any number of its classes at once"),
        ({"num_labels": 1}, "it gives a number and no classes"),
    ],
)
def test_logits_that_are_no_distributions_are_no_soft_labels(tmp_path, changes, words):
    folder = save_model(tmp_path, "bert_classifier", **changes)
    options = {"kind": "sequence_classifier", "texts": ["ka"], "views": TOKENS}
    with pytest.raises(ConfigError, match=rf"^targets\.labels\.kind: soft_labels, but of teacher .* {words}"):
        Bench(folder, **options, targets={"labels": {"k": 1}})
    assert Bench(folder, **options, targets={"embedding": {"kind": "embeddings"}}).label()["embedding"].record.num_samples == 1
