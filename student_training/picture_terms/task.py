"""Students of pictures on several targets: what is minimised, how they are evaluated and exported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from accelerate import Accelerator
from torch import Tensor, nn

from student_training.batch import Normalizer
from student_training.data import PictureCollate
from student_training.evaluation import Evaluator
from student_training.export import export_student
from student_training.picture_terms.batch import PictureTermBatch, PictureTermCollate
from student_training.picture_terms.job import PictureTermsJob
from student_training.picture_terms.learner import PictureLearner, make_picture_learner
from student_training.picture_terms.student import PictureStudent
from student_training.pictures import build_evaluator
from student_training.rendering import Renderer
from student_training.students import (
    Preprocessing,
    check_student,
    create_student,
    resolve_num_classes,
    resolve_preprocessing,
)
from student_training.task import Evaluated
from student_training.terms.learner import learn


@dataclass(kw_only=True)
class PictureTermsTask:
    """See `student_training.task.Task`.

    Attributes:
        module: the student with its terms.
        preprocessing: the student's input.
        num_classes: classes of the student.
        evaluator: None without evaluation.
    """

    job: PictureTermsJob
    module: PictureLearner
    collate: PictureTermCollate
    preprocessing: Preprocessing
    num_classes: int
    evaluator: Evaluator | None
    samples: Literal["images", "sequences"] = "images"
    runs_teacher: bool = False
    trains_all: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the losses that are computed."""
        return self.module.names

    @property
    def leaves_out(self) -> bool:
        """Whether batches go without pictures that cannot be read."""
        return self.job.training.targets.kind != "cached"

    @property
    def evaluates(self) -> bool:
        """Whether there is anything to evaluate on."""
        return self.evaluator is not None

    def losses(
        self, module: nn.Module, batch: PictureTermBatch, *, num_rows: float, accelerator: Accelerator
    ) -> dict[str, Tensor]:
        """Return the losses of a batch: of several processes, divided by what a process has on average."""
        del num_rows
        return learn(module, batch.to(accelerator.device), accelerator=accelerator)

    def evaluate(self, module: nn.Module, *, accelerator: Accelerator) -> Evaluated:
        """Return accuracies and cross entropy on the evaluation source."""
        assert self.evaluator is not None
        assert isinstance(module, PictureLearner)
        return self.evaluator.run(module.network, accelerator=accelerator).evaluated()

    def export(self, module: nn.Module, *, folder: Path, weights: Literal["trained", "ema"]) -> None:
        """Write the student as timm loads it; what only the loss needs stays behind."""
        assert isinstance(module, PictureLearner)
        export_student(
            module.network,
            folder=folder,
            config=self.job.training.picture_student,
            num_classes=self.num_classes,
            preprocessing=self.preprocessing,
            weights=weights,
        )


def build_picture_terms_task(job: PictureTermsJob, *, accelerator: Accelerator) -> PictureTermsTask:
    """Return the task of a job, everything checked that can be; draws initial weights from torch's global generator.

    Raises:
        ConfigError: a setting cannot be run.
        SourceError: the evaluation source cannot be listed or read.
    """
    training, config = job.training, job.training.picture_student
    assert training.terms is not None
    num_classes = resolve_num_classes(config, num_classes=job.num_classes, must_match=job.reads_soft_labels)
    network = create_student(config, num_classes=num_classes)
    preprocessing = resolve_preprocessing(training.preprocessing, model=network, view=job.view)
    check_student(network, name=config.name, size=preprocessing.size, num_classes=num_classes)
    student = PictureStudent(network, size=preprocessing.size, num_classes=num_classes)
    learner = make_picture_learner(
        student,
        training.terms,
        targets=job.targets,
        num_tokens=job.num_tokens,
        size=preprocessing.size,
        normalize=Normalizer(preprocessing.normalization, device=accelerator.device),
        mean_class_probs=job.mean_class_probs,
    )
    pictures = PictureCollate(
        renderer=Renderer(
            view=job.view,
            size=preprocessing.size,
            max_pixels=job.config.generation.max_image_pixels,
            leaves_out=training.targets.kind != "cached",
        ),
        num_classes=num_classes,
        kind="hard",
        uses_labels=job.uses_labels,
    )
    return PictureTermsTask(
        job=job,
        module=learner,
        collate=PictureTermCollate(pictures=pictures, num_tokens=student.shape.num_tokens),
        preprocessing=preprocessing,
        num_classes=num_classes,
        evaluator=build_evaluator(job, preprocessing=preprocessing, num_classes=num_classes),
    )
