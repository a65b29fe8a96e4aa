"""Row streams that need no labels cache."""

from __future__ import annotations

from storage.config.experiment import ExperimentConfig
from storage.config.training import TrainingConfig
from storage.errors import ConfigError
from storage.sources import open_source
from storage.streams.source_stream import SourceStream

_MAX_OPEN_UNITS = 256
"""Far below the usual limit of 1,024 open files a process."""


def build_source_stream(config: ExperimentConfig) -> SourceStream:
    """Return the pictures a config trains on, for hard labels or a live teacher.

    A live teacher sees the views that labels would be cached of: epoch e reads view e modulo `views.count`. Hard labels are not
    tied to a view, so every epoch has a new one.

    Raises:
        ConfigError: the config has no training, or no source.
        SourceError: class names cannot be read.
    """
    if config.training is None:
        raise ConfigError(f"experiment {config.name!r} has no training section, so there is nothing to train; add training")
    source = config.training.source or config.source
    if source is None:
        raise ConfigError(f"experiment {config.name!r} has no pictures to train on; give source, or training.source")
    return SourceStream(
        open_source(source),
        num_views=config.views.count if config.training.targets.kind == "live" else None,
        sample_fraction=config.training.sample_fraction,
        max_open_units=min(config.training.shuffle_window_blocks, _MAX_OPEN_UNITS),
    )


def classes_of_source(config: ExperimentConfig, training: TrainingConfig) -> int:
    """Return the classes of hard labels, as the student's config or the source says.

    Raises:
        ConfigError: neither says, or there is no source.
        SourceError: class names cannot be read.
    """
    source = training.source or config.source
    if source is None:
        raise ConfigError(f"experiment {config.name!r} has no pictures to train on; give source, or training.source")
    classes = open_source(source).classes
    num_classes = training.picture_student.num_classes or (len(classes) if classes else None)
    if num_classes is None:
        raise ConfigError("training.student.num_classes: is needed, since the source does not say how many classes there are")
    return num_classes
