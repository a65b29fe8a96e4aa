"""Training on labels that were imported: refused, unless the config asks for its own fixed view."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from storage.cache import Cache
from storage.config import ExperimentConfig
from storage.errors import MismatchError
from storage.interchange import import_tinyvit
from student_training.experiment import run_experiment
from tests.storage.interchange.label_sets import draw_records, write_epoch
from tests.student_training.support import CLASSES, STUDENT, source_config, write_pictures


@pytest.fixture
def folder(tmp_path):
    """Pictures, and labels of two epochs imported for them."""
    write_pictures(tmp_path / "pictures", per_class=4)
    keys = [f"{name}/{number:03d}.png" for name in CLASSES for number in range(4)]
    rng = np.random.default_rng(0)
    for epoch in range(2):
        ids, probs = draw_records(rng, num=len(keys), num_classes=5, k=2)
        write_epoch(tmp_path / "logits", epoch=epoch, packages=[(keys, ids, probs)], k=2)
    config = ExperimentConfig.model_validate_json(json.dumps({"name": "x", "source": source_config(tmp_path / "pictures")}))
    import_tinyvit(
        str(tmp_path / "logits"),
        Cache.at(str(tmp_path / "cache")),
        name="published",
        teacher="clip",
        num_classes=5,
        image_size=(16, 16),
        source=config.source,
    )
    return tmp_path


def run(folder, *, terms=None, **sections):
    threads = torch.get_num_threads()
    said = []
    data = {
        "name": "student",
        "cache": str(folder / "cache"),
        "source": source_config(folder / "pictures"),
        "training": {
            "output": str(folder / "run"),
            "student": STUDENT,
            "targets": {"kind": "cached", "label_set": "published"},
            "epochs": 2,
            "batch_size": 4,
            "torch_threads": 1,
            "device": "cpu",
            "terms": terms,
        },
        **sections,
    }
    try:
        return run_experiment(ExperimentConfig.model_validate_json(json.dumps(data)), say=said.append), said
    finally:
        torch.set_num_threads(threads)


TERMS = [{"kind": "soft_labels", "rest": "mean"}, {"kind": "hard_label", "weight": 0.1}]


@pytest.mark.parametrize("terms", [None, TERMS], ids=["loss", "terms"])
@pytest.mark.parametrize("views", [{}, {"views": {"kind": "random_resized_crop", "count": 2}}])
def test_views_that_nobody_can_render_are_refused(folder, views, terms):
    with pytest.raises(
        MismatchError, match=r"views: the labels were imported \(tinyvit\) .* cannot be rendered here. Say views: {kind: eval"
    ):
        run(folder, terms=terms, **views)
    assert not (folder / "run").exists()


@pytest.mark.parametrize("terms", [None, TERMS], ids=["loss", "terms"])
def test_a_student_trains_with_a_fixed_view_when_the_config_says_so(folder, terms):
    result, said = run(folder, terms=terms, views={"kind": "evaluation"})
    assert result["steps"] == 6
    assert result["teacher_passes"] == 0
    assert (
        said[0] == "student: imported labels: the student sees one fixed view of each picture, not the views that the teacher saw"
    )
