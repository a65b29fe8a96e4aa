"""The label sets that a training on cached targets reads."""

from __future__ import annotations

from storage.cache import Cache
from storage.config import ExperimentConfig, TrainingConfig
from storage.config.training import CachedTargetsConfig
from storage.errors import ConfigError
from storage.label_set import LabelSet


def open_label_sets(config: ExperimentConfig, training: TrainingConfig, *, cache: Cache) -> dict[str, LabelSet]:
    """Return the label sets of an experiment by the names of their targets.

    Raises:
        ConfigError: a name for a target that the experiment does not have.
        MismatchError: the cache holds none of that name.
    """
    assert isinstance(training.targets, CachedTargetsConfig)
    known = config.named_targets
    names = config.label_set_names
    if training.targets.label_sets is not None:
        names = dict(training.targets.label_sets)
    elif training.targets.label_set is not None:
        if config.targets is not None:
            raise ConfigError(
                f"training.targets.label_set names one label set, and the experiment has targets {', '.join(known)}; name one "
                "for each in training.targets.label_sets"
            )
        names = dict.fromkeys(known, training.targets.label_set)
    return {target: LabelSet.open(cache, name_or_id=name) for target, name in names.items()}


def wants_means(training: TrainingConfig) -> bool:
    """Return whether a loss needs the mean probability of every class."""
    if training.terms is None:
        return training.loss.rest == "mean"
    return any(getattr(term, "rest", None) == "mean" for term in training.terms)


def asked_sections(config: ExperimentConfig, training: TrainingConfig) -> set[str] | None:
    """Return the sections of a config that label sets must serve: those it has where label sets are named, else None for all."""
    assert isinstance(training.targets, CachedTargetsConfig)
    named = training.targets.label_set or training.targets.label_sets
    return config.model_fields_set if named else None
