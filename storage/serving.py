"""Whether a label set serves what an experiment asks for."""

from __future__ import annotations

from typing import Any

from storage.config import ExperimentConfig
from storage.config.labels import EvaluationViewsConfig, RandomViewsConfig
from storage.config.targets import SoftLabelsConfig
from storage.errors import ConfigError, MismatchError
from storage.label_set import LabelSet
from storage.narrowing import why_not_narrower
from storage.narrowing_as_asked import narrowed_as_asked
from storage.serving_teacher import differing_teacher, remedy
from storage.specs import ImportedView, SoftLabelsSpec, TargetSpec


def served_target(label_set: LabelSet, *, config: ExperimentConfig, sections: set[str] | None = None) -> SoftLabelsSpec:
    """Return what a config's students read of a label set, which holds that or more of the same.

    Values left open in the config match any.

    Args:
        sections: of "views" and "target", those that are asked for of a label set that was named; None: both, of the
            experiment's own.

    Raises:
        MismatchError: it does not hold what the config's teacher, views and target say; every field that differs, with both
            values.
        ConfigError: the config's targets are not what students of pictures learn from.
    """
    request = label_set.manifest.request
    differing: list[str] = []
    if isinstance(request.view, ImportedView):
        differing += _imported_views(request.view, config=config)
    elif sections is None or "views" in sections:
        differing += _differing_views(label_set, config=config)
    target = request.soft_labels
    if sections is None or sections & {"target", "targets"}:
        labels = config.named_targets[soft_labels_name(config)]
        asked = {name: getattr(labels, name) for name in ("k", "codec", "generation_temperature")}
        if asked["k"] is not None and asked["k"] > target.num_classes:
            differing.append(f"target.k: the config asks for {asked['k']}, the label set holds {target.num_classes} classes")
        else:
            target = SoftLabelsSpec(num_classes=target.num_classes, **asked)
            reason = why_not_narrower(request.soft_labels, asked=target)
            if reason is not None:
                differing.append(f"target: the label set cannot serve the config's: {reason}")
    other_teacher = differing_teacher(label_set, config=config, named=sections is not None)
    if differing or other_teacher:
        raise MismatchError(
            f"label set {label_set.manifest.name!r} ({label_set.manifest.id}) does not serve this config:\n"
            + "\n".join(f"  {line}" for line in [*other_teacher, *differing])
            + "\nRun decant label with this config, or name another label set in training.targets.label_set"
            + remedy(other_teacher, named=sections is not None)
        )
    return target


def served_picture_target(label_set: LabelSet, *, config: ExperimentConfig, name: str, sections: set[str] | None) -> TargetSpec:
    """Return what a config's students read of a label set of pictures, which holds that or more of the same; of any kind.

    Values left open in the config match any.

    Args:
        name: of the target in the config; one the config does not have is read as it is stored.
        sections: of "views", "target" and "targets", those that are asked for of a label set that was named; None: all, of the
            experiment's own.

    Raises:
        MismatchError: it is of texts, or does not hold what the config says; every field that differs, with both values.
    """
    request = label_set.manifest.request
    target, differing = request.target, []
    if isinstance(request.view, ImportedView):
        differing += _imported_views(request.view, config=config)
    elif sections is None or "views" in sections:
        differing += _differing_views(label_set, config=config)
    if sections is None or sections & {"target", "targets"}:
        target, reasons = narrowed_as_asked(target, config=config, name=name)
        differing += reasons
    other_teacher = differing_teacher(label_set, config=config, named=sections is not None)
    if differing or other_teacher:
        raise MismatchError(
            f"label set {label_set.manifest.name!r} ({label_set.manifest.id}) does not serve this config:\n"
            + "\n".join(f"  {line}" for line in [*other_teacher, *differing])
            + "\nRun decant label with this config, or name another label set in training.targets"
            + remedy(other_teacher, named=sections is not None)
        )
    return target


def soft_labels_name(config: ExperimentConfig) -> str:
    """Return the name of the target that the loss of students of pictures is of, where there are no terms.

    Raises:
        ConfigError: no target, or more than one, is soft labels.
    """
    found = [name for name, target in config.named_targets.items() if isinstance(target, SoftLabelsConfig)]
    if len(found) != 1:
        kinds = ", ".join(f"{name} ({target.kind})" for name, target in config.named_targets.items())
        raise ConfigError(
            f"training.loss is of one target of soft labels, and the targets are {kinds}; say in training.terms what is learned, "
            "or name the label set of soft labels in training.targets.label_set and leave target out"
        )
    return found[0]


def _imported_views(view: ImportedView, *, config: ExperimentConfig) -> list[str]:
    if isinstance(config.views, EvaluationViewsConfig) and "views" in config.model_fields_set:
        return []
    refusal = (
        f"views: the labels were imported ({view.layout}) and are of views that other code drew, which cannot be rendered here. "
        "Say views: {kind: evaluation} in the config to train on these labels with the student's own fixed view of each picture, "
        "which is not what the teacher saw"
    )
    return [refusal]


def _differing_views(label_set: LabelSet, *, config: ExperimentConfig) -> list[str]:
    view = label_set.manifest.request.view
    asked: dict[str, Any] = {"kind": config.views.kind, "count": config.views.count}
    holds: dict[str, Any] = {"kind": view.kind, "count": label_set.manifest.num_views}
    if isinstance(config.views, RandomViewsConfig):
        names = ("size", "scale", "ratio", "flip_probability", "interpolation", "seed")
        given = {name: getattr(config.views, name) for name in names if getattr(config.views, name) is not None}
        asked |= given
        holds |= {name: getattr(view, name, None) for name in given}
    return [
        f"views.{name}: the config asks for {value!r}, the label set holds {holds[name]!r}"
        for name, value in asked.items()
        if value != holds[name]
    ]
