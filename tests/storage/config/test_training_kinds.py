"""Students by kind, terms of a loss, and what is said where they do not go together."""

from __future__ import annotations

import pytest

from storage.config.load import parse_config
from storage.config.students import BiLstmStudentConfig, StudentConfig, TextStudentConfig
from storage.errors import ConfigError

TEXTS = {"name": "x", "source": {"kind": "text", "path": "corpus"}, "views": {"kind": "tokens"}}
PICTURES = {"name": "x", "source": {"kind": "image_folder", "path": "pictures"}}
BILSTM = {"kind": "bilstm"}
BERT = {"kind": "transformers", "head": "masked_lm", "architecture": "bert"}
TERM = {"kind": "hard_label"}


def parse(*, sections=TEXTS, **training):
    data = {**sections, "training": {"output": "runs/x", "targets": {"kind": "hard"}, "student": BILSTM, **training}}
    return parse_config(data, origin="x.yaml").training


def test_a_student_without_a_kind_is_of_pictures():
    training = parse(sections=PICTURES, student={"name": "vit_tiny_patch16_224"})
    assert isinstance(training.picture_student, StudentConfig)
    assert training.picture_student.kind == "timm"
    with pytest.raises(ConfigError, match=r"training\.student\.kind is timm, a network of pictures"):
        _ = training.text_student


def test_a_student_of_texts_is_none_of_pictures():
    training = parse()
    assert isinstance(training.text_student, BiLstmStudentConfig)
    assert isinstance(training.text_student, TextStudentConfig)
    with pytest.raises(ConfigError, match=r"training\.student\.kind is bilstm, a network of texts"):
        _ = training.picture_student


PROBLEMS = {
    "kind": (
        {"student": {"kind": "lstm"}},
        'training.student.kind = "lstm": expected timm, transformers, mini_albert, bilstm or',
    ),
    "key of another kind": (
        {"student": {**BILSTM, "path": "x"}},
        'training.student.path = "x": unknown key. It belongs to kind tra',
    ),
    "which network": ({"student": {**BERT, "path": "x"}}, "training.student: give either architecture (and config) or path"),
    "weights of what": ({"student": {**BERT, "pretrained": True}}, "training.student: pretrained needs path"),
    "two first weights": (
        {
            "student": {
                "kind": "transformers",
                "head": "masked_lm",
                "path": "x",
                "pretrained": True,
                "layers_from": {"path": "y", "layers": [0]},
            }
        },
        "training.student: pretrained and layers_from both give the first weights",
    ),
    "classes of tokens": ({"student": {**BERT, "num_classes": 2}}, "training.student: num_classes is of sequence_classifier"),
    "heads that do not divide": (
        {"student": {"kind": "mini_albert", "head": "masked_lm", "width": 10, "num_heads": 3}},
        "training.student: width 10 must be a multiple of num_heads 3",
    ),
    "no terms": ({"terms": []}, "training: terms is an empty list"),
    "kind of a term": ({"terms": [TERM, {"kind": "hard_lable"}]}, 'training.terms.1.kind = "hard_lable": expected soft_labels'),
    "key of a term": ({"terms": [{**TERM, "wieght": 2}]}, "training.terms.0.wieght = 2: unknown key. Did you mean 'weight'?"),
    "weight of a term": ({"terms": [{**TERM, "weight": 0}]}, "training.terms.0.weight = 0: expected number > 0"),
    "vectors twice": (
        {"terms": [{"kind": "relations", "layers": [[1, 1]], "vectors": ["key", "key"]}]},
        "training.terms.0: vectors ['key', 'key'] name one twice",
    ),
    "loss and terms": ({"terms": [TERM], "loss": {"hard_weight": 0.5}}, "training: loss and terms are both given"),
    "smoothing and terms": (
        {"terms": [TERM], "targets": {"kind": "hard", "smoothing": 0.1}},
        "training: targets.smoothing stands beside terms",
    ),
    "lengths of pictures": (
        {"student": {"name": "test_vit"}, "group_by_length": True},
        "training: group_by_length is of texts; a timm student sees pictures, so leave it out",
    ),
    "tokens of pictures": (
        {"student": {"name": "test_vit"}, "tokenizer": "bert"},
        "training: tokenizer is of texts; a timm student sees pictures, so leave it out",
    ),
    "pixels of texts": ({"preprocessing": {"size": [32, 32]}}, "training: preprocessing is of pictures; a bilstm student reads"),
    "terms of a live teacher": (
        {"sections": PICTURES, "student": {"name": "vit"}, "terms": [TERM], "targets": {"kind": "live"}},
        "training: terms are of cached targets and hard labels; with targets.kind: live the loss is what loss says",
    ),
}


@pytest.mark.parametrize(("training", "problem"), PROBLEMS.values(), ids=PROBLEMS)
def test_what_is_said(training, problem):
    with pytest.raises(ConfigError) as caught:
        parse(**training)
    assert problem in str(caught.value)
    assert str(caught.value).startswith("x.yaml: 1 problem")


def test_defaults_that_are_written_out_change_nothing():
    for student in (BILSTM, BERT, {"kind": "text_cnn"}, {"kind": "mini_albert", "head": "masked_lm"}):
        training = parse(student=student, terms=[TERM])
        assert parse(**training.model_dump(mode="json")) == training
