"""Typed configs: one YAML file per experiment, checked in full before any work starts."""

from storage.config.experiment import ExperimentConfig
from storage.config.generation import GenerationConfig
from storage.config.labels import SoftLabelsConfig, ViewsConfig
from storage.config.load import load_config
from storage.config.source import ImageFolderConfig, ParquetConfig, SourceConfig, WebDatasetConfig
from storage.config.teacher import TeacherConfig
from storage.config.training import TrainingConfig

__all__ = [
    "ExperimentConfig",
    "GenerationConfig",
    "ImageFolderConfig",
    "ParquetConfig",
    "SoftLabelsConfig",
    "SourceConfig",
    "TeacherConfig",
    "TrainingConfig",
    "ViewsConfig",
    "WebDatasetConfig",
    "load_config",
]
