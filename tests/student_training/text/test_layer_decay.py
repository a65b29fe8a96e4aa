"""Layers of networks that read texts learn more slowly the deeper they lie."""

from __future__ import annotations

import pytest

from storage.config.training import OptimizerConfig
from storage.errors import ConfigError
from student_training.optimization import create_optimizer
from student_training.text.objective import make_learner
from tests.student_training.text.text_batches import MASKED, SPECS, TOKENS, make_student, make_terms


def learner_of(student, *terms, targets=(), view=MASKED):
    return make_learner(student, make_terms(*terms), targets={name: SPECS[name] for name in targets}, view=view)


LAYERS = {
    "bert": ("bert.embeddings.", "bert.encoder.layer.{}.", "cls.predictions.transform."),
    "distilbert": ("distilbert.embeddings.", "distilbert.transformer.layer.{}.", "vocab_transform."),
    "llama": ("model.embed_tokens.", "model.layers.{}.", "model.norm."),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_learn_more_slowly_the_deeper_they_lie(name):
    head = "causal_lm" if name == "llama" else "masked_lm"
    student = make_student(name, head=head)
    learner = learner_of(
        student,
        {"kind": "hidden_states", "layers": [[4, 2]], "projection": "shared"},
        {"kind": "hard_tokens"},
        targets=("hidden",),
        view=TOKENS if name == "llama" else MASKED,
    )
    named = {id(parameter): name for name, parameter in learner.named_parameters()}
    optimizer = create_optimizer(learner, config=OptimizerConfig(layer_decay=0.5))
    scales = {named[id(one)]: group["lr_scale"] for group in optimizer.param_groups for one in group["params"]}
    embeddings, layer, top = LAYERS[name]

    def scales_of(start):
        return {scale for name, scale in scales.items() if name.startswith(start)}

    assert scales_of(f"student.network.{embeddings}") == {0.5**3}
    assert scales_of(f"student.network.{layer.format(0)}") == {0.5**2}
    assert scales_of(f"student.network.{layer.format(1)}") == {0.5}
    assert scales_of(f"student.network.{top}") == scales_of("terms.") == {1.0}


def test_a_student_that_shares_its_layers_has_no_decay_by_layers():
    learner = learner_of(make_student("albert"), {"kind": "soft_labels"}, targets=("all",))
    with pytest.raises(
        ConfigError, match="no layers, or shares them, and layer_decay would do nothing; check training.optimizer"
    ):
        create_optimizer(learner, config=OptimizerConfig(layer_decay=0.5))
