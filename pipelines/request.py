"""From a config and a loaded teacher to the requests that are hashed: defaults resolved, impossible values refused."""

from __future__ import annotations

from pipelines.block_checks import check_blocks
from pipelines.feature_targets import resolve_features
from pipelines.teacher_memo import AnyTeacherFacts, TextTeacherFacts
from pipelines.text.request import resolve_text_requests
from storage.config import ExperimentConfig
from storage.config.labels import EvaluationViewsConfig, RandomViewsConfig
from storage.config.targets import SoftLabelsConfig
from storage.errors import ConfigError
from storage.specs import EvaluationView, HiddenStatesSpec, RandomResizedCropView, RequestSpec, SoftLabelsSpec, TargetSpec


def resolve_view(config: ExperimentConfig, *, evaluation: EvaluationView) -> EvaluationView | RandomResizedCropView:
    """Return the view spec of pictures; what the config leaves open comes from the teacher's evaluation view."""
    views = config.views
    if isinstance(views, EvaluationViewsConfig):
        return evaluation
    assert isinstance(views, RandomViewsConfig)
    return RandomResizedCropView(
        size=views.size or evaluation.size,
        scale=views.scale,
        ratio=views.ratio,
        flip_probability=views.flip_probability,
        interpolation=views.interpolation or evaluation.interpolation,
        seed=views.seed,
    )


def resolve_requests(config: ExperimentConfig, *, facts: AnyTeacherFacts) -> dict[str, RequestSpec]:
    """Return what is asked for, by the names of targets; one that stands alone is named `target`.

    Raises:
        ConfigError: a target or the views do not fit the teacher.
    """
    if isinstance(facts, TextTeacherFacts):
        return resolve_text_requests(config, facts=facts)
    requests = {}
    for name, target in config.named_targets.items():
        key = "target" if config.targets is None else f"targets.{name}"
        if isinstance(target, SoftLabelsConfig):
            spec: TargetSpec = soft_labels_spec(target, num_classes=facts.spec.num_classes, key=key)
            check_blocks(spec, view=None, key=key)
        else:
            # How many tokens a picture of this size has shows when the teacher runs.
            spec = resolve_features(
                target, shape=facts.shape, max_tokens=1, head_sha256=None, name=facts.spec.architecture, key=key
            )
            if isinstance(spec, HiddenStatesSpec) and spec.tokens == "mean":
                spec = spec.model_copy(update={"mean_version": 2})
        requests[name] = RequestSpec(teacher=facts.spec, view=resolve_view(config, evaluation=facts.evaluation), target=spec)
    return requests


def resolve_request(config: ExperimentConfig, *, facts: AnyTeacherFacts) -> RequestSpec:
    """Return what a config of one target asks for. See `resolve_requests`."""
    (request,) = resolve_requests(config, facts=facts).values()
    return request


def soft_labels_spec(target: SoftLabelsConfig, *, num_classes: int, key: str) -> SoftLabelsSpec:
    """Return the spec of soft labels, one row a view.

    Args:
        key: of the target in the config, for messages.

    Raises:
        ConfigError: more classes are asked for than there are.
    """
    if target.k is not None and target.k > num_classes:
        raise ConfigError(
            f"{key}.k: {target.k} is larger than the teacher's {num_classes} classes; "
            f"give at most {num_classes}, or k: null for a quality level"
        )
    return SoftLabelsSpec(
        num_classes=num_classes, k=target.k, codec=target.codec, generation_temperature=target.generation_temperature
    )


def label_set_names(config: ExperimentConfig) -> dict[str, str]:
    """Return the names of label sets by those of targets: the experiment's, or `<experiment>.<target>` of several."""
    return config.label_set_names


def check_classes(facts: AnyTeacherFacts, *, source_classes: tuple[str, ...] | None) -> None:
    """Refuse a source and a teacher whose class lists cannot go together.

    A teacher with other classes than the source's is no mistake in itself (ImageNet-22k labels of another collection); fewer
    outputs than the source has classes is, and so are the same names in another order. Language models have no classes.

    Raises:
        ConfigError: the lists do not match.
    """
    if source_classes is None or (isinstance(facts, TextTeacherFacts) and facts.shape.per_token):
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
