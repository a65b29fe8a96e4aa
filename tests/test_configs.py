"""Every shipped experiment is valid, and says what it claims to say."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage.config import load_config
from student_training.demo import write_configs

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_loads(path):
    config = load_config(str(path))
    assert config.source is not None
    if config.training is None:
        assert config.teacher is not None


def test_digits_is_what_the_demo_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = write_configs(Path("runs/demo"), num_train=1347)
    assert load_config(str(files["distilled"])) == load_config(str(CONFIGS / "digits.yaml"))


@pytest.mark.parametrize("size", ["5m", "11m", "21m"])
def test_tinyvit_students_read_the_labels_that_are_made_for_them(size):
    labels = load_config(str(CONFIGS / "imagenet22k_labels.yaml"))
    student = load_config(str(CONFIGS / f"imagenet22k_tinyvit_{size}.yaml"))
    assert student.training.targets.label_set == labels.name
    assert student.cache == labels.cache
    assert student.source == labels.source
    assert student.training.epochs == labels.views.count
    assert (labels.target.k, labels.teacher.num_classes) == (100, 21841)
