"""A device nobody has is a wrong config, whatever is there and whether or not the teacher is needed."""

from __future__ import annotations

import pytest

from storage.config.load import parse_config
from storage.errors import ConfigError

TRAINING = {"output": "runs/x", "student": {"name": "vit_tiny_patch16_224"}, "targets": {"kind": "hard"}}


def parse(*, teacher="auto", training="auto"):
    return parse_config(
        {
            "name": "x",
            "source": {"kind": "image_folder", "path": "pictures"},
            "teacher": {"kind": "timm", "name": "y", "device": teacher},
            "training": {**TRAINING, "device": training},
        },
        origin="x.yaml",
    )


@pytest.mark.parametrize("name", ["auto", "cpu", "cuda", "cuda:0", "cuda:17", "mps"])
def test_devices_of_teachers(name):
    assert parse(teacher=name).teacher.device == name


@pytest.mark.parametrize(
    ("name", "meant"), [("gpu", "cpu"), ("cdua", "cuda"), ("CPU", "cpu"), ("cuda:x", "cuda:0"), ("cuda:-1", "cuda")]
)
def test_a_teacher_has_no_other(name, meant):
    with pytest.raises(ConfigError, match=rf"teacher.device: there is no device '{name}'. .*{meant}"):
        parse(teacher=name)


@pytest.mark.parametrize("name", ["gpu", "cuda:1", "mps"])
def test_training_has_no_other_than_cpu_and_cuda(name):
    with pytest.raises(
        ConfigError, match=rf"training.device: there is no device '{name}'; valid are auto, cpu and cuda. Choose one"
    ):
        parse(training=name)
