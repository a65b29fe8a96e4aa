"""Students of texts from end to end: cached labels, hidden states beside them, hard labels; tiny networks."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM

from storage.cache import Cache
from storage.errors import ConfigError, MismatchError
from storage.heads import FrozenHead, HeadSpec, Linear
from storage.specs import CompactCodec, SoftLabelsSpec
from student_training.experiment import run_experiment
from student_training.metrics import read_metrics
from student_training.text.student_export import load_text_student
from tests.storage.text_caches import HIDDEN, MASKED, VOCABULARY
from tests.student_training.text.text_trainings import (
    CAUSAL_LM,
    CNN,
    MASKED_LM,
    MASKED_VIEWS,
    class_labels,
    counting_documents,
    make_label_set,
    make_text_config,
    save_tokenizer,
    teach_labels,
    topic_documents,
    write_corpus,
)

TOKEN_LABELS = {
    "masked": SoftLabelsSpec(num_classes=VOCABULARY, k=4, codec=CompactCodec(), positions="masked"),
    "next": SoftLabelsSpec(num_classes=VOCABULARY, k=4, codec=CompactCodec(), positions="next"),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    return str(folder), save_tokenizer(folder)


def silent(text):
    del text


def test_a_classifier_learns_from_cached_labels(tmp_path, tokenizer):
    path, sha256 = tokenizer
    target = class_labels()
    make_label_set(tmp_path, documents=topic_documents(), target=target, tokenizer_sha256=sha256, teach=teach_labels(target))
    held_out = write_corpus(tmp_path / "held_out.jsonl", topic_documents(num=48, seed=1))
    said = []
    config = make_text_config(
        tmp_path,
        target={"k": 3},
        training={
            "student": CNN,
            "epochs": 5,
            "loss": {"rest": "mean", "hard_weight": 0.2},
            "tokenizer": path,
            "evaluation": {"source": held_out, "batch_size": 7},
        },
    )
    result = run_experiment(config, say=said.append)
    assert (result["steps"], result["num_evaluated"], result["teacher_passes"]) == (60, 48, 0)
    assert result["top1"] > 0.8
    assert result["sequences_per_second"] > 0
    assert (result["images_per_second"], result["perplexity"]) == (None, None)
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    training = [line for line in lines if line["kind"] == "training"]
    assert training[-1]["loss"] < training[0]["loss"]
    assert {"soft_labels_loss", "sequences_per_second", "learning_rate"} <= training[0].keys()
    evaluations = [line for line in lines if line["kind"] == "evaluation"]
    assert evaluations[-1]["top1"] == result["top1"] > evaluations[0]["top1"] - 0.2
    assert any("sequences/s" in line for line in said)
    assert any("accuracy" in line and "texts" in line for line in said)
    assert load_text_student(tmp_path / "run").shape.num_classes == 3
    assert run_experiment(config, say=silent)["already_finished"]


@pytest.mark.parametrize("positions", ["masked", "next"])
def test_a_language_model_learns_from_cached_labels(tmp_path, tokenizer, positions):
    path, sha256 = tokenizer
    target = TOKEN_LABELS[positions]
    views = MASKED_VIEWS if positions == "masked" else None
    make_label_set(
        tmp_path, documents=counting_documents(num=48), target=target, tokenizer_sha256=sha256, teach=teach_labels(target)
    )
    source = write_corpus(tmp_path / "held_out.jsonl", counting_documents(num=16, seed=1))
    config = make_text_config(
        tmp_path,
        views=views,
        target={"k": 4, "positions": positions},
        training={
            "student": MASKED_LM if positions == "masked" else CAUSAL_LM,
            "epochs": 4,
            "tokenizer": path,
            "optimizer": {"learning_rate": 1e-2, "weight_decay": 0},
            "evaluation": {"source": source, "every_epochs": 2},
        },
    )
    result = run_experiment(config, say=silent)
    evaluations = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if line["kind"] == "evaluation"]
    assert evaluations[-1]["perplexity"] == result["perplexity"] < 0.5 * VOCABULARY
    assert result["perplexity"] < evaluations[0]["perplexity"]
    assert result["num_evaluated"] == 16
    assert evaluations[0]["num_tokens"] > 16
    if positions == "masked":
        student = AutoModelForMaskedLM.from_pretrained(tmp_path / "run")
        assert student.config.vocab_size == VOCABULARY


def test_hidden_states_and_labels_are_joined(tmp_path, tokenizer):
    _, sha256 = tokenizer
    documents = counting_documents(num=32)
    target = TOKEN_LABELS["masked"]
    make_label_set(
        tmp_path, documents=documents, target=target, tokenizer_sha256=sha256, name="texts.labels", teach=teach_labels(target)
    )
    make_label_set(tmp_path, documents=documents, target=HIDDEN, tokenizer_sha256=sha256, name="texts.hidden", view=MASKED)
    sections = {
        "targets": {
            "labels": {"k": 4, "positions": "masked"},
            "hidden": {"kind": "hidden_states", "layers": [1, 2], "codec": {"kind": "float16"}},
        },
        "views": MASKED_VIEWS,
    }
    terms = [
        {"kind": "soft_labels"},
        {"kind": "hidden_states", "layers": [[1, 1], [2, 2]], "projection": "shared"},
        {"kind": "hard_tokens", "weight": 0.5},
    ]
    result = run_experiment(
        make_text_config(tmp_path, training={"student": MASKED_LM, "terms": terms, "epochs": 1}, **sections), say=silent
    )
    assert result["steps"] == 4
    line = read_metrics(tmp_path / "run" / "metrics.jsonl")[0]
    assert {"soft_labels_loss", "hidden_states_loss", "hard_tokens_loss"} <= line.keys()
    assert all(
        "terms" not in name
        for name in torch.load(next((tmp_path / "run" / "checkpoints").glob("*.pt")))["model"]
        if "student" in name
    )
    exported = AutoModelForMaskedLM.from_pretrained(tmp_path / "run")
    assert exported.config.hidden_size == 32


def test_a_kept_head_stands_for_labels(tmp_path, tokenizer):
    _, sha256 = tokenizer
    spec = HeadSpec(reads="every", operations=(Linear(inputs=8, outputs=VOCABULARY, bias=False),))
    weight = np.random.default_rng(0).normal(size=(VOCABULARY, 8)).astype(np.float32)
    head = Cache.at(str(tmp_path / "cache")).add_head(FrozenHead(spec=spec, tensors={"0.weight": weight}))
    target = HIDDEN.model_copy(update={"head_sha256": head})
    make_label_set(tmp_path, documents=counting_documents(num=32), target=target, tokenizer_sha256=sha256, view=MASKED)
    config = make_text_config(
        tmp_path,
        views=MASKED_VIEWS,
        target={"kind": "hidden_states", "layers": [2], "head": True, "codec": {"kind": "float16"}},
        training={"student": MASKED_LM, "terms": [{"kind": "soft_labels", "positions": "masked"}], "epochs": 3},
    )
    run_experiment(config, say=silent)
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert 0 < lines[-1]["soft_labels_loss"] < lines[0]["soft_labels_loss"]


def test_parts_of_targets_that_no_term_reads_are_not_fetched(tmp_path, tokenizer, monkeypatch):
    _, sha256 = tokenizer
    documents = counting_documents(num=16)
    target = TOKEN_LABELS["masked"]
    make_label_set(tmp_path, documents=documents, target=target, tokenizer_sha256=sha256, name="texts.labels")
    hidden = make_label_set(
        tmp_path, documents=documents, target=HIDDEN, tokenizer_sha256=sha256, name="texts.hidden", view=MASKED
    )
    for part in range(hidden.parts.num_rows):
        (tmp_path / "cache" / hidden.tar_path(part)).unlink()
    sections = {
        "targets": {
            "labels": {"k": 4, "positions": "masked"},
            "hidden": {"kind": "hidden_states", "layers": [1, 2], "codec": {"kind": "float16"}},
        },
        "views": MASKED_VIEWS,
    }
    for number, terms in enumerate([[{"kind": "soft_labels"}], [{"kind": "hard_tokens"}]]):
        training = {"student": MASKED_LM, "terms": terms, "epochs": 1, "output": str(tmp_path / f"run{number}")}
        assert run_experiment(make_text_config(tmp_path, training=training, **sections), say=silent)["steps"] == 2


@pytest.mark.parametrize("kind", ["classifier", "masked_lm", "causal_lm"])
def test_hard_labels_need_no_cache(tmp_path, tokenizer, kind):
    path, _ = tokenizer
    documents = topic_documents() if kind == "classifier" else counting_documents(num=48)
    source = write_corpus(tmp_path / "corpus.jsonl", documents)
    student = {"classifier": {**CNN, "num_classes": 3}, "masked_lm": MASKED_LM, "causal_lm": CAUSAL_LM}[kind]
    config = make_text_config(
        tmp_path,
        source=source,
        views=MASKED_VIEWS if kind == "masked_lm" else None,
        training={
            "student": student,
            "targets": {"kind": "hard"},
            "tokenizer": path,
            "epochs": 4,
            "optimizer": {"learning_rate": 1e-2, "weight_decay": 0},
            "evaluation": {"source": source},
        },
    )
    result = run_experiment(config, say=silent)
    evaluations = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if line["kind"] == "evaluation"]
    assert evaluations[-1]["cross_entropy"] < evaluations[0]["cross_entropy"]
    assert result["num_evaluated"] == len(documents)
    if kind == "classifier":
        assert result["top1"] > 0.8
    described = json.loads((tmp_path / "run" / "config.json").read_text())
    assert described.get("vocab_size", described.get("vocabulary_size")) == VOCABULARY


def cached(folder, sha256, *, documents=None, **options):
    target = class_labels()
    return make_label_set(
        folder, documents=documents or topic_documents(num=16), target=target, tokenizer_sha256=sha256, **options
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"terms": [{"kind": "hidden_states", "layers": [[1, 1]]}]}, "needs a target of hidden_states, and the targets are"),
        (
            {"terms": [{"kind": "soft_labels", "target": "labels"}]},
            "there is no target 'labels'; the experiment has target .soft_labels",
        ),
        (
            {
                "student": {
                    **MASKED_LM,
                    "head": "sequence_classifier",
                    "config": {**MASKED_LM["config"], "max_position_embeddings": 8},
                }
            },
            "cannot take a sequence of 16 tokens",
        ),
        (
            {"student": {**MASKED_LM, "head": "sequence_classifier", "config": {**MASKED_LM["config"], "vocab_size": 30}}},
            "vocabulary has 30 tokens and the texts 40",
        ),
        ({"student": {**CNN, "num_classes": 5}}, "5"),
        ({"student": MASKED_LM}, "the student is a masked_lm"),
        ({"batch_size": 64}, "epoch 0 has 16 rows"),
        ({"sample_fraction": 0.5}, "only works with hard labels"),
        ({"targets": {"kind": "live"}}, "is for pictures"),
        ({"tokenizer": "nowhere"}, "tokenizer nowhere cannot be loaded"),
    ],
)
def test_what_cannot_run_is_said_before_any_update(tmp_path, tokenizer, changes, message):
    _, sha256 = tokenizer
    cached(tmp_path, sha256)
    sections = {}
    if changes.get("targets") == {"kind": "live"}:
        sections = {
            "source": write_corpus(tmp_path / "corpus.jsonl", topic_documents()),
            "teacher": {"kind": "masked_lm", "name": "x"},
            "target": {"positions": "view"},
        }
    config = make_text_config(tmp_path, training={"student": CNN, **changes}, **{"target": {"k": 3}, **sections})
    with pytest.raises((ConfigError, MismatchError), match=message):
        run_experiment(config, say=silent)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_label_set_that_differs_from_the_config_is_refused_by_field(tmp_path, tokenizer):
    _, sha256 = tokenizer
    cached(tmp_path, sha256)
    config = make_text_config(tmp_path, views={"kind": "tokens", "length": 12}, target={"k": 2}, training={"student": CNN})
    with pytest.raises(MismatchError) as caught:
        run_experiment(config, say=silent)
    assert "views.length: the config asks for 12, the label set holds 16" in str(caught.value)
    assert "views.special_tokens: the config asks for True, the label set holds False" in str(caught.value)
    narrower = make_text_config(tmp_path, target={"k": 2}, training={"student": CNN, "epochs": 1})
    assert run_experiment(narrower, say=silent)["steps"] == 2


def test_pictures_and_texts_are_not_mixed(tmp_path, tokenizer):
    path, sha256 = tokenizer
    cached(tmp_path, sha256)
    texts = write_corpus(tmp_path / "corpus.jsonl", topic_documents(num=8))
    pictures = {"kind": "image_folder", "path": str(tmp_path)}
    with pytest.raises(ConfigError, match="source.kind: jsonl is of texts, and training.student is a network of pictures"):
        run_experiment(make_text_config(tmp_path, source=texts, training={"student": {"name": "test_vit"}}), say=silent)
    student = {"student": CNN, "tokenizer": path}
    evaluated = make_text_config(tmp_path, target={"k": 3}, training={**student, "evaluation": {"source": pictures}})
    with pytest.raises(ConfigError, match="training.evaluation.source.kind: image_folder is of pictures"):
        run_experiment(evaluated, say=silent)
    hard = make_text_config(tmp_path, training={**student, "targets": {"kind": "hard"}, "source": pictures})
    with pytest.raises(ConfigError, match="training.source.kind: image_folder is of pictures"):
        run_experiment(hard, say=silent)


def test_labels_of_an_earlier_release_that_are_one_token_off_are_refused(tmp_path, tokenizer):
    _, sha256 = tokenizer
    target = TOKEN_LABELS["next"]
    make_label_set(tmp_path, documents=counting_documents(num=16), target=target, tokenizer_sha256=sha256, kind="masked_lm")
    config = make_text_config(tmp_path, target={"k": 4, "positions": "next"}, training={"student": CAUSAL_LM})
    with pytest.raises(MismatchError, match=r"is one token off: a masked_lm gives at each token what the token itself may be"):
        run_experiment(config, say=silent)


@pytest.mark.parametrize("targets", ["hard", "cached"])
def test_a_label_beyond_the_students_classes_is_told_with_its_text(tmp_path, tokenizer, targets):
    path, sha256 = tokenizer
    documents = topic_documents(num=16)
    sections = {"source": write_corpus(tmp_path / "corpus.jsonl", documents)}
    training = {"student": {**CNN, "num_classes": 2}, "targets": {"kind": targets}, "tokenizer": path}
    if targets == "cached":
        target = SoftLabelsSpec(num_classes=2, k=2, codec=CompactCodec())
        make_label_set(tmp_path, documents=documents, target=target, tokenizer_sha256=sha256)
        sections, training = {"target": {"k": 2}}, {**training, "loss": {"hard_weight": 0.5}}
    with pytest.raises(MismatchError, match=r"text 'text\d+' has label 2 but the student has 2 classes \(0 to 1\); raise"):
        run_experiment(make_text_config(tmp_path, training=training, **sections), say=silent)
