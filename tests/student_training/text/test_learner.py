"""What a student of texts minimises, against the same written out; padding changes nothing."""

from __future__ import annotations

from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch.nn.functional import cosine_similarity, cross_entropy

from storage.heads import FrozenHead, HeadSpec, Linear
from student_training.heads import HeadModule
from student_training.losses.dense import dense_kl
from student_training.losses.soft_labels import densify
from student_training.objective import SparseTargets
from student_training.terms.interface import FeatureTargets, Wants
from student_training.text.objective import make_learner
from tests.student_training.text.text_batches import (
    CLASSES,
    MASKED,
    SPECS,
    TOKENS,
    VOCABULARY,
    make_batch,
    make_student,
    make_terms,
)

LENGTHS = (7, 3, 10)


def learner_of(student, *terms, targets=(), view=MASKED, **options):
    return make_learner(student.eval(), make_terms(*terms), targets={name: SPECS[name] for name in targets}, view=view, **options)


def full_output(student, batch):
    layers = range(1, student.shape.num_layers + 1)
    names = tuple(f"{kind}.{layer}" for layer in layers for kind in ("query", "key", "value"))
    return student(batch.input_ids, attention_mask=batch.attention_mask, wants=Wants(hidden_states=True, vectors=names))


def dense_targets(rows, *, num_classes):
    labels = rows.soft_labels
    return densify(labels.class_ids, probs=labels.probs, rest=labels.rest, num_classes=num_classes, rest_policy="uniform")


