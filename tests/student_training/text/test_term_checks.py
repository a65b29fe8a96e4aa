"""Recipes that a cache, a view or a student cannot serve are refused, with the key and a remedy."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pydantic import TypeAdapter

from storage.config.training import TrainingConfig
from storage.errors import ConfigError
from storage.heads import FrozenHead, HeadSpec, Linear
from storage.specs import ExactCodec, SoftLabelsSpec
from student_training.heads import HeadModule
from student_training.terms.interface import StudentShape
from student_training.text.term_building import build_terms, terms_of
from tests.student_training.text.text_batches import CLASSES, MASKED, SPECS, TOKENS, VOCABULARY, make_terms

ATTENTION = {"num_layers": 2, "width": 16, "num_heads": 2, "num_key_value_heads": 2, "head_width": 8}
SHAPES = {
    "masked_lm": StudentShape(kind="masked_lm", num_classes=VOCABULARY, **ATTENTION),
    "causal_lm": StudentShape(kind="causal_lm", num_classes=VOCABULARY, causal=True, **ATTENTION),
    "classifier": StudentShape(kind="sequence_classifier", num_classes=CLASSES, embedding_width=16, **ATTENTION),
    "bilstm": StudentShape(kind="sequence_classifier", num_classes=CLASSES, embedding_width=10),
    "windows": StudentShape(kind="masked_lm", num_classes=VOCABULARY, attention_windows=(None, 4), **ATTENTION),
    "three heads": StudentShape(kind="masked_lm", num_classes=VOCABULARY, **{**ATTENTION, "num_heads": 4}),
}
SOFT, HIDDEN, ATTENDING, RELATED = (
    {"kind": "soft_labels"},
    {"kind": "hidden_states", "layers": [[4, 2]], "projection": "shared"},
    {"kind": "attention", "layers": [[4, 2]]},
    {"kind": "relations", "layers": [[4, 2]], "vectors": ["query"]},
)


def head(*, reads="every", outputs=VOCABULARY, teacher_kind=None):
    spec = HeadSpec(reads=reads, operations=(Linear(inputs=20, outputs=outputs, bias=False),))
    tensors = {name: np.zeros(shape, dtype=np.float32) for name, shape in spec.tensors.items()}
    return HeadModule(FrozenHead(spec=spec, tensors=tensors), teacher_kind=teacher_kind)


def build(*terms, shape="masked_lm", targets=(), view=MASKED, **options):
    return build_terms(
        make_terms(*terms),
        targets={name: SPECS[name] for name in targets},
        view=view,
        shape=SHAPES[shape],
        **{"mean_class_probs": {}, "heads": {}, **options},
    )


REFUSED = {
    "no target": ([SOFT], {}, "needs a target of soft_labels or hidden_states, and the targets are none; add one"),
    "unknown target": (
        [{**SOFT, "target": "labels"}],
        {"targets": ("masked",)},
        "no target 'labels'; the targets are masked (soft",
    ),
    "wrong target": ([{**HIDDEN, "target": "masked"}], {"targets": ("masked",)}, "'masked' holds soft_labels, which this term"),
    "two that fit": ([SOFT], {"targets": ("masked", "all")}, "targets masked, all all fit; say which in target"),
    "other positions": ([SOFT], {"targets": ("next",)}, "of next tokens, which a causal_lm predicts; the student is a masked_lm"),
    "other classes": (
        [SOFT],
        {"targets": ("classes",), "shape": "bilstm", "classes": 7},
        "over 7 classes and the student has 3",
    ),
    "reverse of draws": (
        [{**SOFT, "loss": "reverse_kl"}],
        {"targets": ("drawn",), "shape": "causal_lm", "view": TOKENS},
        "would be biased; use cross_entropy",
    ),
    "cross entropy of top k": ([{**SOFT, "loss": "cross_entropy"}], {"targets": ("masked",)}, "rest mass of codec exact; use kl"),
    "tempered draws": (
        [{**SOFT, "temperature": 2.0}],
        {"targets": ("drawn",), "shape": "causal_lm", "view": TOKENS},
        "set temperature: 1, or label at 2",
    ),
    "infinite": ([{**SOFT, "loss": "reverse_kl", "rest": "renormalize"}], {"targets": ("masked",)}, "reverse_kl is infinite"),
    "no mean": ([{**SOFT, "rest": "mean"}], {"targets": ("masked",)}, "no mean class probabilities; use uniform"),
    "no head": ([SOFT], {"targets": ("hidden",)}, "label with head: true"),
    "head of other classes": ([SOFT], {"targets": ("hidden",), "heads": {"hidden": head(outputs=39)}}, "39 tokens of the vocab"),
    "head of a classifier": ([SOFT], {"targets": ("hidden",), "heads": {"hidden": head(reads="first")}}, "student.head: seq"),
    "head of all tokens": (
        [SOFT],
        {"targets": ("mean",), "heads": {"mean": head()}},
        "the head reads every token, and the target holds mean ones",
    ),
    "head at masked": (
        [{**SOFT, "positions": "masked"}],
        {"targets": ("hidden",), "heads": {"hidden": head()}, "view": TOKENS},
        "the views mask nothing",
    ),
    "head of next tokens": (
        [SOFT],
        {"targets": ("hidden",), "heads": {"hidden": head(teacher_kind="causal_lm")}},
        "a causal_lm gives at each token what the next one may be, and positions masked are of the token itself",
    ),
    "head of the tokens themselves": (
        [SOFT],
        {"targets": ("hidden",), "heads": {"hidden": head(teacher_kind="masked_lm")}, "shape": "causal_lm", "view": TOKENS},
        "so that every label would be one token off; set training.student.head: masked_lm",
    ),
    "positions of stored labels": (
        [{**SOFT, "positions": "all"}],
        {"targets": ("masked",)},
        "positions are all, and the labels of target 'masked' are stored at masked ones; drop positions",
    ),
    "masks without masks": ([{"kind": "hard_tokens"}], {"view": TOKENS}, "use views.kind: masked_tokens"),
    "masks for causal": ([{"kind": "hard_tokens"}], {"shape": "causal_lm"}, "use views.kind: tokens"),
    "tokens of a classifier": ([{"kind": "hard_tokens"}], {"shape": "classifier"}, "use hard_label"),
    "labels of a language model": ([{"kind": "hard_label"}], {}, "use training.student.head: sequence_classifier"),
    "teacher's layer": (
        [{**HIDDEN, "layers": [[3, 1]]}],
        {"targets": ("hidden",)},
        "layer 3, and the target holds layers 0, 2, 4",
    ),
    "student's layer": ([{**HIDDEN, "layers": [[4, 3]]}], {"targets": ("hidden",)}, "layer 3, and its layers are 0 to 2"),
    "widths": ([{**HIDDEN, "projection": "none"}], {"targets": ("hidden",)}, "width 20 and the student's 16; set projection"),
    "no hidden states": ([HIDDEN], {"targets": ("hidden",), "shape": "bilstm"}, "the student shows no hidden states"),
    "no attention": ([ATTENDING], {"targets": ("attention",), "shape": "bilstm"}, "the student shows no attention vectors"),
    "heads": ([ATTENDING], {"targets": ("attention",), "shape": "three heads"}, "2 attention heads and the student 4"),
    "layer 0 of attention": ([{**ATTENDING, "layers": [[4, 0]]}], {"targets": ("attention",)}, "its layers are 1 to 2"),
    "causal": ([ATTENDING], {"targets": ("attention",), "shape": "causal_lm"}, "not causal and the student's is causal"),
    "window": (
        [ATTENDING],
        {"targets": ("attention",), "shape": "windows"},
        "student's layer 2 sees only those less than 4 places away",
    ),
    "relations of causal": ([RELATED], {"targets": ("attention",), "shape": "causal_lm"}, "one of teacher and student is causal"),
    "relation heads": (
        [{**RELATED, "num_relation_heads": 3}],
        {"targets": ("attention",)},
        "cannot be cut into 3 relation heads",
    ),
    "stored relation heads": ([{**RELATED, "num_relation_heads": 2}], {"targets": ("relations",)}, "stored relations have 4"),
    "vectors": ([{**RELATED, "vectors": ["key"]}], {"targets": ("relations",)}, "holds query, value and not key"),
    "embedding widths": ([{"kind": "embeddings"}], {"targets": ("embeddings",), "shape": "classifier"}, "width 10 and the stud"),
}


@pytest.mark.parametrize(("terms", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_served_is_refused(terms, options, message, monkeypatch):
    classes = options.pop("classes", None)
    if classes is not None:
        monkeypatch.setitem(SPECS, "classes", SoftLabelsSpec(num_classes=classes, k=2, codec=ExactCodec()))
    with pytest.raises(ConfigError) as caught:
        build(*terms, **options)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"training.terms.0 ({terms[0]['kind']}): ")


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(ConfigError) as caught:
        build(SOFT, {"kind": "hard_tokens"}, {"kind": "hard_label"}, HIDDEN, targets=("masked",))
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines] == ["training.terms.2 (hard_label)", "training.terms.3 (hidden_states)"]


def test_soft_labels_are_taken_before_hidden_states_with_a_head():
    (term,) = build(SOFT, targets=("hidden", "masked"), heads={"hidden": head()})
    assert term.target == "masked"


@pytest.mark.parametrize(("kind", "shape", "view"), [("masked_lm", "masked_lm", MASKED), ("causal_lm", "causal_lm", TOKENS)])
def test_a_head_of_the_students_own_kind_serves(kind, shape, view):
    (term,) = build(SOFT, targets=("hidden",), heads={"hidden": head(teacher_kind=kind)}, shape=shape, view=view)
    assert term.row_set == ("masked" if kind == "masked_lm" else "next")


def training(**fields):
    data = {"output": "x", "student": {"kind": "bilstm"}, "targets": {"kind": "cached"}, **fields}
    return TypeAdapter(TrainingConfig).validate_json(json.dumps(data))


def test_the_loss_section_speaks_where_there_are_no_terms():
    loss = {"hard_weight": 0.25, "distillation_temperature": 3.0, "rest": "bucket", "scale_by_temperature_squared": False}
    soft, hard = terms_of(training(loss=loss), targets={"target": SPECS["classes"]}, shape=SHAPES["bilstm"])
    assert (soft.kind, soft.weight, soft.temperature, soft.rest) == ("soft_labels", 0.75, 3.0, "bucket")
    assert not soft.scale_by_temperature_squared
    assert (hard.kind, hard.weight) == ("hard_label", 0.25)
    (alone,) = terms_of(training(targets={"kind": "hard", "smoothing": 0.1}), targets={}, shape=SHAPES["masked_lm"])
    assert (alone.kind, alone.weight, alone.smoothing) == ("hard_tokens", 1.0, 0.1)
    given = training(terms=[{"kind": "hard_label"}])
    assert terms_of(given, targets={}, shape=SHAPES["bilstm"]) == given.terms
    with pytest.raises(ConfigError, match=r"the targets are hidden \(hidden_states\); say in training\.terms"):
        terms_of(training(), targets={"hidden": SPECS["hidden"]}, shape=SHAPES["masked_lm"])
