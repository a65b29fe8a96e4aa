"""Build the parts of a training from its config."""

from __future__ import annotations

from collections.abc import Generator

import torch
from accelerate import Accelerator
from timm.utils.model_ema import ModelEmaV3

from storage.sources import open_source
from storage.streams.source_stream import SourceStream
from student_training.batch import Batch, Normalizer
from student_training.data import Share, StepDataset, load_batches
from student_training.evaluation import Evaluator
from student_training.identity import describe_run
from student_training.job import TrainingJob
from student_training.loop import TrainingLoop
from student_training.objective import build_objective
from student_training.optimization import create_optimizer, create_scheduler
from student_training.plan import plan_training
from student_training.rendering import Renderer, num_decode_threads
from student_training.rng import seed_generators
from student_training.runtime import count_local_processes
from student_training.students import (
    Preprocessing,
    check_student,
    create_student,
    resolve_num_classes,
    resolve_preprocessing,
)


def build_loop(job: TrainingJob, *, accelerator: Accelerator) -> TrainingLoop:
    """Return the loop before its first update, everything checked that can be.

    Seeds the global generators: all processes alike for the initial weights, each by itself for dropout.

    Raises:
        ConfigError: a setting cannot be run.
        SourceError: the evaluation source cannot be listed or read.
    """
    training = job.training
    if training.torch_threads is not None:
        torch.set_num_threads(training.torch_threads)
    num_classes = resolve_num_classes(training.student, num_classes=job.num_classes, must_match=training.targets.kind != "hard")
    seed_generators(training.seed)
    model = create_student(training.student, num_classes=num_classes)
    preprocessing = resolve_preprocessing(training.preprocessing, model=model, view=job.view)
    check_student(model, name=training.student.name, size=preprocessing.size, num_classes=num_classes)
    plan = plan_training(job.stream, epochs=training.epochs, batch_size=training.batch_size, world_size=accelerator.num_processes)
    evaluator = build_evaluator(job, preprocessing=preprocessing, num_classes=num_classes)
    model.to(accelerator.device)
    optimizer = create_optimizer(model, config=training.optimizer)
    scheduler = create_scheduler(
        optimizer, config=training.schedule, num_steps=plan.num_steps, steps_per_epoch=plan.steps_per_epoch
    )
    # Copied before accelerate wraps the network; the warm-up of the decay keeps short runs from averaging in their start.
    ema = None if training.ema_decay is None else ModelEmaV3(model, decay=training.ema_decay, use_warmup=True)
    objective = build_objective(
        training.loss,
        kind=training.targets.kind,
        smoothing=training.targets.smoothing if training.targets.kind == "hard" else 0.0,
        generation_temperature=job.generation_temperature,
        mean_class_probs=job.mean_class_probs,
    )
    prepared_model, prepared_optimizer = accelerator.prepare(model, optimizer)
    seed_generators(training.seed + accelerator.process_index)
    return TrainingLoop(
        config=training,
        accelerator=accelerator,
        model=prepared_model,
        optimizer=prepared_optimizer,
        scheduler=scheduler,
        ema=ema,
        objective=objective.to(accelerator.device),
        preprocessing=preprocessing,
        num_classes=num_classes,
        normalize=Normalizer(preprocessing.normalization, device=accelerator.device),
        plan=plan,
        evaluator=evaluator,
        teacher=job.teacher,
        identity=describe_run(job),
    )


def build_evaluator(job: TrainingJob, *, preprocessing: Preprocessing, num_classes: int) -> Evaluator | None:
    """Return the evaluation of a training, its source checked; None if there is none.

    Raises:
        ConfigError: the source's labels do not fit.
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
    return evaluator


def open_batches(job: TrainingJob, *, loop: TrainingLoop) -> Generator[Batch, None, None]:
    """Return this process's batches from the loop's step on."""
    training, accelerator = job.training, loop.accelerator
    dataset = StepDataset(
        job.stream,
        plan=loop.plan,
        renderer=Renderer(
            view=job.view,
            size=loop.preprocessing.size,
            max_pixels=job.config.generation.max_image_pixels,
            keep_teacher_views=job.teacher is not None,
        ),
        seed=training.seed,
        window_blocks=training.shuffle_window_blocks,
        start=loop.step,
        share=Share(rank=accelerator.process_index, world_size=accelerator.num_processes),
        num_threads=num_decode_threads(
            loader_workers=training.loader_workers, local_processes=count_local_processes(accelerator)
        ),
        num_classes=loop.num_classes,
        kind=training.targets.kind,
        uses_labels=job.uses_labels,
    )
    return load_batches(dataset, workers=training.loader_workers, pin_memory=accelerator.device.type == "cuda")
