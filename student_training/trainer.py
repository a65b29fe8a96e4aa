"""Train a student: one function for cached, hard and live targets."""

from __future__ import annotations

import logging
import shutil
from contextlib import closing, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from accelerate import Accelerator
from accelerate.utils import gather_object

from storage.config.experiment import ExperimentConfig
from storage.errors import ConfigError, MismatchError
from storage.specs import ViewSpec
from storage.streams.base import RowStream, StreamRows
from student_training.assembly import build_loop, open_batches
from student_training.checkpoint import CheckpointStore
from student_training.export import (
    DESCRIPTION_FILE,
    RESULT_FILE,
    STUDENT_FILE,
    TrainingResult,
    read_result,
    write_result,
)
from student_training.failures import explained_failures
from student_training.hard_labels import require_hard_labels
from student_training.identity import describe_run, require_same_run
from student_training.job import Job, LiveTeacher, make_job
from student_training.left_out import DEAD_LETTERS_FILE
from student_training.loop import TrainingLoop, evaluation_settings
from student_training.metrics import METRICS_FILE, TENSORBOARD_FOLDER, MetricsLog
from student_training.output_folder import try_output, writing
from student_training.runtime import open_accelerator

logger = logging.getLogger(__name__)

_CHECKPOINT_FOLDER = "checkpoints"


def train(
    config: ExperimentConfig,
    *,
    stream: RowStream[StreamRows],
    view: ViewSpec,
    num_classes: int,
    generation_temperature: float = 1.0,
    mean_class_probs: npt.NDArray[np.floating[Any]] | None = None,
    teacher: LiveTeacher | None = None,
    resume: bool = True,
    progress: bool = True,
) -> TrainingResult:
    """Train a student and return what it came to; in several processes, each calls this and each gets the result.

    A killed run goes on from its last checkpoint: on the same number of processes, with the weights it would have had. A finished
    run is not run again. Batch norm statistics are those of each process's share of a batch; the main process's are evaluated and
    exported.

    Args:
        config: an experiment with a training section.
        stream: the rows: of a label set joined with its source for cached targets, else of the source.
        view: the views, as the teacher saw them.
        num_classes: classes of the targets.
        generation_temperature: temperature of the stored probabilities.
        mean_class_probs: [num_classes], mean probability of every class in the label set; for `loss.rest: mean`.
        teacher: for live targets: uint8 views [B, H, W, 3] to logits [B, C].
        resume: False clears what an earlier run left in the output folder.
        progress: show a bar, if standard error is a terminal.

    Raises:
        ConfigError: a setting cannot be run here; found before the first update.
        MismatchError: the output folder holds another run, or rows do not fit.
        DivergenceError: the loss is not finite, or weights are not.
        CorruptError: no checkpoint is whole, or stored labels are damaged.
        SourceError: a source cannot be read.
        SampleError: a picture that was labelled cannot be read.
        DeadLetterLimitError: of hard or live targets, or of an evaluation, more pictures cannot be read than may be.
        ViewMismatchError: the student would see other pixels than the teacher saw.
        OutputError: checkpoints, the log or the student cannot be written.
        ResourceError: a device has no memory left, or a loader process died.
    """
    job = make_job(
        config,
        stream=stream,
        view=view,
        num_classes=num_classes,
        generation_temperature=generation_temperature,
        mean_class_probs=mean_class_probs,
        teacher=teacher,
    )
    return run_job(job, resume=resume, progress=progress)


def run_job(job: Job, *, resume: bool = True, progress: bool = True) -> TrainingResult:
    """Run a training, of pictures or of texts, and return what it came to; see `train`."""
    try_output(job.folder, unless=RESULT_FILE)
    with (
        open_accelerator(job.training) as accelerator,
        explained_failures(job.training, num_processes=accelerator.num_processes),
    ):
        if not resume:
            _clear(job, accelerator=accelerator)
        finished = _find_finished(job, accelerator=accelerator)
        if finished is not None:
            logger.info("%s is finished after %d steps; nothing is left to do", job.folder, finished.steps)
            return finished
        require_hard_labels(job)
        loop = build_loop(job, accelerator=accelerator)
        store = CheckpointStore(job.folder / _CHECKPOINT_FOLDER, keep=job.training.keep_checkpoints)
        resumed_from_step = _resume(loop, store=store, job=job)
        log = (
            MetricsLog(
                job.folder,
                from_step=loop.step,
                num_steps=loop.plan.num_steps,
                progress=progress,
                evaluates_again=loop.evaluation_is_pending,
            )
            if accelerator.is_main_process
            else None
        )
        if accelerator.is_main_process:
            loop.dead_letters.write()
        with log or nullcontext(), closing(open_batches(job, loop=loop)) as batches:
            loop.run(batches, log=log, store=store)
        result = _summarize(loop, job=job, resumed_from_step=resumed_from_step)
        if accelerator.is_main_process:
            with writing("the student", folder=job.folder):
                loop.task.export(loop.exported, folder=job.folder, weights=result.weights)
                write_result(result, folder=job.folder, identity=loop.identity, evaluation=evaluation_settings(job.training))
        accelerator.wait_for_everyone()
        return result


