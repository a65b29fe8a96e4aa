"""Typed configs: one YAML file per experiment, checked in full before any work starts."""

from storage.config.experiment import ExperimentConfig
from storage.config.generation import GenerationConfig
from storage.config.labels import ViewsConfig
from storage.config.load import load_config
from storage.config.source import (
    DelimitedConfig,
    ImageFolderConfig,
    JsonlConfig,
    ParquetConfig,
    SourceConfig,
    TextConfig,
    WebDatasetConfig,
)
from storage.config.targets import SoftLabelsConfig, TargetConfig
from storage.config.teacher import TeacherConfig
from storage.config.training import TrainingConfig

__all__ = [
    "DelimitedConfig",
    "ExperimentConfig",
    "GenerationConfig",
    "ImageFolderConfig",
    "JsonlConfig",
    "ParquetConfig",
    "SoftLabelsConfig",
    "SourceConfig",
    "TargetConfig",
    "TeacherConfig",
    "TextConfig",
    "TrainingConfig",
    "ViewsConfig",
    "WebDatasetConfig",
    "load_config",
]
