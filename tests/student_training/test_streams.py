"""Streams for trainings without a cache."""

from __future__ import annotations

import json

import pytest

from storage.config import ExperimentConfig
from storage.errors import ConfigError
from student_training.streams import build_source_stream
from tests.student_training.support import make_config, source_config, write_pictures


def views_of(stream):
    blocks = stream.block_rows(epoch=0)
    return [int(stream.read(epoch=epoch, block_ids=blocks[:1] * 0, rows=blocks[:1] * 0).view_indices[0]) for epoch in range(4)]


def test_hard_labels_have_a_new_view_every_epoch_and_a_teacher_those_it_labelled(tmp_path):
    pictures = write_pictures(tmp_path / "pictures", per_class=2)
    for kind, expected in (("hard", [0, 1, 2, 3]), ("live", [0, 1, 0, 1])):
        data = make_config(pictures, tmp_path / "out", targets={"kind": kind}).model_dump(mode="json")
        data["views"] = {"kind": "random_resized_crop", "count": 2}
        config = ExperimentConfig.model_validate_json(json.dumps(data))
        assert views_of(build_source_stream(config)) == expected


def test_the_training_source_comes_first(tmp_path):
    pictures = write_pictures(tmp_path / "pictures", per_class=2)
    other = write_pictures(tmp_path / "other", per_class=3)
    assert build_source_stream(make_config(pictures, tmp_path)).block_rows(epoch=0).sum() == 6
    config = make_config(pictures, tmp_path, source=source_config(other), sample_fraction=1.0)
    assert build_source_stream(config).block_rows(epoch=0).sum() == 9


def test_a_config_without_training_is_an_error():
    with pytest.raises(ConfigError, match="no training section"):
        build_source_stream(ExperimentConfig(name="x"))
