"""From a config and a loaded teacher to the request that is hashed: defaults resolved, impossible values refused."""

from __future__ import annotations

from pipelines.teacher_memo import TeacherFacts
from storage.config import ExperimentConfig
from storage.config.labels import EvaluationViewsConfig
from storage.errors import ConfigError
from storage.specs import EvaluationView, RandomResizedCropView, RequestSpec, SoftLabelsSpec


def resolve_view(config: ExperimentConfig, *, evaluation: EvaluationView) -> EvaluationView | RandomResizedCropView:
    """Return the view spec; what the config leaves open comes from the teacher's evaluation view."""
    views = config.views
    if isinstance(views, EvaluationViewsConfig):
        return evaluation
    return RandomResizedCropView(
        size=views.size or evaluation.size,
        scale=views.scale,
        ratio=views.ratio,
        flip_probability=views.flip_probability,
        interpolation=views.interpolation or evaluation.interpolation,
        seed=views.seed,
    )


def resolve_request(config: ExperimentConfig, *, facts: TeacherFacts) -> RequestSpec:
    """Return what labels are asked for.

    Raises:
        ConfigError: the target does not fit the teacher.
    """
    target, teacher = config.target, facts.spec
    if target.k is not None and target.k > teacher.num_classes:
        raise ConfigError(
            f"target.k: {target.k} is larger than the teacher's {teacher.num_classes} classes; "
            f"give at most {teacher.num_classes}, or k: null for a quality level"
        )
    return RequestSpec(
        teacher=teacher,
        view=resolve_view(config, evaluation=facts.evaluation),
        target=SoftLabelsSpec(
            num_classes=teacher.num_classes,
            k=target.k,
            codec=target.codec,
            generation_temperature=target.generation_temperature,
        ),
    )


def check_classes(facts: TeacherFacts, *, source_classes: tuple[str, ...] | None) -> None:
    """Refuse a source and a teacher whose class lists cannot go together.

    A teacher with other classes than the source's is no mistake in itself (ImageNet-22k labels of another collection); fewer
    outputs than the source has classes is, and so are the same names in another order.

    Raises:
        ConfigError: the lists do not match.
    """
    if source_classes is None:
        return
    num_outputs = facts.spec.num_classes
    if len(source_classes) > num_outputs:
        raise ConfigError(
            f"the source has {len(source_classes)} classes, the teacher {num_outputs} outputs: hard labels above "
            f"{num_outputs - 1} have no output. Give the teacher that was trained on these classes, or label without hard labels "
            "(label_field: null, label_column: null, or labelled: false)"
        )
    names = facts.class_names
    if names is None or names == source_classes or sorted(names) != sorted(source_classes):
        return
    first = next(i for i, (mine, theirs) in enumerate(zip(source_classes, names, strict=True)) if mine != theirs)
    raise ConfigError(
        f"the teacher's classes are the source's in another order: class {first} is {source_classes[first]!r} in the source and "
        f"{names[first]!r} in the teacher. Give source.classes in the teacher's order"
    )