def _clear(job: Job, *, accelerator: Accelerator) -> None:
    """Remove what an earlier run left, and nothing else."""
    if accelerator.is_main_process:
        with writing("a folder without the earlier run", folder=job.folder):
            for name in (RESULT_FILE, STUDENT_FILE, DESCRIPTION_FILE, METRICS_FILE, DEAD_LETTERS_FILE):
                (job.folder / name).unlink(missing_ok=True)
        for name in (_CHECKPOINT_FOLDER, TENSORBOARD_FOLDER):
            shutil.rmtree(job.folder / name, ignore_errors=True)
    accelerator.wait_for_everyone()


def _find_finished(job: Job, *, accelerator: Accelerator) -> TrainingResult | None:
    """Return the result of this run if it is finished.

    Raises:
        MismatchError: the folder holds another finished run, or this one evaluated otherwise.
    """
    found = read_result(job.folder)
    _require_shared(found is not None, job=job, accelerator=accelerator)
    if found is None:
        return None
    result, identity, evaluation = found
    require_same_run(identity, asked=describe_run(job), where=str(job.folder))
    asked = evaluation_settings(job.training)
    if evaluation != asked:
        raise MismatchError(
            f"{job.folder} holds this run, finished, but it was evaluated with {evaluation} and training.evaluation is now "
            f"{asked}; put that back, or give another training.output"
        )
    return replace(result, already_finished=True)


def _resume(loop: TrainingLoop, *, store: CheckpointStore, job: Job) -> int:
    """Load the newest checkpoint, if there is one, and return its step.

    Raises:
        MismatchError: it belongs to another run.
        CorruptError: there are checkpoints, but none is whole.
    """
    # The main process sets damaged checkpoints aside before the others look.
    with loop.accelerator.main_process_first():
        state = store.load_newest()
    _require_shared(None if state is None else state["step"], job=job, accelerator=loop.accelerator)
    if state is None:
        return 0
    require_same_run(state["identity"], asked=loop.identity, where=str(job.folder))
    loop.load_state(state)
    logger.info("%s goes on from step %d of %d", job.folder, loop.step, loop.plan.num_steps)
    return loop.step


def _require_shared(found: Any, *, job: Job, accelerator: Accelerator) -> None:
    """Check that all processes found the same in the output folder.

    Raises:
        ConfigError: they did not.
    """
    everyone = gather_object([found])
    if any(other != found for other in everyone):
        raise ConfigError(
            f"the {accelerator.num_processes} processes do not see the same files in {job.folder} ({everyone}); "
            "training.output must be on a file system that all machines share"
        )


def _summarize(loop: TrainingLoop, *, job: Job, resumed_from_step: int) -> TrainingResult:
    figures = loop.figures or {}
    return TrainingResult(
        output=str(job.folder),
        student=str(job.folder / STUDENT_FILE),
        metrics=str(job.folder / METRICS_FILE),
        weights="trained" if loop.ema is None else "ema",
        steps=loop.step,
        epochs=job.training.epochs,
        loss=None if loop.last_losses is None else loop.last_losses["loss"],
        top1=figures.get("top1"),
        top5=figures.get("top5"),
        cross_entropy=figures.get("cross_entropy"),
        num_evaluated=int(figures.get("num_rows", 0)),
        images_per_second=loop.steady_samples_per_second if loop.task.samples == "images" else None,
        teacher_passes=loop.teacher_passes,
        seconds=loop.elapsed_seconds,
        resumed_from_step=resumed_from_step,
        already_finished=False,
        perplexity=figures.get("perplexity"),
        sequences_per_second=loop.steady_samples_per_second if loop.task.samples == "sequences" else None,
        num_left_out=loop.dead_letters.count("training"),
        num_left_out_of_evaluation=loop.dead_letters.count("evaluation"),
    )
