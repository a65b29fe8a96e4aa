"""The shipped recipes over texts ask for nothing that their own targets and students do not have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoConfig

from storage.config import load_config
from storage.config.students import MiniAlbertStudentConfig, TransformersStudentConfig
from storage.heads import FrozenHead, HeadSpec, Linear
from storage.specs import AttentionSpec, HiddenStatesSpec, SoftLabelsSpec
from student_training.heads import HeadModule
from student_training.terms.interface import StudentShape
from student_training.text.term_building import build_terms, terms_of
from tests.student_training.text.text_batches import MASKED, TOKENS

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
RECIPES = {path.stem: load_config(str(path)) for path in sorted(CONFIGS.glob("*.yaml")) if load_config(str(path)).views.of_text}
VOCABULARIES = {"masked_lm": 30522, "causal_lm": 50257}
DISTILBERT = {"num_hidden_layers": 6, "hidden_size": 768, "num_attention_heads": 12}
CHECKPOINTS = {
    "distilbert/distilbert-base-uncased": DISTILBERT,
    "google-bert/bert-base-uncased": {**DISTILBERT, "num_hidden_layers": 12},
}


def spec_of(target, *, teacher):
    """What a teacher of BERT's or GPT-2's sizes makes of a target; two classes."""
    if target.kind == "soft_labels":
        positions = target.positions_of(teacher)
        classes = 2 if positions == "view" else VOCABULARIES[teacher]
        return SoftLabelsSpec(num_classes=classes, k=target.k, codec=target.codec, positions=positions)
    if target.kind == "hidden_states":
        sha256 = "0" * 64 if target.head else None
        return HiddenStatesSpec(layers=target.layers, tokens=target.tokens, width=768, codec=target.codec, head_sha256=sha256)
    sizes = {"num_heads": 12, "num_key_value_heads": 12, "head_width": 64, "causal": teacher == "causal_lm"}
    return AttentionSpec(layers=target.layers, vectors=target.vectors, codec=target.codec, **sizes)


def shape_of(student, *, recipes):
    if isinstance(student, MiniAlbertStudentConfig):
        sizes = {"num_hidden_layers": student.num_rounds, "hidden_size": student.width, "num_attention_heads": student.num_heads}
    elif not isinstance(student, TransformersStudentConfig):
        return StudentShape(kind="sequence_classifier", num_classes=2, embedding_width=100)
    elif student.path in CHECKPOINTS:
        sizes = CHECKPOINTS[student.path]
    elif student.path is not None:
        # What another recipe leaves.
        (other,) = [recipe for recipe in recipes if recipe.training.output == student.path]
        left = shape_of(other.training.student, recipes=recipes)
        return replace(left, kind=student.head, num_classes=2 if student.head == "sequence_classifier" else left.num_classes)
    else:
        config = AutoConfig.for_model(student.architecture, **student.config)
        sizes = {name: getattr(config, name) for name in DISTILBERT}
    heads, width = sizes["num_attention_heads"], sizes["hidden_size"]
    shape = StudentShape(
        kind=student.head,
        num_classes=2 if student.head == "sequence_classifier" else VOCABULARIES[student.head],
        num_layers=sizes["num_hidden_layers"],
        width=width,
        num_heads=heads,
        num_key_value_heads=heads,
        head_width=width // heads,
        embedding_width=width,
        causal=student.head == "causal_lm",
    )
    assert width % heads == 0
    return shape


@pytest.mark.parametrize("name", RECIPES)
def test_terms_are_served(name):
    recipe = RECIPES[name]
    student = recipe.training.text_student
    shape = shape_of(student, recipes=RECIPES.values())
    teacher = recipe.teacher.kind if recipe.teacher is not None else ""
    cached = recipe.training.targets.kind == "cached"
    specs = {key: spec_of(target, teacher=teacher) for key, target in recipe.named_targets.items()} if cached else {}
    head = HeadSpec(reads="every", operations=(Linear(inputs=768, outputs=VOCABULARIES["masked_lm"], bias=True),))
    heads = {
        key: HeadModule(FrozenHead(spec=head, tensors={}))
        for key, spec in specs.items()
        if getattr(spec, "head_sha256", None) is not None
    }
    terms = build_terms(
        terms_of(recipe.training, targets=specs, shape=shape),
        targets=specs,
        view=MASKED if recipe.views.kind == "masked_tokens" else TOKENS,
        shape=shape,
        mean_class_probs={key: [1.0] for key, spec in specs.items() if isinstance(spec, SoftLabelsSpec)},
        heads=heads,
    )
    assert {term.target for term in terms if term.target is not None} == specs.keys()
    if isinstance(student, TransformersStudentConfig) and student.layers_from is not None:
        assert len(student.layers_from.layers) == shape.num_layers
    if recipe.views.kind == "masked_tokens":
        assert recipe.views.count == recipe.training.epochs


def test_distilbert_has_the_weights_of_its_paper():
    recipe = RECIPES["distilbert"]
    assert [(term.kind, term.weight) for term in recipe.training.terms] == [
        ("soft_labels", 5.0),
        ("hard_tokens", 2.0),
        ("hidden_states", 1.0),
    ]
    assert recipe.training.terms[0].temperature == 2.0
    assert recipe.training.text_student.layers_from.layers == (0, 2, 4, 7, 9, 11)


def test_students_of_sst2_share_their_teachers_labels():
    names = ("sst2_bilstm", "sst2_distilbert", "sst2_q8bert")
    assert len({(str(RECIPES[name].teacher), str(RECIPES[name].views), str(RECIPES[name].target)) for name in names}) == 1
    assert RECIPES["sst2_bilstm"].teacher.name == RECIPES["sst2_teacher"].training.output
    assert RECIPES["sst2_bilstm"].training.student.model_copy(update={"num_classes": 2}) == (
        RECIPES["sst2_bilstm_hard"].training.student
    )