def test_distilbert_is_the_sum_of_its_three_parts():
    batch = make_batch(LENGTHS, specs=("all", "hidden"))
    student = make_student("bert", config={"hidden_size": 20})
    learner = learner_of(
        student,
        {"kind": "soft_labels", "weight": 5, "temperature": 2},
        {"kind": "hard_tokens", "weight": 2},
        {"kind": "hidden_states", "loss": "cosine", "layers": [[4, 2]]},
        targets=("all", "hidden"),
    )
    output = full_output(student, batch)
    mask = batch.attention_mask
    teacher = dense_targets(batch.targets["all"], num_classes=VOCABULARY).log() / 2
    divergence = 4 * dense_kl(output.logits[mask].double() / 2, teacher_logits=teacher).mean()
    masked = cross_entropy(output.logits[batch.masked], batch.token_ids[batch.masked])
    hidden = batch.targets["hidden"].features.tensors["hidden.4"]
    cosine = (1 - cosine_similarity(output.hidden_states[2][mask], hidden)).mean()
    losses = learner(batch)
    assert learner.names == ("loss", "soft_labels_loss", "hard_tokens_loss", "hidden_states_loss")
    torch.testing.assert_close(losses["soft_labels_loss"].double(), divergence, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(losses["hard_tokens_loss"], masked)
    torch.testing.assert_close(losses["hidden_states_loss"], cosine)
    torch.testing.assert_close(losses["loss"].double(), 5 * divergence + 2 * masked + cosine, rtol=1e-5, atol=1e-5)


def test_tinybert_general_is_the_sum_over_layers_behind_one_projection():
    batch = make_batch(LENGTHS, specs=("hidden", "attention"))
    student = make_student("bert")
    learner = learner_of(
        student,
        {"kind": "hidden_states", "layers": [[0, 0], [2, 1], [4, 2]], "projection": "shared"},
        {"kind": "attention", "layers": [[2, 1], [4, 2]]},
        targets=("hidden", "attention"),
    )
    output = full_output(student, batch)
    (projection,) = learner.terms[0].projections
    hidden, vectors = batch.targets["hidden"].features.tensors, batch.targets["attention"].features.tensors
    expected_hidden, expected_attention = [], []
    for teacher_layer, student_layer in ((0, 0), (2, 1), (4, 2)):
        projected = projection(output.hidden_states[student_layer])[batch.attention_mask]
        expected_hidden.append((projected - hidden[f"hidden.{teacher_layer}"]).square().mean())
    for teacher_layer, student_layer in ((2, 1), (4, 2)):
        rows, start = [], 0
        for row, length in enumerate(LENGTHS):
            query, key = (
                vectors[f"{name}.{teacher_layer}"][start : start + length].view(length, 2, 12) for name in ("query", "key")
            )
            teacher = torch.einsum("qhd,khd->hqk", query, key) / 12**0.5
            query, key = (output.vectors[f"{name}.{student_layer}"][row, :length].view(length, 2, 8) for name in ("query", "key"))
            rows.append((torch.einsum("qhd,khd->hqk", query, key) / 8**0.5 - teacher).square().mean(dim=(0, 2)))
            start += length
        expected_attention.append(torch.cat(rows).mean())
    losses = learner(batch)
    torch.testing.assert_close(losses["hidden_states_loss"], torch.stack(expected_hidden).sum())
    torch.testing.assert_close(losses["attention_loss"], torch.stack(expected_attention).sum(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("target", ["attention", "relations"])
def test_minilm_relations(target):
    batch = make_batch(LENGTHS, specs=(target,))
    student = make_student("bert")
    kinds = ("query", "value")
    learner = learner_of(
        student,
        {"kind": "relations", "layers": [[4, 2]], "vectors": kinds, "num_relation_heads": 4},
        targets=(target,),
    )
    output = full_output(student, batch)
    tensors = batch.targets[target].features.tensors
    expected = 0.0
    for kind in kinds:
        start = 0
        for row, length in enumerate(LENGTHS):
            if target == "attention":
                heads = tensors[f"{kind}.4"][start : start + length].view(length, 4, 6)
                teacher = torch.einsum("qhd,khd->hqk", heads, heads) / 6**0.5
                start += length
            else:
                teacher = torch.zeros(4, length, length)
                for i in range(length):
                    for j in range(i + 1):
                        teacher[:, i, j] = teacher[:, j, i] = tensors[f"{kind}_relations.4"][start]
                        start += 1
            heads = output.vectors[f"{kind}.2"][row, :length].view(length, 4, 4)
            logits = torch.einsum("qhd,khd->hqk", heads, heads) / 4**0.5
            p, log_q = teacher.softmax(dim=2), logits.log_softmax(dim=2)
            expected = expected + (p * (p.log() - log_q)).sum(dim=2).mean(dim=0).sum()
    torch.testing.assert_close(learner(batch)["loss"], expected / sum(LENGTHS), rtol=1e-5, atol=1e-6)


def test_next_tokens_cached_drawn_and_hard():
    student = make_student("gpt2", head="causal_lm")
    batch = make_batch(LENGTHS, specs=("next", "drawn"), masks=False)
    learner = learner_of(
        student,
        {"kind": "soft_labels", "target": "next"},
        {"kind": "soft_labels", "target": "drawn", "weight": 0.5},
        {"kind": "hard_tokens", "weight": 0.25, "divisor": "tokens"},
        targets=("next", "drawn"),
        view=TOKENS,
    )
    output = full_output(student, batch)
    rows = [output.logits[row, : length - 1] for row, length in enumerate(LENGTHS)]
    logits = torch.cat(rows)
    tokens = torch.cat([batch.token_ids[row, 1:length] for row, length in enumerate(LENGTHS)])
    teacher = dense_targets(batch.targets["next"], num_classes=VOCABULARY).log()
    drawn = batch.targets["drawn"].soft_labels.class_ids
    expected = {
        "soft_labels_loss": dense_kl(logits.double(), teacher_logits=teacher).mean().float(),
        "soft_labels_loss_2": -logits.log_softmax(dim=1).gather(1, drawn).mean(),
        "hard_tokens_loss": cross_entropy(logits, tokens, reduction="sum") / sum(LENGTHS),
    }
    losses = learner(batch)
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, rtol=1e-5, atol=1e-6)
    assert losses["loss"].item() == pytest.approx(
        sum(weight * losses[name].item() for name, weight in zip(expected, (1, 0.5, 0.25), strict=True)), rel=1e-5
    )


def test_classifiers_and_embeddings():
    student = make_student("distilbert", head="sequence_classifier")
    batch = make_batch(LENGTHS, specs=("classes", "embeddings", "first", "mean"), masks=False)
    learner = learner_of(
        student,
        {"kind": "soft_labels"},
        {"kind": "hard_label"},
        {"kind": "embeddings", "projection": "shared", "loss": "mae"},
        {"kind": "hidden_states", "target": "first", "layers": [[4, 2]], "projection": "per_layer"},
        {"kind": "hidden_states", "target": "mean", "layers": [[4, 2]], "projection": "per_layer"},
        targets=("classes", "embeddings", "first", "mean"),
        view=TOKENS,
    )
    output = student(batch.input_ids, attention_mask=batch.attention_mask, wants=Wants(hidden_states=True, embedding=True))
    mask = batch.attention_mask[:, :, None]
    first, mean = (learner.terms[number].projections[0] for number in (3, 4))
    hidden = output.hidden_states[2]
    tensors = {name: batch.targets[name].features.tensors for name in ("embeddings", "first", "mean")}
    expected = {
        "hard_label_loss": cross_entropy(output.logits[1:], batch.labels[1:]),
        "embeddings_loss": (learner.terms[2].projection(output.embedding) - tensors["embeddings"]["embedding"]).abs().mean(),
        "hidden_states_loss": (first(hidden[:, 0]) - tensors["first"]["hidden.4"]).square().mean(),
        "hidden_states_loss_2": (mean((hidden * mask).sum(dim=1) / mask.sum(dim=1)) - tensors["mean"]["hidden.4"])
        .square()
        .mean(),
    }
    losses = learner(batch)
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, rtol=1e-5, atol=1e-6)
    assert output.logits.shape == (3, CLASSES)


@settings(max_examples=8, deadline=None)
@given(lengths=st.lists(st.integers(2, 10), min_size=1, max_size=4), padding=st.integers(0, 5), seed=st.integers(0, 9))
def test_padding_changes_nothing(lengths, padding, seed):
    targets = ("masked", "hidden", "attention", "relations")
    learner = learner_of(
        make_student("bert"),
        {"kind": "soft_labels", "temperature": 2},
        {"kind": "hard_tokens"},
        {"kind": "hidden_states", "layers": [[4, 2]], "projection": "shared", "divisor": "sequences"},
        {"kind": "attention", "layers": [[2, 1]], "loss": "map_kl", "divisor": "tokens"},
        {"kind": "relations", "layers": [[4, 2]], "target": "relations", "vectors": ["value"]},
        targets=targets,
    )
    batch = make_batch(lengths, specs=targets, seed=seed)
    padded = make_batch(lengths, specs=targets, seed=seed, padded_to=max(lengths) + padding)
    torch.testing.assert_close(gradients(learner, batch), gradients(learner, padded), rtol=2e-4, atol=2e-5)


def gradients(learner, batch):
    learner.zero_grad()
    losses = learner(batch)
    losses["loss"].backward()
    return losses | {name: parameter.grad for name, parameter in learner.named_parameters() if parameter.requires_grad}


def test_logits_are_computed_at_no_other_tokens_than_those_compared():
    batch = make_batch(LENGTHS, specs=("masked", "all"))
    student = make_student("bert")
    asked = []
    student.register_forward_pre_hook(lambda module, args, kwargs: asked.append(kwargs["wants"]), with_kwargs=True)
    shapes = []
    student.network.get_output_embeddings().register_forward_hook(
        lambda module, inputs, output: shapes.append(tuple(output.shape))
    )
    learner = learner_of(student, {"kind": "soft_labels", "target": "masked"}, {"kind": "hard_tokens"}, targets=("masked",))
    asked.clear(), shapes.clear()
    learner(batch)
    assert shapes == [(1, int(batch.masked.sum()), VOCABULARY)]
    learner = learner_of(student, {"kind": "soft_labels", "target": "all"}, {"kind": "hard_tokens"}, targets=("all",))
    shapes.clear()
    learner(batch)
    assert shapes == [(1, sum(LENGTHS), VOCABULARY)]
    learner = learner_of(student, {"kind": "hidden_states", "layers": [[4, 2]], "projection": "shared"}, targets=("hidden",))
    shapes.clear()
    learner(make_batch(LENGTHS, specs=("hidden",)))
    assert not shapes
    assert not asked[-1].vectors


def test_the_mean_over_processes_is_the_loss_of_the_whole_batch():
    lengths = [5, 9, 2, 4]
    names = ("masked", "hidden")
    learner = learner_of(
        make_student("bert"),
        {"kind": "soft_labels"},
        {"kind": "hidden_states", "layers": [[4, 2]], "projection": "shared"},
        targets=names,
    )
    whole = make_batch(lengths, specs=names)
    halves = [take(whole, slice(0, 1)), take(whole, slice(1, 4))]
    counts = torch.stack([learner.counts(half) for half in halves]).mean(dim=0)
    losses = [learner(half, counts=counts)["loss"] for half in halves]
    torch.testing.assert_close(torch.stack(losses).mean(), learner(whole)["loss"])


def take(batch, rows):
    """Return some sequences of a batch, padded as they were."""
    numbers = torch.arange(len(batch))[rows]
    targets = {}
    for name, found in batch.targets.items():
        keep = torch.isin(found.sequence, numbers)
        labels, features = found.soft_labels, found.features
        targets[name] = replace(
            found,
            sequence=found.sequence[keep] - numbers[0],
            position=found.position[keep],
            soft_labels=None
            if labels is None
            else SparseTargets(class_ids=labels.class_ids[keep], probs=labels.probs[keep], rest=labels.rest[keep]),
            features=None
            if features is None
            else FeatureTargets(tensors={name: values[keep] for name, values in features.tensors.items()}),
        )
    fields = {name: getattr(batch, name)[rows] for name in ("input_ids", "token_ids", "attention_mask", "masked", "labels")}
    return replace(batch, keys=batch.keys[rows], targets=targets, **fields)


def test_what_no_term_reaches_is_not_trained():
    student = make_student("bert")
    learner = learner_of(student, {"kind": "hidden_states", "layers": [[2, 1]], "projection": "shared"}, targets=("hidden",))
    frozen = {name for name, parameter in student.network.named_parameters() if not parameter.requires_grad}
    assert {name.rpartition(".")[0] for name in frozen} >= {
        "cls.predictions.transform.dense",
        "bert.encoder.layer.1.output.dense",
    }
    assert not any("embeddings" in name or "layer.0" in name for name in frozen)
    losses = learner(make_batch(LENGTHS, specs=("hidden",)))
    losses["loss"].backward()
    assert all((parameter.grad is not None) == parameter.requires_grad for parameter in learner.parameters())


def test_projections_are_in_the_state_and_not_in_the_student():
    learner = learner_of(
        make_student("bert"), {"kind": "hidden_states", "layers": [[4, 2]], "projection": "shared"}, targets=("hidden",)
    )
    names = learner.state_dict().keys()
    assert {"terms.0.projections.0.weight", "terms.0.projections.0.bias"} <= names
    assert not any("projections" in name for name in learner.student.state_dict())
    assert any(parameter.shape == (20, 16) for parameter in learner.parameters())


@pytest.mark.parametrize("loss", ["kl", "reverse_kl"])
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_a_kept_head_serves_dense_labels(name, loss):
    rng = np.random.default_rng(0)
    spec = HeadSpec(reads="every", operations=(Linear(inputs=20, outputs=VOCABULARY, bias=True),))
    tensors = {key: rng.normal(size=shape).astype(np.float32) for key, shape in spec.tensors.items()}
    head = HeadModule(FrozenHead(spec=spec, tensors=tensors))
    causal = name == "gpt2"
    student = make_student(name, head="causal_lm" if causal else "masked_lm")
    batch = make_batch(LENGTHS, specs=("hidden",), masks=not causal)
    learner = learner_of(
        student,
        {"kind": "soft_labels", "loss": loss},
        targets=("hidden",),
        view=TOKENS if causal else MASKED,
        heads={"hidden": head},
    )
    output = full_output(student, batch)
    hidden = torch.zeros(*batch.input_ids.shape, 20)
    rows = batch.targets["hidden"]
    hidden[rows.sequence, rows.position] = rows.features.tensors["hidden.4"]
    chosen = batch.masked
    if causal:
        chosen = torch.zeros_like(batch.attention_mask)
        chosen[:, :-1] = batch.attention_mask[:, 1:]
    teacher, found = head(hidden[chosen]), output.logits[chosen]
    forward = dense_kl(found, teacher_logits=teacher)
    expected = forward if loss == "kl" else dense_kl(teacher, teacher_logits=found)
    torch.testing.assert_close(learner(batch)["loss"], expected.mean(), rtol=1e-5, atol=1e-5)
    assert not any("head" in key and "terms" in key for key in learner.state_dict())


def test_half_precision_is_for_the_student_and_not_for_its_losses():
    names = ("masked", "hidden", "attention")
    learner = learner_of(
        make_student("bert"),
        {"kind": "soft_labels"},
        {"kind": "hidden_states", "layers": [[4, 2]], "projection": "shared"},
        {"kind": "attention", "layers": [[4, 2]], "loss": "map_kl"},
        targets=names,
    )
    batch = make_batch(LENGTHS, specs=names)
    expected = learner(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = learner(batch)
    found["loss"].backward()
    assert all(value.dtype == torch.float32 for value in found.values())
    assert all(parameter.grad.isfinite().all() for parameter in learner.parameters() if parameter.requires_grad)
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


def test_divergence_and_cross_entropy_of_draws_teach_the_same():
    student = make_student("gpt2", head="causal_lm")
    batch = make_batch(LENGTHS, specs=("drawn",), masks=False)
    found = []
    for loss in ("kl", "cross_entropy"):
        learner = learner_of(student, {"kind": "soft_labels", "loss": loss}, targets=("drawn",), view=TOKENS)
        found.append(gradients(learner, batch))
    for values in found:
        del values["loss"], values["soft_labels_loss"]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)
