"""Labels serve the teacher that made them: a config that names another is refused, before anything is trained."""

from __future__ import annotations

import shutil

import pytest
import safetensors.torch
import torch

from storage.cache import Cache
from storage.label_set import LabelSet
from tests.integration.support import refuse
from tests.integration.test_train_after_retry import TRAINING
from tests.pipelines.support import save_teacher, timm_teacher, write_config
from tests.pipelines.text.models import documents, save_model


@pytest.fixture
def labelled(command, made, tmp_path):
    """A config whose labels are made."""
    config = made(training={**TRAINING, "epochs": 1, "output": str(tmp_path / "run")})
    assert command("label", config).status == 0
    return config


def test_another_checkpoint_or_precision_is_refused(command, labelled, checkpoint, tmp_path):
    other = save_teacher(tmp_path / "t1.safetensors", seed=1)
    said = [f"teacher.checkpoint: the config names '{other}', the labels were made with '{checkpoint}' (sha256 "]
    refuse(command("train", labelled, "--set", f"teacher.checkpoint={other}"), status=1, saying=said)
    said = ["teacher.precision: the config asks for 'bf16', the label set holds 'fp32'", "Run decant label with this config"]
    refuse(command("train", labelled, "--set", "teacher.precision=bf16"), status=1, saying=said)
    assert not list((tmp_path / "run").glob("*.safetensors"))
    named = ("--set", f"teacher.checkpoint={other}", "--set", "training.targets.label_set=tiny")
    assert command("train", labelled, *named, "--json").json["steps"] == 6


def test_a_checkpoint_that_moved_or_was_saved_again_is_the_same_teacher(command, labelled, checkpoint, tmp_path, loads):
    moved = shutil.copy(checkpoint, tmp_path / "moved.safetensors")
    assert command("train", labelled, "--set", f"teacher.checkpoint={moved}").status == 0
    saved_again = tmp_path / "again.pt"
    torch.save(safetensors.torch.load_file(checkpoint), saved_again)
    again = ("--set", f"teacher.checkpoint={saved_again}")
    refuse(command("train", labelled, *again), status=1, saying=["teacher.checkpoint: "])
    assert command("label", labelled, *again).status == 0
    assert loads == ["timm"]
    assert command("train", labelled, *again).status == 0


def test_a_checkpoint_that_is_replaced_while_labels_are_made_is_not_recorded(command, made, tmp_path, monkeypatch):
    own = save_teacher(tmp_path / "own.safetensors")
    config = made(teacher=timm_teacher(own))
    monkeypatch.setattr("pipelines.label.keep_head", lambda run: save_teacher(own, seed=1))
    assert command("label", config).status == 0
    assert LabelSet.open(Cache.at(str(tmp_path / "cache")), name_or_id="tiny").manifest.teacher is None


def test_texts_of_another_model_are_refused(command, tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("".join(f"{text}\n" for text in documents(20)))
    one = save_model(tmp_path / "one", "bert")
    other = shutil.copytree(one, tmp_path / "other")
    weights = safetensors.torch.load_file(other / "model.safetensors")
    altered = {name: 2 * tensor for name, tensor in weights.items()}
    safetensors.torch.save_file(altered, other / "model.safetensors", metadata={"format": "pt"})
    data = {
        "name": "texts",
        "cache": str(tmp_path / "cache"),
        "source": {"kind": "text", "path": str(corpus), "unit_size": 10},
        "teacher": {"kind": "masked_lm", "name": str(one), "device": "cpu"},
        "views": {"kind": "masked_tokens", "length": 32},
        "target": {"k": 5},
        "generation": {"batch_size": 4, "torch_threads": 1},
        "training": {
            "output": str(tmp_path / "run"),
            "targets": {"kind": "cached"},
            "student": {"kind": "transformers", "head": "masked_lm", "path": str(one)},
            "terms": [{"kind": "soft_labels"}],
            "batch_size": 8,
            "epochs": 1,
            "device": "cpu",
            "torch_threads": 1,
        },
    }
    config = write_config(tmp_path / "config.json", data)
    assert command("label", config).status == 0
    said = [f"teacher.name: the config names '{other}', the labels were made by '{one}', whose model.safetensors was sha256 "]
    refuse(command("train", config, "--set", f"teacher.name={other}"), status=1, saying=said)
    refuse(command("train", config, "--set", "teacher.precision=bf16"), status=1, saying=["teacher.precision: "])
    moved = one.rename(tmp_path / "moved")
    here = ("--set", f"teacher.name={moved}", "--set", f"training.student.path={moved}")
    assert command("train", config, *here, "--json").json["steps"] == 2
