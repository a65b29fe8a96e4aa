"""Recipes over pictures from labels to students that learn from several targets, with real tiny vision transformers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import safetensors.torch
import timm
import torch

from storage.config import load_config
from storage.errors import MismatchError
from student_training.metrics import read_metrics
from student_training.picture_terms.experiment import make_picture_terms_job
from student_training.trainer import run_job
from tests.pipelines.support import experiment, folder_source, write_config

pytestmark = pytest.mark.integration

EXACT = {"kind": "float16"}
SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4}
NETWORKS = {
    "vit": ("test_vit", SIZES),
    "deit": ("deit_tiny_distilled_patch16_224", SIZES),
    "registers": ("test_vit", {**SIZES, "reg_tokens": 2, "qk_norm": True, "global_pool": "avg"}),
}
FEATURES = {
    "hidden": {"kind": "hidden_states", "layers": [0, 1, 2, 3], "codec": EXACT},
    "first": {"kind": "hidden_states", "layers": [3], "tokens": "first", "codec": EXACT},
    "mean": {"kind": "hidden_states", "layers": [3], "tokens": "mean", "codec": EXACT},
    "attention": {"kind": "attention", "layers": [1, 3], "codec": EXACT},
    "relations": {"kind": "relations", "layer": 3, "num_relation_heads": 8},
    "embeddings": {"kind": "embeddings", "codec": EXACT},
}
TERMS = {
    "soft_labels_loss": {"kind": "soft_labels", "temperature": 2.0},
    "soft_labels_loss_2": {"kind": "soft_labels", "loss": "reverse_kl"},
    "hidden_states_loss": {"kind": "hidden_states", "target": "hidden", "layers": [[0, 0], [1, 1], [3, 3]], "loss": "cosine"},
    "hidden_states_loss_2": {"kind": "hidden_states", "target": "hidden", "layers": [[0, 0], [2, 2], [3, 3]]},
    "hidden_states_loss_3": {"kind": "hidden_states", "target": "first", "layers": [[3, 3]]},
    "hidden_states_loss_4": {"kind": "hidden_states", "target": "mean", "layers": [[3, 3]], "loss": "mse"},
    "attention_loss": {"kind": "attention", "layers": [[1, 1], [3, 3]]},
    "attention_loss_2": {"kind": "attention", "layers": [[1, 1], [3, 3]], "loss": "map_kl"},
    "relations_loss": {"kind": "relations", "target": "attention", "layers": [[1, 1]], "num_relation_heads": 2},
    "relations_loss_2": {"kind": "relations", "target": "relations", "layers": [[3, 3]]},
    "embeddings_loss": {"kind": "embeddings"},
}


def save_network(path, name, kwargs, *, seed=0):
    """Write the weights of a tiny network, three times as large as fresh ones, so that its layers differ."""
    torch.manual_seed(seed)
    module = timm.create_model(name, num_classes=3, **kwargs)
    state = {key: tensor * (3 if tensor.ndim > 1 else 1) for key, tensor in module.state_dict().items()}
    safetensors.torch.save_file(state, path)
    return str(path)


@pytest.fixture
def made(tmp_path, pictures):
    """Write a config with a vision transformer as teacher; its parts can be changed."""

    def make(*, network="vit", training, **sections):
        name, kwargs = NETWORKS[network]
        checkpoint = tmp_path / f"{network}.safetensors"
        if not checkpoint.exists():
            save_network(checkpoint, name, kwargs)
        teacher = {"kind": "timm", "name": name, "checkpoint": str(checkpoint), "num_classes": 3, "kwargs": kwargs}
        data = experiment(
            cache=tmp_path / "cache", source=folder_source(pictures), teacher={**teacher, "device": "cpu"}, **sections
        )
        if "targets" in sections:
            data.pop("target", None)
        data["training"] = {
            "output": str(tmp_path / "run"),
            "targets": {"kind": "cached"},
            "batch_size": 8,
            "device": "cpu",
            "torch_threads": 1,
            "log_every_steps": 1,
            "epochs": 2,
            **training,
        }
        return write_config(tmp_path / "config.json", data)

    return make


def label_and_train(command, config):
    for word in ("label", "train"):
        ended = command(word, config, "--json")
        assert ended.status == 0, ended.err
    return ended.json


def training_lines(folder):
    return [line for line in read_metrics(folder / "metrics.jsonl") if line["kind"] == "training"]


def copying(network, *, terms, checkpoint, **training):
    """A training in which a network hardly moves."""
    name, kwargs = NETWORKS[network]
    return {
        "student": {"name": name, "kwargs": kwargs, "checkpoint": str(checkpoint)},
        "terms": list(terms.values()),
        "optimizer": {"learning_rate": 1e-9, "weight_decay": 0.0},
        **training,
    }


@pytest.mark.parametrize("network", NETWORKS)
def test_a_teacher_has_nothing_to_learn_from_its_own_labels(command, made, tmp_path, network):
    """Every loss of a copy of the teacher is what rounding leaves: views, tokens, layers and heads are those they should be."""
    features = FEATURES if network == "vit" else {name: FEATURES[name] for name in ("hidden", "attention", "embeddings")}
    terms = {name: term for name, term in TERMS.items() if term.get("target", "hidden") in features}
    targets = {"labels": {"codec": {"kind": "dense"}}, **features}
    training = copying(network, terms=terms, checkpoint=tmp_path / f"{network}.safetensors")
    label_and_train(command, made(network=network, targets=targets, training=training))
    lines = training_lines(tmp_path / "run")
    assert len(lines) == 6
    worst = {term: max(line[term] for line in lines) for term in terms}
    assert {term: value for term, value in worst.items() if value > 1e-4} == {}
    assert min(line["loss"] for line in lines) > -1e-6
    # Of another network they are not small.
    other = save_network(tmp_path / "other.safetensors", *NETWORKS[network], seed=1)
    training = copying(network, terms=terms, checkpoint=other, epochs=1, output=str(tmp_path / "other"))
    label_and_train(command, made(network=network, targets=targets, training=training))
    best = {term: min(line[term] for line in training_lines(tmp_path / "other")) for term in terms}
    assert {term: value for term, value in best.items() if value < 1e-3} == {}


STUDENT = {"name": "test_vit", "kwargs": {**SIZES, "embed_dim": 24, "depth": 2, "num_heads": 2, "drop_path_rate": 0.1}}
MINIVIT = {
    "targets": {
        "labels": {"codec": {"kind": "dense"}},
        "hidden": {"kind": "hidden_states", "layers": [1, 3]},
        "attention": {"kind": "attention", "layers": [3]},
    },
    "training": {
        "student": STUDENT,
        "terms": [
            {"kind": "soft_labels"},
            {"kind": "hard_label", "weight": 0.5},
            {"kind": "hidden_states", "layers": [[1, 1], [3, 2]], "projection": "shared", "weight": 0.1},
            {"kind": "relations", "layers": [[3, 2]], "num_relation_heads": 4},
        ],
        "optimizer": {"learning_rate": 3e-3},
        "schedule": {"name": "cosine", "warmup_epochs": 1},
        "clip_grad_norm": 5.0,
        "ema_decay": 0.9,
        "checkpoint_every_steps": 2,
    },
}


def changed(recipe, **training):
    return {**recipe, "training": {**recipe["training"], **training}}


def test_a_narrower_and_shallower_student_learns_from_three_targets(command, made, tmp_path, pictures):
    evaluation = {"source": folder_source(pictures), "every_epochs": 12}
    config = made(**changed(MINIVIT, epochs=12, evaluation=evaluation, ema_decay=None))
    result = label_and_train(command, config)
    lines = training_lines(tmp_path / "run")
    assert len(lines) == 36
    # The teacher knows nothing of the labels, so that soft and hard ones pull apart.
    for term in ("hard_label_loss", "hidden_states_loss", "relations_loss"):
        first, last = (sum(line[term] for line in part) / 6 for part in (lines[:6], lines[-6:]))
        assert last < 0.9 * first, term
    assert result["teacher_passes"] == 0
    assert result["top1"] > 0.5
    assert result["images_per_second"] > 0
    state = safetensors.torch.load_file(tmp_path / "run" / "model.safetensors")
    student = timm.create_model("test_vit", num_classes=3, **STUDENT["kwargs"])
    assert state.keys() == student.state_dict().keys()
    loaded = timm.create_model(f"local-dir:{tmp_path / 'run'}", pretrained=True)
    for key, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, state[key])


class StopTraining(Exception):
    pass


class StoppingStream:
    """Fails, as by Ctrl-C, when the rows of a step are read."""

    def __init__(self, stream, *, stop_at):
        self.stream = stream
        self.block_rows, self.identity = stream.block_rows, stream.identity
        self.left = stop_at

    def read(self, **arguments):
        if self.left == 0:
            raise StopTraining
        self.left -= 1
        return self.stream.read(**arguments)


def test_a_killed_training_goes_on_as_if_nothing_had_happened(command, made, tmp_path):
    config = made(**changed(MINIVIT, epochs=3))
    ended = command("label", config, "--json")
    assert ended.status == 0, ended.err

    def run(folder, *, stop_at=None, **changes):
        made(**changed(MINIVIT, epochs=3, output=str(tmp_path / folder), **changes))
        job = make_picture_terms_job(load_config(config))
        return run_job(job if stop_at is None else replace(job, stream=StoppingStream(job.stream, stop_at=stop_at)))

    run("straight")
    for stop_at in (5, 3):
        with pytest.raises(StopTraining):
            run("stopped", stop_at=stop_at)
    resumed = run("stopped", loader_workers=1)
    assert resumed.resumed_from_step == 6
    one, other = (safetensors.torch.load_file(tmp_path / folder / "model.safetensors") for folder in ("straight", "stopped"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    checkpoint = torch.load(tmp_path / "stopped" / "checkpoints" / "step-00000009.pt", weights_only=True)
    assert checkpoint["model"]["terms.2.projections.0.weight"].shape == (32, 24)
    with pytest.raises(MismatchError, match=r"training\.terms: .*'weight': 0\.2"):
        run("stopped", terms=[{**term, "weight": 0.2} for term in MINIVIT["training"]["terms"]])


def test_vectors_alone_are_enough(command, made, tmp_path):
    """MiniLMv2 for pictures: no soft labels are stored, and no head is trained. Half the size by half the patch is one grid."""
    kwargs = {**STUDENT["kwargs"], "img_size": 16, "patch_size": 4}
    training = {
        "student": {"name": "test_vit", "kwargs": kwargs},
        "preprocessing": {"size": [16, 16]},
        "terms": [{"kind": "relations", "layers": [[3, 2]], "num_relation_heads": 4}],
    }
    label_and_train(command, made(targets={"attention": MINIVIT["targets"]["attention"]}, training=training))
    torch.manual_seed(0)
    fresh = timm.create_model("test_vit", num_classes=3, **kwargs).state_dict()
    state = safetensors.torch.load_file(tmp_path / "run" / "model.safetensors")
    assert torch.equal(state["head.weight"], fresh["head.weight"])
    assert not torch.equal(state["blocks.1.attn.qkv.weight"], fresh["blocks.1.attn.qkv.weight"])


def test_drawn_labels_are_matched_at_the_temperature_of_the_draws(command, made, tmp_path):
    """At another one their gradient would be biased: of 0.8 drawn as 1, the square root of 1 is not that of 0.8."""
    training = {"student": {"name": "test_vit", "kwargs": SIZES}, "epochs": 1}
    drawn = {"target": {"k": None, "codec": {"kind": "sampled", "draws": 5}}}
    assert command("label", made(training=training, **drawn)).status == 0
    ended = command("train", made(training={**training, "loss": {"distillation_temperature": 2.0}}, **drawn))
    assert ended.status == 2, ended.err
    assert "training.loss.distillation_temperature is 2 and the labels were drawn at 1 (codec sampled)" in ended.err
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert command("train", made(training=training, **drawn)).status == 0


GRID = {**STUDENT, "kwargs": {**STUDENT["kwargs"], "patch_size": 16}}
HIDDEN = {"kind": "hidden_states", "layers": [[3, 2]], "projection": "shared"}
REFUSED = {
    "grid": (
        {"student": GRID},
        "target 'hidden' holds 17 tokens a picture and the student has 5 (4 patches and 1 prefix tokens)",
    ),
    "teacher's layer": ({"terms": [{**HIDDEN, "layers": [[2, 1]]}]}, "the teacher's layer 2, and the target holds layers 1, 3"),
    "student's layer": ({"terms": [{**HIDDEN, "layers": [[3, 3]]}]}, "the student's layer 3, and its layers are 0 to 2"),
    "widths": ({"terms": [{**HIDDEN, "projection": "none"}]}, "have width 32 and the student's 24; set projection"),
    "no such target": ({"terms": [{**HIDDEN, "target": "hiddn"}]}, "there is no target 'hiddn'; the experiment has labels"),
    "tokens": ({"terms": [{"kind": "hard_tokens"}]}, "pictures have no tokens of a vocabulary"),
    "convolutions": (
        {"student": {"name": "test_resnet"}, "terms": [HIDDEN]},
        "the student shows no hidden states; use a vision transformer of timm",
    ),
    "label sets without terms": (
        {"targets": {"kind": "cached", "label_sets": {"labels": "tiny.labels"}}, "terms": None},
        "training.targets.label_sets names label sets for training.terms, and there are none",
    ),
    "label set of other views": (
        {"targets": {"kind": "cached", "label_sets": {"labels": "tiny.labels", "hidden": "other.hidden"}}},
        "views.seed: the config asks for 0, the label set holds 9",
    ),
}


def test_what_cannot_be_served_is_refused_before_any_work(command, made, tmp_path):
    views = {"kind": "random_resized_crop", "count": 2, "scale": [0.3, 1.0], "seed": 9}
    hidden = {"hidden": MINIVIT["targets"]["hidden"]}
    other = {"name": "other", "targets": hidden, "views": views}
    for recipe in (MINIVIT, {**MINIVIT, **other}):
        assert command("label", made(**recipe)).status == 0
    for name, (changes, message) in REFUSED.items():
        training = {**MINIVIT["training"], "terms": [HIDDEN], **changes}
        recipe = {**MINIVIT, "training": training}
        ended = command("train", made(**recipe))
        assert ended.status == (1 if name == "label set of other views" else 2), name
        assert message in ended.err, name
        if name not in ("label set of other views", "label sets without terms", "no such target"):
            assert "training.terms.0 (" in ended.err, name
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
