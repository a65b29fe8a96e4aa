"""Optimisers and learning rate schedules: timm's, by name, stepped every update."""

from __future__ import annotations

from typing import Any

import torch
from timm.optim import create_optimizer_v2, list_optimizers  # type: ignore[attr-defined]  # re-exported, but not marked so
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.scheduler.poly_lr import PolyLRScheduler
from timm.scheduler.scheduler import Scheduler
from timm.scheduler.step_lr import StepLRScheduler
from torch import nn

from storage.config.training import OptimizerConfig, ScheduleConfig
from storage.errors import ConfigError
from storage.naming import did_you_mean


def create_optimizer(model: nn.Module, *, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Return timm's optimiser over the model; biases and norms are not decayed.

    Raises:
        ConfigError: timm does not know the name, the optimiser does not take the arguments, or it needs second derivatives.
    """
    names = [str(name) for name in list_optimizers()]
    if config.name.lower().removeprefix("lookahead_") not in names:
        raise ConfigError(
            f"training.optimizer.name: timm has no optimiser {config.name!r}.{did_you_mean(config.name.lower(), names)}"
        )
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            model,
            opt=config.name,
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            layer_decay=config.layer_decay,
            **config.kwargs,
        )
    except (TypeError, ValueError, AssertionError, RuntimeError, ImportError) as error:
        raise ConfigError(
            f"optimiser {config.name!r} with learning rate {config.learning_rate}, weight decay {config.weight_decay} and "
            f"arguments {config.kwargs} cannot be made: {error}; check training.optimizer"
        ) from error
    if getattr(optimizer, "is_second_order", False):
        raise ConfigError(
            f"training.optimizer.name: {config.name!r} needs second derivatives, which an update does not compute; choose one of "
            "first order, for instance adamw"
        )
    return optimizer


def create_scheduler(
    optimizer: torch.optim.Optimizer, *, config: ScheduleConfig, num_steps: int, steps_per_epoch: float
) -> Scheduler:
    """Return a schedule to be called as `step_update(updates done)`; it holds no state beyond its settings.

    The warm-up comes first and ends at the peak; cosine and linear then fall over the remaining updates and reach
    `min_learning_rate` after the last one, step counts its decays from the end of the warm-up.

    Args:
        optimizer: its learning rates are the peaks; those of the first update are set at once.
        config: the shape.
        num_steps: updates of the whole training.
        steps_per_epoch: updates of one epoch, on average.

    Raises:
        ConfigError: the warm-up leaves no updates, or a field does not belong to the shape.
    """
    warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    if warmup_steps >= num_steps:
        raise ConfigError(
            f"training.schedule.warmup_epochs {config.warmup_epochs} is {warmup_steps} updates but training has {num_steps}: the "
            "peak would never be left; lower warmup_epochs or raise training.epochs"
        )
    _check_fields(config)
    common: dict[str, Any] = {
        "warmup_t": warmup_steps,
        "warmup_lr_init": config.warmup_learning_rate,
        "warmup_prefix": True,
        "t_in_epochs": False,
    }
    falling_steps = num_steps - warmup_steps
    scheduler: Scheduler
    if config.name == "cosine":
        scheduler = CosineLRScheduler(optimizer, t_initial=falling_steps, lr_min=config.min_learning_rate, **common)
    elif config.name == "linear":
        scheduler = PolyLRScheduler(optimizer, t_initial=falling_steps, power=1.0, lr_min=config.min_learning_rate, **common)
    else:
        decay_steps = max(1, round((config.decay_epochs or 1) * steps_per_epoch))
        decay_rate = config.decay_rate if config.name == "step" else 1.0
        scheduler = StepLRScheduler(optimizer, decay_t=decay_steps, decay_rate=decay_rate, **common)
    scheduler.step_update(0)
    return scheduler


def _check_fields(config: ScheduleConfig) -> None:
    if config.name == "step" and config.decay_epochs is None:
        raise ConfigError("training.schedule.name is step but decay_epochs is not set: it would never decay; give decay_epochs")
    if config.name != "step" and config.decay_epochs is not None:
        raise ConfigError(
            f"training.schedule.decay_epochs belongs to the step schedule but name is {config.name}; drop one of them"
        )
    if config.name in ("step", "constant") and config.min_learning_rate > 0:
        raise ConfigError(
            f"training.schedule.min_learning_rate is set but a {config.name} schedule has no end value; drop it, or use cosine "
            "or linear"
        )
