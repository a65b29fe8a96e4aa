"""Students of texts: what is minimised, how they are evaluated and exported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from accelerate import Accelerator
from torch import Tensor, nn
from transformers.utils.logging import disable_progress_bar

from storage.errors import ConfigError
from storage.specs import MaskedTokensView
from student_training.task import Evaluated
from student_training.terms.interface import StudentShape
from student_training.terms.learner import learn
from student_training.text.collate import TextCollate
from student_training.text.evaluation import TextEvaluator
from student_training.text.interface import TextBatch
from student_training.text.job import TextJob
from student_training.text.objective import TextLearner, make_learner
from student_training.text.student_export import export_text_student
from student_training.text.students import create_text_student
from student_training.text.term_building import terms_of

_OF_LOGITS = ("soft_labels", "hard_tokens", "hard_label")


@dataclass(kw_only=True)
class TextTask:
    """See `student_training.task.Task`.

    Attributes:
        module: the student with its terms.
        evaluator: None without evaluation.
    """

    job: TextJob
    module: TextLearner
    collate: TextCollate
    evaluator: TextEvaluator | None
    samples: Literal["images", "sequences"] = "sequences"
    runs_teacher: bool = False
    trains_all: bool = True
    leaves_out: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the losses that are computed."""
        return self.module.names

    @property
    def evaluates(self) -> bool:
        """Whether there is anything to evaluate on."""
        return self.evaluator is not None

    def losses(self, module: nn.Module, batch: TextBatch, *, num_rows: float, accelerator: Accelerator) -> dict[str, Tensor]:
        """Return the losses of a batch: of several processes, divided by what a process has on average."""
        del num_rows
        return learn(module, batch.to(accelerator.device), accelerator=accelerator)

    def evaluate(self, module: nn.Module, *, accelerator: Accelerator) -> Evaluated:
        """Return accuracy or perplexity on the evaluation source."""
        assert self.evaluator is not None
        assert isinstance(module, TextLearner)
        return Evaluated(figures=self.evaluator.run(module.student, accelerator=accelerator))

    def export(self, module: nn.Module, *, folder: Path, weights: Literal["trained", "ema"]) -> None:
        """Write the student as others load it; what only the loss needs stays behind."""
        assert isinstance(module, TextLearner)
        # transformers would show a bar of its own, terminal or not.
        disable_progress_bar()  # type: ignore[no-untyped-call]
        export_text_student(
            module.student,
            folder=folder,
            config=self.job.training.text_student,
            view=self.job.view,
            weights=weights,
        )


def build_text_task(job: TextJob, *, accelerator: Accelerator) -> TextTask:
    """Return the task of a job, everything checked that can be; draws initial weights from torch's global generator.

    Raises:
        ConfigError: a setting cannot be run.
        SourceError: the evaluation source cannot be read.
    """
    training, view = job.training, job.view
    student = create_text_student(
        training.text_student,
        num_classes=job.num_classes,
        vocabulary_size=view.vocabulary_size,
        max_tokens=view.length,
    )
    terms = terms_of(training, targets=job.targets, shape=student.shape)
    learner = make_learner(
        student,
        terms,
        targets=job.targets,
        view=view,
        mean_class_probs=job.mean_class_probs,
        heads={name: head.to(accelerator.device) for name, head in job.heads.items()},
    )
    collate = TextCollate(max_length=view.length, num_classes=student.shape.num_classes if job.uses_labels else None)
    return TextTask(
        job=job,
        module=learner,
        collate=collate,
        evaluator=_build_evaluator(job, shape=student.shape, collate=collate),
        # Without logits, the head and perhaps the last layers get no gradient.
        trains_all=any(term.kind in _OF_LOGITS for term in terms),
    )


def _build_evaluator(job: TextJob, *, shape: StudentShape, collate: TextCollate) -> TextEvaluator | None:
    """Return the evaluation of a training, its source checked; None if there is none.

    Raises:
        ConfigError: the source's labels do not fit, or nothing would be measured.
        SourceError: it cannot be read.
    """
    evaluation = job.training.evaluation
    if evaluation is None or job.evaluation_stream is None:
        return None
    if shape.kind == "masked_lm" and not isinstance(job.view, MaskedTokensView):
        raise ConfigError(
            f"training.evaluation: a masked_lm is evaluated at masked tokens, and the views ({job.view.kind}) mask none; leave "
            "evaluation out, or use views.kind: masked_tokens"
        )
    evaluator = TextEvaluator(
        stream=job.evaluation_stream,
        shape=shape,
        collate=collate,
        batch_size=evaluation.batch_size or job.training.batch_size,
        loader_workers=job.training.loader_workers,
    )
    evaluator.check()
    return evaluator
