"""Weights as a model's authors published them: put into timm's names by timm's own filter, or refused."""

from __future__ import annotations

import pytest
import timm
import torch

from pipelines.teachers.weights import load_weights, read_checkpoint, weights_sha256
from storage.errors import TeacherError

TINY_VIT = {"embed_dims": [16, 16, 16, 16], "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1]}


def tiny_vit(*, seed, window=4):
    torch.manual_seed(seed)
    module = timm.create_model("tiny_vit_5m_224", num_classes=3, window_sizes=[window] * 4, **TINY_VIT)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)  # tables of positions begin as zeros
    return module


def save_original(path, module):
    """What TinyViT's own code saves: index tables of its attention, under `model`."""
    state = module.state_dict()
    tables = {
        name.replace("attention_biases", "attention_bias_idxs"): torch.arange(9) for name in state if "attention_biases" in name
    }
    assert tables
    torch.save({"model": {**state, **tables}}, path)
    return str(path)


def test_an_original_checkpoint_is_the_same_teacher(tmp_path):
    own, other = tiny_vit(seed=0), tiny_vit(seed=1)
    path = save_original(tmp_path / "original.pth", own)
    load_weights(other, read_checkpoint(path), checkpoint=path, name="tiny_vit_5m_224")
    assert weights_sha256(other) == weights_sha256(own)


def test_weights_that_a_filter_would_resample_are_refused(tmp_path):
    path = save_original(tmp_path / "original.pth", tiny_vit(seed=0, window=3))
    other = tiny_vit(seed=1)
    before = weights_sha256(other)
    with pytest.raises(TeacherError, match="does not fit tiny_vit_5m_224, so nothing was loaded"):
        load_weights(other, read_checkpoint(path), checkpoint=path, name="tiny_vit_5m_224")
    assert weights_sha256(other) == before


def test_weights_of_another_model_are_refused_as_before(tmp_path):
    path = tmp_path / "other.pth"
    torch.save(timm.create_model("test_vit", num_classes=3).state_dict(), path)
    with pytest.raises(TeacherError, match="No name is shared"):
        load_weights(tiny_vit(seed=0), read_checkpoint(str(path)), checkpoint=str(path), name="tiny_vit_5m_224")
