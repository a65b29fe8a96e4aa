"""The training loop: updates, reports, evaluations and checkpoints, from any step on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object
from timm.scheduler.scheduler import Scheduler
from timm.utils.model_ema import ModelEmaV3
from torch import nn

from storage.config.training import TrainingConfig
from student_training.checkpoint import CheckpointStore
from student_training.left_out import DeadLetters
from student_training.meters import LossGuard, LossMeter, Throughput, require_finite_weights
from student_training.metrics import MetricsLog
from student_training.plan import StepPlan
from student_training.rng import capture_generators, restore_generators
from student_training.task import Figures, Task


def evaluation_settings(config: TrainingConfig) -> Any:
    """Return what an accuracy depends on beside the student, as JSON data; None without evaluation."""
    return None if config.evaluation is None else config.evaluation.model_dump(mode="json", exclude={"batch_size"})


@dataclass(kw_only=True)
class TrainingLoop:
    """Everything that changes while a student trains, and the updates that change it.

    Attributes:
        config: the training section.
        accelerator: device, precision, processes.
        task: what is done with a batch, and how a student is evaluated and exported.
        model: as `Accelerator.prepare` gives it.
        optimizer: likewise.
        scheduler: of the optimiser's learning rates; called after every update.
        ema: moving average of the weights.
        plan: steps of the training.
        identity: of the run, stored with its checkpoints.
        dead_letters: pictures that could not be read.
        step: updates done.
        teacher_passes: rows the teacher ran on, over all processes.
        figures: of the last evaluation.
        evaluated_step: updates that had been done then; None: nothing was evaluated.
        last_losses: of the last report.
        seconds: of earlier sessions.
        samples_per_second: steady speed of an earlier session.
    """

    config: TrainingConfig
    accelerator: Accelerator
    task: Task[Any]
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Scheduler
    ema: ModelEmaV3 | None
    plan: StepPlan
    identity: dict[str, Any]
    dead_letters: DeadLetters
    step: int = 0
    teacher_passes: int = 0
    figures: Figures | None = None
    evaluated_step: int | None = None
    last_losses: dict[str, float] | None = None
    seconds: float = 0.0
    samples_per_second: float = 0.0

    def __post_init__(self) -> None:
        device = self.accelerator.device
        self.student: nn.Module = self.accelerator.unwrap_model(self.model)
        self.guard = LossGuard()
        self.meter = LossMeter(self.task.names, device=device)
        self.throughput = Throughput(device=device, skip_steps=0)
        self.started = time.perf_counter()

    @property
    def exported(self) -> nn.Module:
        """The network that is evaluated and exported: the moving average where there is one."""
        if self.ema is None:
            return self.student
        averaged: nn.Module = self.ema.module
        return averaged

    @property
    def elapsed_seconds(self) -> float:
        """Time of all sessions so far."""
        return self.seconds + time.perf_counter() - self.started

    @property
    def steady_samples_per_second(self) -> float:
        """Speed of this session, or of the one before where this one made no update."""
        return self.throughput.steady() or self.samples_per_second

    @property
    def speed_name(self) -> str:
        """What the speed is called in metrics and checkpoints."""
        return f"{self.task.samples}_per_second"

    def run(self, batches: Iterator[Any], *, log: MetricsLog | None, store: CheckpointStore) -> None:
        """Make every update that is left.

        Args:
            batches: this process's share, from `step` on.
            log: of the main process.
            store: where checkpoints go.

        Raises:
            DecantError: loss or weights are not finite, a sample, label or view is not what it should be, or nothing can be
                written.
        """
        # A checkpoint is written before the student is evaluated, so that what goes wrong there costs no training.
        if self.evaluation_is_pending:
            self._evaluate(log)
        steps_left = self.plan.num_steps - self.step
        self.throughput = Throughput(device=self.accelerator.device, skip_steps=min(10, steps_left // 4))
        self.model.train()
        for batch in batches:
            learning_rate = max(group["lr"] for group in self.optimizer.param_groups)
            self._update(batch)
            _, inside = self.plan.position(self.step)
            if log is not None:
                log.advance()
            if self.step % self.config.log_every_steps == 0 or self.step == self.plan.num_steps:
                self._report(log, learning_rate=learning_rate)
            if self._checkpoint_is_due(inside):
                self._save(store)
            if self.evaluation_is_pending:
                self._evaluate(log)

    def _update(self, batch: Any) -> None:
        num_rows = self.config.batch_size / self.accelerator.num_processes
        losses = self.task.losses(self.model, batch, num_rows=num_rows, accelerator=self.accelerator)
        if self.task.runs_teacher:
            self.teacher_passes += self.config.batch_size
        self.guard.watch(losses["loss"], step=batch.step + 1, keys=batch.keys)
        self.accelerator.backward(losses["loss"])
        if self.config.clip_grad_norm is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step = batch.step + 1
        self.scheduler.step_update(self.step)
        if self.ema is not None:
            self.ema.update(self.student, step=self.step)
        if self.task.leaves_out:
            self.dead_letters.add(batch.left_out, step=self.step)
        self.meter.add(losses)
        self.throughput.add(self.config.batch_size)

    def _report(self, log: MetricsLog | None, *, learning_rate: float) -> None:
        self._settle()
        self.last_losses = self.meter.report(self.accelerator)
        speed = self.throughput.lap()
        if log is not None:
            figures = {**self.last_losses, "learning_rate": learning_rate, self.speed_name: speed}
            log.write("training", step=self.step, epoch=self._epochs_done(), figures=figures)

    def _settle(self) -> None:
        """Check what was put off; every process must call it."""
        self.guard.flush()
        if self.task.leaves_out:
            self.dead_letters.settle(self.accelerator)

    @property
    def evaluation_is_pending(self) -> bool:
        """Whether the student is to be evaluated after as many updates as were done, and was not."""
        epochs_done, inside = self.plan.position(self.step)
        if self.config.evaluation is None or not self.task.evaluates or inside or not self.step:
            return False
        due = epochs_done % self.config.evaluation.every_epochs == 0 or self.step == self.plan.num_steps
        return due and self.evaluated_step != self.step

    def _evaluate(self, log: MetricsLog | None) -> None:
        self.guard.flush()
        with self.throughput.pause():
            self._share_buffers()
            found = self.task.evaluate(self.exported, accelerator=self.accelerator)
        self.dead_letters.add_evaluation(
            found.left_out, step=self.step, num_samples=found.num_samples, accelerator=self.accelerator
        )
        self.figures, self.evaluated_step = found.figures, self.step
        if log is not None:
            log.write("evaluation", step=self.step, epoch=self._epochs_done(), figures=self.figures)

    def _share_buffers(self) -> None:
        """Give every process the main one's buffers, which are exported: batch norm has statistics of a process's share."""
        if self.accelerator.num_processes > 1:
            for buffer in self.exported.buffers():
                buffer.copy_(broadcast(buffer.contiguous()))

    def _epochs_done(self) -> float:
        epoch, inside = self.plan.position(self.step)
        return round(epoch + (inside / self.plan.epoch_steps[epoch] if inside else 0.0), 6)

    def _checkpoint_is_due(self, step_in_epoch: int) -> bool:
        every = self.config.checkpoint_every_steps
        return self.step == self.plan.num_steps or (step_in_epoch == 0 if every is None else self.step % every == 0)

    def _save(self, store: CheckpointStore) -> None:
        self._settle()
        with self.throughput.pause():
            require_finite_weights(self.student, step=self.step)
            state = {**self.state(), "identity": self.identity}
            if self.accelerator.is_main_process:
                store.save(state, step=self.step)
            self.accelerator.wait_for_everyone()

    def state(self) -> dict[str, Any]:
        """Return all that a new process needs to go on from here, as tensors and plain data; every process must call it."""
        epoch, inside = self.plan.position(self.step)
        scaler = self.accelerator.scaler
        return {
            "step": self.step,
            "epoch": epoch,
            "step_in_epoch": inside,
            "model": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "generators": gather_object([capture_generators(self.accelerator.device)]),
            "meter": self.meter.state(self.accelerator),
            "last_losses": self.last_losses,
            "accuracy": self.figures,
            "evaluated_step": self.evaluated_step,
            "dead_letters": self.dead_letters.state(),
            "evaluation": evaluation_settings(self.config),
            "teacher_passes": self.teacher_passes,
            "seconds": self.elapsed_seconds,
            self.speed_name: self.steady_samples_per_second,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a state; a process that had no generators then, where there are more processes now, keeps its fresh seed."""
        self.step, self.teacher_passes = state["step"], state["teacher_passes"]
        self.seconds, self.samples_per_second = state["seconds"], state[self.speed_name]
        self.student.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.meter.load_state(state["meter"])
        self.last_losses = state["last_losses"]
        if state["accuracy"] is not None and state["evaluation"] == evaluation_settings(self.config):
            # Earlier releases evaluated before they saved.
            self.figures, self.evaluated_step = state["accuracy"], state.get("evaluated_step", self.step)
        self.dead_letters.load_state(state.get("dead_letters", []))
        if self.accelerator.process_index < len(state["generators"]):
            restore_generators(state["generators"][self.accelerator.process_index], device=self.accelerator.device)
