"""Build the parts of a training from its config."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from timm.utils.model_ema import ModelEmaV3

from student_training.data import BatchDataset, Share, load_batches
from student_training.identity import describe_run
from student_training.job import Job, TrainingJob
from student_training.left_out import DeadLetters
from student_training.loop import TrainingLoop
from student_training.optimization import create_optimizer, create_scheduler
from student_training.picture_terms.job import PictureTermsJob
from student_training.picture_terms.task import build_picture_terms_task
from student_training.pictures import build_picture_task
from student_training.plan import plan_training
from student_training.rendering import num_decode_threads
from student_training.rng import seed_generators
from student_training.runtime import count_local_processes
from student_training.task import Task
from student_training.text.job import TextJob
from student_training.text.task import build_text_task


def build_loop(job: Job, *, accelerator: Accelerator) -> TrainingLoop:
    """Return the loop before its first update, everything checked that can be.

    Seeds the global generators: all processes alike for the initial weights, each by itself for dropout.

    Raises:
        ConfigError: a setting cannot be run.
        SourceError: the evaluation source cannot be listed or read.
    """
    training = job.training
    if training.torch_threads is not None:
        torch.set_num_threads(training.torch_threads)
    seed_generators(training.seed)
    # What is made once of a source of texts, the other processes find.
    with accelerator.main_process_first() if isinstance(job, TextJob) else nullcontext():
        task = _build_task(job, accelerator=accelerator)
        plan = plan_training(
            job.stream, epochs=training.epochs, batch_size=training.batch_size, world_size=accelerator.num_processes
        )
    model = task.module
    model.to(accelerator.device)
    optimizer = create_optimizer(model, config=training.optimizer)
    scheduler = create_scheduler(
        optimizer, config=training.schedule, num_steps=plan.num_steps, steps_per_epoch=plan.steps_per_epoch
    )
    # Copied before accelerate wraps the network; the warm-up of the decay keeps short runs from averaging in their start.
    ema = None if training.ema_decay is None else ModelEmaV3(model, decay=training.ema_decay, use_warmup=True)
    if not task.trains_all:
        accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=True)
    prepared_model, prepared_optimizer = accelerator.prepare(model, optimizer)
    seed_generators(training.seed + accelerator.process_index)
    return TrainingLoop(
        config=training,
        accelerator=accelerator,
        task=task,
        model=prepared_model,
        optimizer=prepared_optimizer,
        scheduler=scheduler,
        ema=ema,
        plan=plan,
        identity=describe_run(job),
        dead_letters=DeadLetters(job.folder, limit=job.config.generation.dead_letter_limit, num_samples=plan.epoch_rows[0]),
    )


def _build_task(job: Job, *, accelerator: Accelerator) -> Task[Any]:
    match job:
        case TrainingJob():
            return build_picture_task(job, accelerator=accelerator)
        case PictureTermsJob():
            return build_picture_terms_task(job, accelerator=accelerator)
        case TextJob():
            return build_text_task(job, accelerator=accelerator)
        case _:
            raise TypeError(f"no task for a {type(job).__name__}")


def open_batches(job: Job, *, loop: TrainingLoop) -> Generator[Any, None, None]:
    """Return this process's batches from the loop's step on."""
    training, accelerator = job.training, loop.accelerator
    dataset: BatchDataset[Any, Any] = BatchDataset(
        job.stream,
        plan=loop.plan,
        collate=loop.task.collate,
        seed=training.seed,
        window_blocks=training.shuffle_window_blocks,
        start=loop.step,
        share=Share(rank=accelerator.process_index, world_size=accelerator.num_processes),
        num_threads=num_decode_threads(
            loader_workers=training.loader_workers, local_processes=count_local_processes(accelerator)
        ),
        lengths=job.stream.lengths if isinstance(job, TextJob) and training.group_by_length else None,
    )
    return load_batches(dataset, workers=training.loader_workers, pin_memory=accelerator.device.type == "cuda")
