"""Labels of an evaluation mean what they mean to the student."""

from __future__ import annotations

import json
import shutil

import pytest

from storage.config import ExperimentConfig
from storage.errors import ConfigError
from student_training.experiment import run_experiment
from tests.student_training.support import CLASSES, STUDENT, source_config, write_pictures


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"), per_class=4)


def run(pictures, folder, *, evaluated, classes=None, **training):
    section = {
        "output": str(folder / "run"),
        "student": STUDENT,
        "targets": {"kind": "hard"},
        "views": {"kind": "random_resized_crop", "count": 1, "size": [16, 16]},
        "evaluation": {"source": {**source_config(evaluated), "classes": classes}},
        "batch_size": 4,
        "torch_threads": 1,
        "device": "cpu",
        **training,
    }
    views = section.pop("views")
    data = {"name": "test", "source": source_config(pictures), "views": views, "training": section}
    return run_experiment(ExperimentConfig.model_validate_json(json.dumps(data)), say=lambda line: None)


@pytest.mark.parametrize("terms", [None, [{"kind": "hard_label"}]], ids=["loss", "terms"])
def test_a_folder_that_lacks_a_class_would_give_the_others_other_labels(pictures, tmp_path, terms):
    shutil.copytree(pictures, tmp_path / "test")
    shutil.rmtree(tmp_path / "test" / CLASSES[0])
    with pytest.raises(ConfigError, match=r"class 'green' has label 0 in training.evaluation.source and 1 in source, so accur"):
        run(pictures, tmp_path, evaluated=tmp_path / "test", terms=terms)
    assert not (tmp_path / "run").exists()
    found = run(pictures, tmp_path, evaluated=tmp_path / "test", classes=list(CLASSES), terms=terms)
    assert found["num_evaluated"] == 8


def test_folders_of_other_names_may_have_the_same_order(pictures, tmp_path):
    for name in CLASSES:
        shutil.copytree(pictures / name, tmp_path / "test" / f"{name}ish")
    assert run(pictures, tmp_path, evaluated=tmp_path / "test")["num_evaluated"] == 12
