"""Evaluation counts every labelled picture once."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator

from storage.config import ImageFolderConfig
from storage.errors import ConfigError
from storage.sources import open_source
from storage.streams.source_stream import SourceStream
from student_training.evaluation import Evaluator
from student_training.students import Preprocessing
from tests.student_training.support import CLASSES, MAX_PIXELS, source_stream, write_pictures

PREPROCESSING = Preprocessing(
    size=(16, 16), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), interpolation="bilinear", crop_fraction=1.0, resize="squash"
)


class ColourStudent(torch.nn.Module):
    """Tells blue and red pictures by their mean colour; to it, green is the least likely of seven classes."""

    def forward(self, images):
        red, green, blue = images.mean(dim=(2, 3)).unbind(dim=1)
        return torch.stack([blue, green - 9, red, green - 2, green - 3, green - 4, green - 5], dim=1)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"), per_class=7)


def evaluator(stream, *, num_classes=7, **options):
    return Evaluator(
        stream=stream, preprocessing=PREPROCESSING, num_classes=num_classes, batch_size=4, max_pixels=MAX_PIXELS, **options
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_accuracy(pictures, workers):
    student = ColourStudent().train()
    accuracy = evaluator(source_stream(pictures), loader_workers=workers).run(student, accelerator=Accelerator(cpu=True))
    assert accuracy.num_rows == 21
    assert accuracy.top1 == pytest.approx(2 / 3)
    assert accuracy.top5 == pytest.approx(2 / 3)
    assert accuracy.cross_entropy > 0
    assert student.training


def test_pictures_without_a_label_are_not_counted(pictures):
    class Unlabelled(SourceStream):
        def read(self, **arguments):
            rows = super().read(**arguments)
            rows.labels[rows.labels == 1] = -1
            return rows

    source = open_source(ImageFolderConfig(kind="image_folder", path=str(pictures)))
    accuracy = evaluator(Unlabelled(source)).run(ColourStudent(), accelerator=Accelerator(cpu=True))
    assert (accuracy.num_rows, accuracy.top1) == (14, 1.0)


class KeepingStudent(ColourStudent):
    """Keeps what it makes of its weights until it is trained again, as TinyViT of timm 1.0.20 keeps its attention biases."""

    def __init__(self):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(7))
        self.kept = None

    def train(self, mode=True):
        super().train(mode)
        self.kept = None if mode else self.kept
        return self

    def forward(self, images):
        self.kept = 3 * self.bias if self.training or self.kept is None else self.kept
        return super().forward(images) + self.kept


def test_a_network_that_is_never_trained_is_evaluated_with_the_weights_it_has_now(pictures):
    """As a moving average is: its weights are moved between two evaluations, and it stays in evaluation mode."""
    average, evaluate = KeepingStudent().eval(), evaluator(source_stream(pictures))
    accuracies = []
    for bias in (0.0, 9.0):
        with torch.no_grad():
            average.bias[1] = bias
        accuracies.append(evaluate.run(average, accelerator=Accelerator(cpu=True)).top1)
    assert accuracies == pytest.approx([2 / 3, 1 / 3])
    assert not average.training


def test_the_source_is_checked_before_work_starts(pictures):
    evaluator(source_stream(pictures), num_classes=3).check()
    with pytest.raises(ConfigError, match=f"has label {len(CLASSES) - 1} but the student has 2 classes"):
        evaluator(source_stream(pictures), num_classes=2).check()
    unlabelled = open_source(ImageFolderConfig(kind="image_folder", path=str(pictures), labelled=False))
    with pytest.raises(ConfigError, match="holds no labels"):
        evaluator(SourceStream(unlabelled)).check()
