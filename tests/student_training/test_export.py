"""Students leave as folders that timm loads whole, whatever they began from."""

from __future__ import annotations

import json

import pytest
import timm
import torch
from safetensors.torch import load_file

from student_training.trainer import train
from tests.student_training.support import STUDENT, VIEW, make_config, source_stream, write_pictures


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"), per_class=4)


def test_a_student_that_began_from_a_folder_leaves_as_one(pictures, tmp_path):
    """Its name says where its description lay; the network's name and arguments are what that description says."""
    train(make_config(pictures, tmp_path / "first", epochs=1), stream=source_stream(pictures), view=VIEW, num_classes=3)
    student = {"name": f"local-dir:{tmp_path / 'first'}", "pretrained": True, "kwargs": {"drop_path_rate": 0.1}}
    again = make_config(pictures, tmp_path / "second", epochs=1, student=student, optimizer={"learning_rate": 1e-9})
    train(again, stream=source_stream(pictures), view=VIEW, num_classes=3)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    torch.testing.assert_close(first, second, rtol=0, atol=1e-6)
    description = json.loads((tmp_path / "second" / "config.json").read_text())
    assert description["architecture"] == STUDENT["name"]
    assert description["model_args"] == {**STUDENT["kwargs"], "drop_path_rate": 0.1}
    (tmp_path / "first" / "config.json").unlink()
    whole = timm.create_model(f"local-dir:{tmp_path / 'second'}", pretrained=True)
    assert all(torch.equal(second[name], tensor) for name, tensor in whole.state_dict().items())
    plain = timm.create_model(
        description["architecture"],
        num_classes=3,
        checkpoint_path=tmp_path / "second" / "model.safetensors",
        **description["model_args"],
    )
    assert all(torch.equal(second[name], tensor) for name, tensor in plain.state_dict().items())


def test_a_name_with_weights_is_kept(pictures, tmp_path):
    student = {**STUDENT, "name": "test_vit.r160_in1k"}
    train(make_config(pictures, tmp_path, epochs=1, student=student), stream=source_stream(pictures), view=VIEW, num_classes=3)
    weights = load_file(tmp_path / "model.safetensors")
    whole = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert all(torch.equal(weights[name], tensor) for name, tensor in whole.state_dict().items())
