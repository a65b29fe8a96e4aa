"""Students of pictures: timm networks on soft labels, hard labels or a live teacher."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from storage.errors import ConfigError
from storage.sources import open_source
from storage.streams.base import StreamRows
from storage.streams.source_stream import SourceStream
from student_training.batch import Batch, Normalizer
from student_training.class_names import require_same_classes
from student_training.data import Collate, PictureCollate
from student_training.evaluation import Evaluator
from student_training.export import export_student
from student_training.job import Job, LiveTeacher, TrainingJob
from student_training.objective import Objective, build_objective, count_labelled
from student_training.rendering import Renderer
from student_training.students import (
    Preprocessing,
    check_student,
    create_student,
    resolve_num_classes,
    resolve_preprocessing,
)
from student_training.task import Evaluated


@dataclass(kw_only=True)
class PictureTask:
    """See `student_training.task.Task`.

    Attributes:
        objective: what is minimised, on the device.
        preprocessing: the student's input.
        num_classes: classes of the student.
        normalize: pixels to input.
        evaluator: None without evaluation.
        teacher: None unless targets are live.
    """

    job: TrainingJob
    module: nn.Module
    objective: Objective
    preprocessing: Preprocessing
    num_classes: int
    normalize: Normalizer
    collate: Collate[StreamRows, Batch]
    evaluator: Evaluator | None
    teacher: LiveTeacher | None
    samples: Literal["images", "sequences"] = "images"
    trains_all: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the losses that are computed."""
        return self.objective.names

    @property
    def runs_teacher(self) -> bool:
        """Whether every row goes through a live teacher."""
        return self.teacher is not None

    @property
    def leaves_out(self) -> bool:
        """Whether batches go without pictures that cannot be read."""
        return self.job.training.targets.kind != "cached"

    @property
    def evaluates(self) -> bool:
        """Whether there is anything to evaluate on."""
        return self.evaluator is not None

    def losses(self, module: nn.Module, batch: Batch, *, num_rows: float, accelerator: Accelerator) -> dict[str, Tensor]:
        """Return the losses of a batch.

        Raises:
            ConfigError: the teacher has other classes than the student.
        """
        on_device = batch.to(accelerator.device)
        teacher_logits = self._ask_teacher(batch, device=accelerator.device)
        logits = module(self.normalize(on_device.images))
        if teacher_logits is not None and teacher_logits.shape != logits.shape:
            raise ConfigError(
                f"the teacher gave logits of shape {tuple(teacher_logits.shape)} and the student of shape {tuple(logits.shape)} "
                "for the same views: both must have the same classes; check training.student.num_classes and the teacher"
            )
        return self.objective(
            logits,
            labels=on_device.labels,
            targets=on_device.targets,
            teacher_logits=teacher_logits,
            num_rows=self._count_rows(batch, num_rows=num_rows, accelerator=accelerator),
            num_labelled=self._count_labelled(on_device.labels, accelerator=accelerator),
            present=on_device.present if self.leaves_out else None,
        )

    def _count_rows(self, batch: Batch, *, num_rows: float, accelerator: Accelerator) -> float:
        """Return the mean over processes of their rows that count, of which the distillation loss is a mean."""
        if not self.leaves_out or self.objective.hard_weight == 1:
            return num_rows
        count = torch.tensor(float(len(batch)), device=accelerator.device)
        return max(float(accelerator.reduce(count, reduction="mean")), 1e-9)

    def _ask_teacher(self, batch: Batch, *, device: torch.device) -> Tensor | None:
        if self.teacher is None or batch.teacher_views is None:
            return None
        with torch.no_grad():
            return self.teacher(batch.teacher_views.numpy()).to(device)

    def _count_labelled(self, labels: Tensor, *, accelerator: Accelerator) -> Tensor | None:
        """Return the mean over processes of their labelled rows; None where the objective can count for itself."""
        if accelerator.num_processes == 1 or self.objective.hard_weight == 0:
            return None
        count: Tensor = accelerator.reduce(count_labelled(labels), reduction="mean")
        return count

    def evaluate(self, module: nn.Module, *, accelerator: Accelerator) -> Evaluated:
        """Return accuracies and cross entropy on the evaluation source."""
        assert self.evaluator is not None
        return self.evaluator.run(module, accelerator=accelerator).evaluated()

    def export(self, module: nn.Module, *, folder: Path, weights: Literal["trained", "ema"]) -> None:
        """Write the student as timm loads it."""
        export_student(
            module,
            folder=folder,
            config=self.job.training.picture_student,
            num_classes=self.num_classes,
            preprocessing=self.preprocessing,
            weights=weights,
        )


def build_picture_task(job: TrainingJob, *, accelerator: Accelerator) -> PictureTask:
    """Return the task of a job, everything checked that can be; draws initial weights from torch's global generator.

    Raises:
        ConfigError: a setting cannot be run.
        SourceError: the evaluation source cannot be listed or read.
    """
    training, student = job.training, job.training.picture_student
    num_classes = resolve_num_classes(student, num_classes=job.num_classes, must_match=training.targets.kind != "hard")
    model = create_student(student, num_classes=num_classes)
    preprocessing = resolve_preprocessing(training.preprocessing, model=model, view=job.view)
    check_student(model, name=student.name, size=preprocessing.size, num_classes=num_classes)
    objective = build_objective(
        training.loss,
        kind=training.targets.kind,
        smoothing=training.targets.smoothing if training.targets.kind == "hard" else 0.0,
        generation_temperature=job.generation_temperature,
        mean_class_probs=job.mean_class_probs,
    )
    renderer = Renderer(
        view=job.view,
        size=preprocessing.size,
        max_pixels=job.config.generation.max_image_pixels,
        keep_teacher_views=job.teacher is not None,
        leaves_out=training.targets.kind != "cached",
    )
    return PictureTask(
        job=job,
        module=model,
        objective=objective.to(accelerator.device),
        preprocessing=preprocessing,
        num_classes=num_classes,
        normalize=Normalizer(preprocessing.normalization, device=accelerator.device),
        collate=PictureCollate(
            renderer=renderer, num_classes=num_classes, kind=training.targets.kind, uses_labels=job.uses_labels
        ),
        evaluator=build_evaluator(job, preprocessing=preprocessing, num_classes=num_classes),
        teacher=job.teacher,
    )


def build_evaluator(job: Job, *, preprocessing: Preprocessing, num_classes: int) -> Evaluator | None:
    """Return the evaluation of a training, its source checked; None if there is none.

    Raises:
        ConfigError: the source's labels do not fit, or are of other classes.
        SourceError: it cannot be listed or read.
    """
    evaluation = job.training.evaluation
    if evaluation is None:
        return None
    evaluator = Evaluator(
        stream=SourceStream(open_source(evaluation.source)),
        preprocessing=preprocessing,
        num_classes=num_classes,
        batch_size=evaluation.batch_size or job.training.batch_size,
        max_pixels=job.config.generation.max_image_pixels,
        loader_workers=job.training.loader_workers,
    )
    evaluator.check()
    require_same_classes(job, evaluated=evaluator.stream)
    return evaluator
