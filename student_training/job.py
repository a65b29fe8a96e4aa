"""What is to be trained, checked and held together: the arguments of a training of pictures, and what all trainings have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from storage.config.experiment import ExperimentConfig
from storage.config.training import TrainingConfig
from storage.errors import ConfigError
from storage.hashing import digest
from storage.specs import ViewSpec
from storage.streams.base import RowStream, StreamRows

LiveTeacher = Callable[[npt.NDArray[np.uint8]], Tensor]
"""Views uint8 [B, H, W, 3] at the teacher's size to logits [B, C]."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A training, whatever its samples are.

    Attributes:
        config: the experiment.
        training: its training section.
        stream: the rows.
    """

    config: ExperimentConfig
    training: TrainingConfig
    stream: RowStream[Any]

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return Path(self.training.output)

    @property
    def uses_labels(self) -> bool:
        """Whether hard labels are part of the loss."""
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """Return, as JSON data, what the weights depend on beside the settings and the rows."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class TrainingJob(Job):
    """A training of pictures as `train` is asked for it; see there.

    Attributes:
        view: the views, as the teacher saw them.
        num_classes: classes of the targets.
        generation_temperature: temperature of the stored probabilities.
        mean_class_probs: float [num_classes], for the rest policy `mean`.
        teacher: for live targets.
    """

    stream: RowStream[StreamRows]
    view: ViewSpec
    num_classes: int
    generation_temperature: float
    mean_class_probs: npt.NDArray[np.floating[Any]] | None
    teacher: LiveTeacher | None

    @property
    def uses_labels(self) -> bool:
        """Whether hard labels are part of the loss."""
        return self.training.targets.kind == "hard" or self.training.loss.hard_weight > 0

    def facts(self) -> dict[str, Any]:
        """Return, as JSON data, what the weights depend on beside the settings and the rows."""
        facts: dict[str, Any] = {
            "view": self.view.to_json(),
            "num_classes": self.num_classes,
            "generation_temperature": self.generation_temperature,
        }
        if self.training.loss.rest == "mean" and self.mean_class_probs is not None:
            facts["mean_class_probs"] = digest(np.ascontiguousarray(self.mean_class_probs, dtype=np.float64).tobytes())
        if self.training.targets.kind == "live" and self.config.teacher is not None:
            facts["teacher"] = self.config.teacher.model_dump(mode="json", exclude={"device"})
        return facts


def training_section(config: ExperimentConfig) -> TrainingConfig:
    """Return the training section of a config.

    Raises:
        ConfigError: there is none, or its output is no local folder.
    """
    training = config.training
    if training is None:
        raise ConfigError(f"experiment {config.name!r} has no training section, so there is nothing to train; add training")
    if "://" in training.output:
        raise ConfigError(
            f"training.output is {training.output!r} but checkpoints and events are written to a local folder; give a path, and "
            "copy the run afterwards"
        )
    return training


def make_job(
    config: ExperimentConfig,
    *,
    stream: RowStream[StreamRows],
    view: ViewSpec,
    num_classes: int,
    generation_temperature: float,
    mean_class_probs: npt.NDArray[np.floating[Any]] | None,
    teacher: LiveTeacher | None,
) -> TrainingJob:
    """Return the job of these arguments.

    Raises:
        ConfigError: they do not fit each other.
    """
    training = training_section(config)
    kind = training.targets.kind
    if (kind == "live") != (teacher is not None):
        trouble = "no teacher was given" if teacher is None else "a teacher was given, which would never run"
        raise ConfigError(f"training.targets.kind is {kind} but {trouble}; give a teacher with kind live, and only then")
    if training.loss.rest == "mean" and kind == "cached":
        if mean_class_probs is None:
            raise ConfigError(
                "training.loss.rest is mean but the label set holds no mean class probabilities; use uniform, bucket or "
                "renormalize"
            )
        if len(mean_class_probs) != num_classes:
            raise ConfigError(
                f"there are {len(mean_class_probs)} mean class probabilities for {num_classes} classes; give those of the label "
                "set that is trained on"
            )
    return TrainingJob(
        config=config,
        training=training,
        stream=stream,
        view=view,
        num_classes=num_classes,
        generation_temperature=generation_temperature,
        mean_class_probs=mean_class_probs,
        teacher=teacher,
    )
