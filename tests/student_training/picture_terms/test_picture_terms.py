"""Students of pictures show what timm's own tools show of them; what they cannot learn from is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from pydantic import TypeAdapter

from storage.config import load_config
from storage.config.terms import TermConfig
from storage.config.training import OptimizerConfig
from storage.errors import ConfigError, MismatchError
from storage.features import FeatureRows
from storage.specs import (
    AttentionSpec,
    EmbeddingsSpec,
    ExactCodec,
    Float16Codec,
    HiddenStatesSpec,
    Normalization,
    RelationsSpec,
    SoftLabelsSpec,
)
from storage.streams.aligned_rows import AlignedRows
from student_training.batch import Normalizer
from student_training.experiment import run_experiment
from student_training.objective import SparseTargets
from student_training.optimization import create_optimizer
from student_training.picture_terms.batch import PictureTermBatch, PictureTermCollate
from student_training.picture_terms.learner import make_picture_learner
from student_training.picture_terms.student import PictureStudent
from student_training.terms.interface import FeatureTargets, TargetRows, Wants
from tests.student_training.support import make_config, write_pictures

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
SIZE = (16, 16)
SIZES = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2}
NETWORKS = {
    "vit": ("test_vit", SIZES),
    "deit": ("deit_tiny_distilled_patch16_224", SIZES),
    "registers": ("test_vit", {**SIZES, "reg_tokens": 3, "qk_norm": True, "global_pool": "avg"}),
    "no class token": ("test_vit", {**SIZES, "class_token": False, "global_pool": "avg"}),
    "drops patches": ("test_vit", {**SIZES, "patch_drop_rate": 0.5}),
    "late class token": ("cait_xxs24_224", {**SIZES, "depth": 1}),
    "convolutions": ("test_resnet", {}),
    "relative positions": ("test_vit_relpos", {**SIZES, "class_token": True}),
}
SPECS = {
    "labels": SoftLabelsSpec(num_classes=3, k=2, codec=ExactCodec()),
    "hidden": HiddenStatesSpec(layers=(2, 4), tokens="all", width=20, codec=Float16Codec()),
    "first": HiddenStatesSpec(layers=(4,), tokens="first", width=16, codec=Float16Codec()),
    "mean": HiddenStatesSpec(layers=(4,), tokens="mean", width=16, codec=Float16Codec()),
    "attention": AttentionSpec(
        layers=(4,),
        vectors=("query", "key", "value"),
        num_heads=2,
        num_key_value_heads=2,
        head_width=12,
        causal=False,
        codec=Float16Codec(),
    ),
    "relations": RelationsSpec(layer=4, vectors=("value",), num_relation_heads=4, codec=Float16Codec()),
    "embeddings": EmbeddingsSpec(width=10, codec=Float16Codec()),
}
TERMS = TypeAdapter(tuple[TermConfig, ...])


def make_student(name, *, seed=0):
    torch.manual_seed(seed)
    network, kwargs = NETWORKS[name]
    size = (kwargs["img_size"],) * 2 if "img_size" in kwargs else (32, 32)
    return PictureStudent(timm.create_model(network, num_classes=3, **kwargs), size=size, num_classes=3)


def make_learner(student, *terms, targets, num_tokens=5, **options):
    return make_picture_learner(
        student,
        TERMS.validate_json(json.dumps(terms)),
        targets={name: SPECS[name] for name in targets},
        num_tokens={name: num_tokens for name in targets if name in ("hidden", "attention", "relations")},
        size=SIZE,
        normalize=Normalizer(Normalization(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)), device=torch.device("cpu")),
        **options,
    )


def make_batch(*targets, num=4, num_tokens=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name in targets:
        spec = SPECS[name]
        if isinstance(spec, SoftLabelsSpec):
            probs = torch.rand(num, 2, generator=generator) / 2
            labels = SparseTargets(class_ids=torch.tensor([[0, 2]] * num), probs=probs, rest=1 - probs.sum(dim=1))
            found[name] = TargetRows(spec=spec, sequence=torch.arange(num), position=torch.zeros(num), soft_labels=labels)
            continue
        each = num_tokens if getattr(spec, "per_token", False) else 1
        tensors = {key: torch.randn(num * each, width, generator=generator) for key, width in spec.tensors.items()}
        found[name] = TargetRows(
            spec=spec,
            sequence=torch.arange(num).repeat_interleave(each),
            position=torch.arange(each).repeat(num),
            features=FeatureTargets(tensors=tensors),
        )
    return PictureTermBatch(
        step=0,
        keys=[str(number) for number in range(num)],
        images=torch.randint(256, (num, 3, *SIZE), generator=generator, dtype=torch.uint8),
        labels=torch.tensor([0, -1, 2, 1])[:num],
        attention_mask=torch.ones(num, num_tokens, dtype=torch.bool),
        targets=found,
    )


@pytest.mark.parametrize("name", ["vit", "deit", "registers", "no class token"])
def test_what_is_shown_is_what_the_network_computes(name):
    student = make_student(name).eval()
    prefix = {"vit": 1, "deit": 2, "registers": 4, "no class token": 0}[name]
    shape = student.shape
    assert (shape.num_layers, shape.width, shape.num_heads, shape.head_width, shape.embedding_width) == (3, 16, 2, 8, 16)
    assert (shape.num_tokens, shape.num_prefix_tokens) == (4 + prefix, prefix)
    images = torch.randn(2, 3, *SIZE)
    vectors = tuple(f"{kind}.{layer}" for layer in (1, 3) for kind in ("query", "key", "value"))
    with torch.no_grad():
        output = student(images, wants=Wants(hidden_states=True, vectors=vectors, embedding=True))
        network = student.network
        features = network.forward_intermediates(images, output_fmt="NLC", return_prefix_tokens=True, norm=False)[1]
        torch.testing.assert_close(output.logits, network(images))
        torch.testing.assert_close(output.embedding, network.forward_head(network.forward_features(images), pre_logits=True))
        for layer, intermediate in enumerate(features, start=1):
            patches, prefixes = intermediate if isinstance(intermediate, tuple) else (intermediate, intermediate[:, :0])
            torch.testing.assert_close(output.hidden_states[layer], torch.cat([prefixes, patches], dim=1))
        for layer in (1, 3):
            block = network.blocks[layer - 1]
            attended = block.attn(block.norm1(output.hidden_states[layer - 1]))
            query, key, value = (
                output.vectors[f"{kind}.{layer}"].unflatten(2, (2, 8)).transpose(1, 2) for kind in ("query", "key", "value")
            )
            mixed = (query @ key.transpose(2, 3) / 8**0.5).softmax(dim=3) @ value
            torch.testing.assert_close(block.attn.proj(mixed.transpose(1, 2).flatten(2)), attended)


def test_other_networks_show_embeddings_and_logits_only():
    shape = make_student("convolutions").shape
    assert (shape.num_layers, shape.num_heads, shape.num_tokens) == (0, 0, 0)
    assert shape.embedding_width > 0
    shape = make_student("late class token").shape
    assert (shape.num_layers, shape.num_heads, shape.num_tokens, shape.num_prefix_tokens) == (1, 0, 4, 0)
    # Positions come between projection and dot product here.
    shape = make_student("relative positions").shape
    assert (shape.num_layers, shape.num_heads, shape.num_tokens) == (3, 0, 5)
    embeddings = {"kind": "embeddings", "projection": "shared"}
    learner = make_learner(make_student("convolutions"), embeddings, {"kind": "soft_labels"}, targets=("embeddings", "labels"))
    losses = learner(make_batch("embeddings", "labels", num_tokens=1))
    assert losses["loss"].isfinite()


def test_the_loss_is_the_sum_of_its_terms():
    student = make_student("vit").eval()
    learner = make_learner(
        student,
        {"kind": "soft_labels", "weight": 2},
        {"kind": "hard_label", "weight": 0.5},
        {"kind": "hidden_states", "target": "hidden", "layers": [[2, 1], [4, 3]], "projection": "per_layer"},
        {"kind": "hidden_states", "target": "first", "layers": [[4, 3]], "loss": "cosine"},
        {"kind": "hidden_states", "target": "mean", "layers": [[4, 3]], "divisor": "sequences"},
        {"kind": "relations", "target": "attention", "layers": [[4, 2]], "vectors": ["value"], "num_relation_heads": 4},
        targets=("labels", "hidden", "first", "mean", "attention"),
    )
    batch = make_batch("labels", "hidden", "first", "mean", "attention")
    with torch.no_grad():
        losses = learner(batch)
        images = (batch.images.float() / 255 - 0.5) / 0.5
        output = student(images, wants=Wants(hidden_states=True, vectors=("value.2",)))
    tensors = {name: rows.features.tensors for name, rows in batch.targets.items() if rows.features is not None}
    maps = learner.terms[2].projections
    hidden = sum(
        (projection(output.hidden_states[layer]).flatten(0, 1) - tensors["hidden"][f"hidden.{stored}"]).square().mean()
        for projection, (stored, layer) in zip(maps, [(2, 1), (4, 3)], strict=True)
    )
    states = output.hidden_states[3]
    first = 1 - torch.cosine_similarity(states[:, 0], tensors["first"]["hidden.4"]).mean()
    mean = (states.mean(dim=1) - tensors["mean"]["hidden.4"]).square().mean()
    teacher, mine = (
        vectors.reshape(4, 5, 4, -1).transpose(1, 2) for vectors in (tensors["attention"]["value.4"], output.vectors["value.2"])
    )
    p, log_q = (teacher @ teacher.mT / 6**0.5).softmax(dim=3), (mine @ mine.mT / 4**0.5).log_softmax(dim=3)
    relations = (p * (p.log() - log_q)).sum(dim=3).mean()
    hard = torch.nn.functional.cross_entropy(output.logits, batch.labels, ignore_index=-1)
    expected = {
        "hard_label_loss": hard,
        "hidden_states_loss": hidden,
        "hidden_states_loss_2": first,
        "hidden_states_loss_3": mean,
        "relations_loss": relations,
    }
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, rtol=1e-4, atol=1e-5)
    total = 2 * losses["soft_labels_loss"] + 0.5 * hard + hidden + first + mean + relations
    torch.testing.assert_close(losses["loss"], total, rtol=1e-4, atol=1e-5)


def test_the_mean_over_processes_is_the_loss_of_the_whole_batch():
    learner = make_learner(
        make_student("vit").eval(), {"kind": "hard_label"}, {"kind": "hidden_states", "layers": [[4, 3]]}, targets=("mean",)
    )
    whole = make_batch("mean")
    counts, losses = [], []
    for rows in (slice(0, 1), slice(1, 4)):
        half = part_of(whole, rows)
        counts.append(learner.counts(half))
    for rows in (slice(0, 1), slice(1, 4)):
        losses.append(learner(part_of(whole, rows), counts=torch.stack(counts).mean(dim=0))["loss"])
    torch.testing.assert_close(torch.stack(losses).mean(), learner(whole)["loss"])


def part_of(batch, rows):
    found = batch.targets["mean"]
    features = FeatureTargets(tensors={name: values[rows] for name, values in found.features.tensors.items()})
    number = len(features.tensors["hidden.4"])
    kept = TargetRows(spec=found.spec, sequence=torch.arange(number), position=torch.zeros(number).long(), features=features)
    return PictureTermBatch(
        step=0,
        keys=batch.keys[rows],
        images=batch.images[rows],
        labels=batch.labels[rows],
        attention_mask=batch.attention_mask[rows],
        targets={"mean": kept},
    )


def test_what_no_term_reaches_is_not_trained_and_projections_do_not_leave():
    learner = make_learner(
        make_student("vit"), {"kind": "hidden_states", "layers": [[4, 2]], "projection": "shared"}, targets=("hidden",)
    )
    frozen = {name for name, parameter in learner.network.named_parameters() if not parameter.requires_grad}
    assert {"head.weight", "norm.weight", "blocks.2.attn.qkv.weight"} <= frozen
    assert not any(name.startswith(("blocks.0", "blocks.1", "patch_embed", "pos_embed")) for name in frozen)
    learner.train()(make_batch("hidden"))["loss"].backward()
    assert all((parameter.grad is not None) == parameter.requires_grad for parameter in learner.parameters())
    assert "terms.0.projections.0.weight" in learner.state_dict()
    assert learner.network.state_dict().keys() == timm.create_model("test_vit", num_classes=3, **SIZES).state_dict().keys()


def test_half_precision_is_for_the_student_and_not_for_its_losses():
    targets = ("labels", "hidden", "attention")
    learner = make_learner(
        make_student("vit"),
        {"kind": "soft_labels"},
        {"kind": "hidden_states", "layers": [[4, 2]], "projection": "shared"},
        {"kind": "attention", "layers": [[4, 2]]},
        targets=targets,
    )
    batch = make_batch(*targets)
    expected = learner(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = learner(batch)
    found["loss"].backward()
    assert all(value.dtype == torch.float32 for value in found.values())
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("layer_decay", [None, 0.5])
def test_weights_decay_as_those_of_the_network_alone(layer_decay):
    student = make_student("vit")
    learner = make_learner(
        student,
        {"kind": "soft_labels"},
        {"kind": "hidden_states", "layers": [[4, 2]], "projection": "shared"},
        targets=("labels", "hidden"),
    )
    config = OptimizerConfig(layer_decay=layer_decay)
    rates = {}
    for module in (student.network, learner):
        for group in create_optimizer(module, config=config).param_groups:
            for parameter in group["params"]:
                rates.setdefault(parameter, []).append((group["weight_decay"], group.get("lr_scale", 1.0)))
    projection = learner.terms[1].projections[0]
    assert rates.pop(projection.weight) == [(0.05, 1.0)]
    assert rates.pop(projection.bias) == [(0.0, 1.0)]
    assert all(len(found) == 2 and found[0] == found[1] for found in rates.values())
    assert rates[student.network.pos_embed][0][0] == 0.0


HIDDEN = {"kind": "hidden_states", "layers": [[4, 2]], "projection": "shared"}
RELATED = {"kind": "relations", "layers": [[4, 2]], "vectors": ["value"]}
REFUSED = {
    "prefix tokens": ("deit", HIDDEN, "hidden", "holds 5 tokens a picture and the student has 6 (4 patches and 2 prefix tokens)"),
    "prefix tokens of relations": ("deit", RELATED, "relations", "prefix tokens (class, distillation and register tokens)"),
    "first token": ("no class token", HIDDEN, "first", "has no class token, so that its first one is a patch; give it one"),
    "dropped patches": (
        "drops patches",
        HIDDEN,
        "hidden",
        "the student drops patches while it is trained (kwargs.patch_drop_rate)",
    ),
    "no layers": ("convolutions", HIDDEN, "hidden", "shows no hidden states; use a vision transformer of timm (vit, deit)"),
    "no attention": (
        "relative positions",
        RELATED,
        "relations",
        "shows no attention vectors; use a vision transformer of timm (vit, deit), or",
    ),
    "layers": ("vit", {**HIDDEN, "layers": [[4, 4]]}, "hidden", "the student's layer 4, and its layers are 0 to 3"),
    "stored layers": ("vit", {**HIDDEN, "layers": [[3, 3]]}, "hidden", "the teacher's layer 3, and the target holds layers 2, 4"),
    "widths": ("vit", {**HIDDEN, "projection": "none"}, "hidden", "width 20 and the student's 16; set projection"),
    "relation heads": ("vit", {**RELATED, "num_relation_heads": 5}, "attention", "cannot be cut into 5 relation heads"),
    "embeddings": ("vit", {"kind": "embeddings"}, "embeddings", "width 10 and the student's 16; set projection: shared"),
    "positions": ("vit", {"kind": "soft_labels", "positions": "all"}, "labels", "a picture has one row of logits"),
    "tokens": ("vit", {"kind": "hard_tokens"}, "labels", "pictures have no tokens of a vocabulary to predict; use hard_label"),
    "no mean": ("vit", {"kind": "soft_labels", "rest": "mean"}, "labels", "hold no mean class probabilities"),
    "no target": ("vit", {"kind": "soft_labels"}, "hidden", "it needs a target of soft_labels, and the targets are hidden"),
}


@pytest.mark.parametrize(("network", "term", "target", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_served_is_refused(network, term, target, message):
    with pytest.raises(ConfigError) as caught:
        make_learner(make_student(network), term, targets=(target,))
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"training.terms.0 ({term['kind']}): ")


def test_pooled_targets_take_any_grid_and_prefix():
    for network in ("deit", "registers", "no class token", "drops patches"):
        learner = make_learner(make_student(network), HIDDEN, targets=("mean",))
        assert learner.train()(make_batch("mean", num_tokens=learner.student.shape.num_tokens))["loss"].isfinite(), network


def test_rows_that_do_not_fit_the_tokens_are_refused():
    spec = SPECS["hidden"]
    values = FeatureRows(tensors={name: np.zeros((8, width), dtype=np.float32) for name, width in spec.tensors.items()})
    rows = AlignedRows(target=spec, offsets=np.array([0, 4, 8]), values=values)
    with pytest.raises(
        MismatchError, match="target 'hidden' holds 4 rows of hidden_states a picture where the student's 5 tokens"
    ):
        PictureTermCollate(pictures=None, num_tokens=5)._check({"hidden": rows})


def test_hard_labels_alone_are_a_term_too(tmp_path):
    pictures = write_pictures(tmp_path / "pictures", per_class=4)
    said, results = [], {}
    for name, settings in {"terms": {"terms": [{"kind": "hard_label"}]}, "loss": {}}.items():
        config = make_config(pictures, tmp_path / name, evaluation=True, **settings)
        results[name] = run_experiment(config, say=said.append)
    assert results["terms"]["steps"] == results["loss"]["steps"] == 2
    assert results["terms"]["cross_entropy"] == pytest.approx(results["loss"]["cross_entropy"], rel=1e-4)
    assert results["terms"]["top1"] == results["loss"]["top1"]


def test_the_shipped_recipe_is_served():
    recipe = load_config(str(CONFIGS / "minivit_deit_tiny.yaml"))
    sizes = {"num_heads": 12, "num_key_value_heads": 12, "head_width": 64, "causal": False}
    labels, hidden, attention = (recipe.targets[name] for name in ("labels", "hidden", "attention"))
    targets = {
        "labels": SoftLabelsSpec(num_classes=1000, k=labels.k, codec=labels.codec),
        "hidden": HiddenStatesSpec(layers=hidden.layers, tokens=hidden.tokens, width=768, codec=hidden.codec),
        "attention": AttentionSpec(layers=attention.layers, vectors=attention.vectors, codec=attention.codec, **sizes),
    }
    network = timm.create_model(recipe.training.student.name, num_classes=1000)
    learner = make_picture_learner(
        PictureStudent(network, size=(224, 224), num_classes=1000),
        recipe.training.terms,
        targets=targets,
        num_tokens={"hidden": 197, "attention": 197},
        size=(224, 224),
        normalize=None,
    )
    assert {term.target for term in learner.terms} == {*targets, None}
    assert all(parameter.requires_grad for parameter in learner.parameters())
