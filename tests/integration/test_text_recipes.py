"""Recipes over texts from labels to students, with real tiny teachers."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from student_training.metrics import read_metrics
from tests.pipelines.support import write_config
from tests.pipelines.text.models import documents, save_model

pytestmark = pytest.mark.integration

EXACT = {"kind": "float16"}
MASKS = {"kind": "masked_tokens", "length": 32, "count": 2, "seed": 1}
TOKENS = {"kind": "tokens", "length": 32}
FEATURES = {
    "hidden": {"kind": "hidden_states", "layers": [0, 1, 2], "head": True, "codec": EXACT},
    "attention": {"kind": "attention", "layers": [1, 2], "codec": EXACT},
    "relations": {"kind": "relations", "layer": 2, "num_relation_heads": 4},
    "embeddings": {"kind": "embeddings", "codec": EXACT},
}
TERMS = {
    "soft_labels_loss": {"kind": "soft_labels", "target": "labels", "temperature": 2.0},
    "soft_labels_loss_2": {"kind": "soft_labels", "target": "hidden", "loss": "reverse_kl"},
    "hidden_states_loss": {"kind": "hidden_states", "layers": [[0, 0], [1, 1], [2, 2]], "loss": "cosine"},
    "hidden_states_loss_2": {"kind": "hidden_states", "layers": [[0, 0], [1, 1], [2, 2]]},
    "attention_loss": {"kind": "attention", "layers": [[1, 1], [2, 2]]},
    "attention_loss_2": {"kind": "attention", "layers": [[1, 1], [2, 2]], "loss": "map_kl"},
    "relations_loss": {"kind": "relations", "target": "attention", "layers": [[1, 1]], "num_relation_heads": 2},
    "relations_loss_2": {"kind": "relations", "target": "relations", "layers": [[2, 2]]},
    "embeddings_loss": {"kind": "embeddings"},
}
NO_DROPOUT = {
    "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "gpt2": {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0},
    "llama": {},
}


@pytest.fixture
def made(tmp_path):
    """Write a config whose parts can be changed."""
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("".join(f"{text}\n" for text in documents(40)))

    def make(*, training, **sections):
        data = {
            "name": "texts",
            "cache": str(tmp_path / "cache"),
            "source": {"kind": "text", "path": str(corpus), "unit_size": 10},
            "generation": {"batch_size": 4, "torch_threads": 1},
            **sections,
            "training": {
                "output": str(tmp_path / "run"),
                "targets": {"kind": "cached"},
                "batch_size": 8,
                "device": "cpu",
                "torch_threads": 1,
                "log_every_steps": 1,
                **training,
            },
        }
        return write_config(tmp_path / "config.json", data)

    return make


def label_and_train(command, config):
    for word in ("label", "train"):
        ended = command(word, config, "--json")
        assert ended.status == 0, ended.err
    return ended.json


@pytest.mark.parametrize("name", sorted(NO_DROPOUT))
def test_a_teacher_has_nothing_to_learn_from_its_own_labels(command, made, tmp_path, name):
    """Every loss of a copy of the teacher is what rounding leaves: rows, positions, layers and heads are those they should be."""
    teacher = save_model(tmp_path / "teacher", name, padding=3)
    masked = name == "bert"
    config = made(
        teacher={"kind": "masked_lm" if masked else "causal_lm", "name": str(teacher), "device": "cpu"},
        views=MASKS if masked else TOKENS,
        targets={"labels": {"codec": {"kind": "dense"}}, **FEATURES},
        training={
            "student": {
                "kind": "transformers",
                "head": "masked_lm" if masked else "causal_lm",
                "path": str(teacher),
                "pretrained": True,
                "config": NO_DROPOUT[name],
            },
            "terms": list(TERMS.values()),
            "optimizer": {"learning_rate": 1e-9, "weight_decay": 0.0},
        },
    )
    label_and_train(command, config)
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if line["kind"] == "training"]
    assert len(lines) == 5
    worst = {term: max(line[term] for line in lines) for term in TERMS}
    assert {term: value for term, value in worst.items() if value > 1e-4} == {}
    assert min(line["loss"] for line in lines) > -1e-6


def test_distilbert_learns_from_hidden_states_and_a_kept_head(command, made, tmp_path):
    teacher = save_model(tmp_path / "teacher", "bert")
    config = made(
        teacher={"kind": "masked_lm", "name": str(teacher), "device": "cpu"},
        views=MASKS,
        target={"kind": "hidden_states", "layers": [2], "head": True},
        training={
            "student": {
                "kind": "transformers",
                "head": "masked_lm",
                "architecture": "distilbert",
                "config": {
                    "dim": 32,
                    "n_layers": 1,
                    "n_heads": 4,
                    "hidden_dim": 48,
                    "max_position_embeddings": 64,
                    "dropout": 0.0,
                },
                "layers_from": {"path": str(teacher), "layers": [0]},
            },
            "terms": [
                {"kind": "soft_labels", "positions": "all", "temperature": 2.0, "weight": 5.0},
                {"kind": "hard_tokens", "weight": 2.0},
                {"kind": "hidden_states", "layers": [[2, 1]], "loss": "cosine"},
            ],
            "optimizer": {"learning_rate": 3e-3},
            "epochs": 8,
        },
    )
    result = label_and_train(command, config)
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if line["kind"] == "training"]
    # The teacher's last hidden states are as good as random: a layer less can hardly follow them.
    for term, share in {"soft_labels_loss": 0.8, "hidden_states_loss": 0.97}.items():
        first, last = (sum(line[term] for line in part) / 5 for part in (lines[:5], lines[-5:]))
        assert last < share * first, term
    assert result["teacher_passes"] == 0
    student = AutoModelForMaskedLM.from_pretrained(tmp_path / "run")
    assert type(student).__name__ == "DistilBertForMaskedLM"


def test_tinybert_is_narrower_than_its_teacher(command, made, tmp_path):
    teacher = save_model(tmp_path / "teacher", "bert")
    config = made(
        teacher={"kind": "masked_lm", "name": str(teacher), "device": "cpu"},
        views=MASKS,
        targets={
            "hidden": {"kind": "hidden_states", "layers": [0, 2]},
            "attention": {"kind": "attention", "layers": [2], "vectors": ["query", "key"]},
        },
        training={
            "student": {
                "kind": "transformers",
                "head": "masked_lm",
                "architecture": "bert",
                "config": {
                    "hidden_size": 16,
                    "num_hidden_layers": 1,
                    "num_attention_heads": 4,
                    "intermediate_size": 24,
                    "max_position_embeddings": 32,
                },
            },
            "terms": [
                {"kind": "hidden_states", "layers": [[0, 0], [2, 1]], "projection": "shared"},
                {"kind": "attention", "layers": [[2, 1]]},
            ],
            "optimizer": {"learning_rate": 5e-3},
            "epochs": 6,
        },
    )
    label_and_train(command, config)
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if line["kind"] == "training"]
    assert sum(line["loss"] for line in lines[-5:]) < 0.9 * sum(line["loss"] for line in lines[:5])
    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "run").config.hidden_size == 16
    state = torch.load(max((tmp_path / "run" / "checkpoints").glob("*.pt")), weights_only=True)
    assert state["model"]["terms.0.projections.0.weight"].shape == (32, 16)


@pytest.mark.parametrize("codec", ["sampled", "compact"])
def test_a_language_model_learns_next_tokens(command, made, tmp_path, codec):
    teacher = save_model(tmp_path / "teacher", "gpt2")
    config = made(
        teacher={"kind": "causal_lm", "name": str(teacher), "device": "cpu"},
        views=TOKENS,
        target={"codec": {"kind": codec}},
        training={
            "student": {
                "kind": "transformers",
                "head": "causal_lm",
                "architecture": "gpt2",
                "config": {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, "bos_token_id": 0, "eos_token_id": 0},
            },
            "terms": [{"kind": "soft_labels", "rest": "mean"}],
            "optimizer": {"learning_rate": 1e-2},
            "epochs": 5,
        },
    )
    label_and_train(command, config)
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if line["kind"] == "training"]
    assert sum(line["loss"] for line in lines[-5:]) < 0.95 * sum(line["loss"] for line in lines[:5])
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "run").config.n_layer == 1


def test_a_recipe_that_the_cache_cannot_serve_is_refused_before_anything_runs(command, made, tmp_path):
    teacher = save_model(tmp_path / "teacher", "bert")
    config = made(
        teacher={"kind": "masked_lm", "name": str(teacher), "device": "cpu"},
        views=MASKS,
        target={"kind": "hidden_states", "layers": [1]},
        training={
            "student": {"kind": "transformers", "head": "masked_lm", "path": str(teacher)},
            "terms": [
                {"kind": "hidden_states", "layers": [[2, 1]]},
                {"kind": "attention", "layers": [[1, 1]]},
            ],
        },
    )
    assert command("label", config).status == 0
    refused = command("train", config)
    assert refused.status == 2
    assert "training.terms.0 (hidden_states): layers has the teacher's layer 2, and the target holds layers 1" in refused.err
    assert "training.terms.1 (attention): it needs a target of attention" in refused.err
    assert not (tmp_path / "run" / "checkpoints").exists()
