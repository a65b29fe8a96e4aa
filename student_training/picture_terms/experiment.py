"""From a config to a training of pictures on several targets: find the label sets, the views and the classes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from storage.cache import Cache
from storage.config import ExperimentConfig, TrainingConfig
from storage.config.training import CachedTargetsConfig
from storage.errors import ConfigError
from storage.label_set import LabelSet
from storage.picture_tokens import tokens_per_picture
from storage.serving import served_picture_target
from storage.sources import open_source
from storage.specs import ImportedView, RelationsSpec, SoftLabelsSpec, TargetSpec
from storage.streams.picture_targets import PictureTargetStream
from student_training.job import training_section
from student_training.label_sets import asked_sections, open_label_sets, wants_means
from student_training.picture_terms.job import PictureTermsJob
from student_training.streams import build_source_stream, classes_of_source
from student_training.student_views import OTHER_VIEWS, student_view
from student_training.terms.reading import targets_read


def make_picture_terms_job(config: ExperimentConfig) -> PictureTermsJob:
    """Return the training of pictures that a config describes, everything checked that can be before a network is made.

    Raises:
        ConfigError: a setting cannot be run.
        MismatchError: label sets do not hold what is asked for, or do not go together.
        SourceError: a source cannot be listed.
    """
    training = training_section(config)
    if isinstance(training.targets, CachedTargetsConfig):
        return _cached_job(config, training)
    return PictureTermsJob(
        config=config,
        training=training,
        stream=build_source_stream(config),
        view=student_view(config, training),
        num_classes=classes_of_source(config, training),
    )


def _cached_job(config: ExperimentConfig, training: TrainingConfig) -> PictureTermsJob:
    assert config.cache is not None
    if training.sample_fraction < 1:
        raise ConfigError(
            f"training.sample_fraction: {training.sample_fraction} only works with hard labels; label a smaller source instead"
        )
    label_sets = open_label_sets(config, training, cache=Cache.at(config.cache))
    sections = asked_sections(config, training)
    specs = {
        name: served_picture_target(label_set, config=config, name=name, sections=sections)
        for name, label_set in label_sets.items()
    }
    targets = targets_read(training, specs=specs)
    source = training.source or config.source
    if source is None:
        raise ConfigError("source: is needed; labels join the pictures they were made from")
    # Every label set is of the same pictures: with no target to read, any of them says which.
    used = {name: label_sets[name] for name in list(targets) or list(label_sets)[:1]}
    request = next(iter(used.values())).manifest.request
    imported = isinstance(request.view, ImportedView)
    return PictureTermsJob(
        config=config,
        training=training,
        stream=PictureTargetStream(
            used, source=open_source(source), targets=targets, held_blocks=training.shuffle_window_blocks + 1
        ),
        view=student_view(config, training) if imported else request.rendered_view(),
        num_classes=_num_classes(config, training, label_sets=label_sets),
        targets=targets,
        num_tokens={name: tokens_per_picture(used[name]) for name, spec in targets.items() if _holds_all_tokens(spec)},
        mean_class_probs=_class_means(used, targets=targets) if wants_means(training) else {},
        label_sets=tuple(used.values()),
        note=OTHER_VIEWS if imported else None,
    )


def _num_classes(config: ExperimentConfig, training: TrainingConfig, *, label_sets: Mapping[str, LabelSet]) -> int:
    """Return the classes that a student has to tell apart: of soft labels where there are some, else of the source."""
    targets = [label_set.manifest.request.target for label_set in label_sets.values()]
    found = [target.num_classes for target in targets if isinstance(target, SoftLabelsSpec)]
    return found[0] if found else classes_of_source(config, training)


def _class_means(label_sets: Mapping[str, LabelSet], *, targets: Mapping[str, TargetSpec]) -> dict[str, npt.NDArray[np.float64]]:
    return {name: label_sets[name].class_means() for name, spec in targets.items() if isinstance(spec, SoftLabelsSpec)}


def _holds_all_tokens(spec: TargetSpec) -> bool:
    return not isinstance(spec, SoftLabelsSpec) and (isinstance(spec, RelationsSpec) or spec.per_token)
