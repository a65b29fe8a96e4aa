"""One experiment: what is labelled, by whom, and which student learns from it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from storage.config.base import Config
from storage.config.generation import GenerationConfig
from storage.config.labels import EvaluationViewsConfig, SoftLabelsConfig, ViewsConfig
from storage.config.source import SourceConfig
from storage.config.teacher import TeacherConfig
from storage.config.training import TrainingConfig


class ExperimentConfig(Config):
    """One YAML file. `decant label` needs cache, source and teacher; `decant train` needs training."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")] = Field(
        description="Name of the experiment; the label set can be found by it."
    )
    cache: str | None = Field(default=None, description="Local path or fsspec URL of the cache of parts and label sets.")
    source: SourceConfig | None = Field(default=None, description="Pictures to label.")
    teacher: TeacherConfig | None = Field(default=None, description="Network that labels.")
    views: ViewsConfig = Field(
        default=EvaluationViewsConfig(kind="evaluation"), description="Views of each picture that are labelled."
    )
    target: SoftLabelsConfig = Field(default=SoftLabelsConfig(), description="What is stored of each view.")
    generation: GenerationConfig = Field(default=GenerationConfig(), description="How labels are generated.")
    training: TrainingConfig | None = Field(default=None, description="How a student is trained.")

    @model_validator(mode="after")
    def _check_training(self) -> ExperimentConfig:
        if self.training is None:
            return self
        if self.training.source is None and self.source is None:
            raise ValueError("training has no pictures: give source, or training.source")
        if self.training.targets.kind == "cached" and self.cache is None:
            raise ValueError("training.targets.kind is cached but there is no cache; give cache")
        if self.training.targets.kind == "live" and self.teacher is None:
            raise ValueError("training.targets.kind is live but there is no teacher; give teacher")
        return self
