"""Whether a label set of texts serves what an experiment asks for."""

from __future__ import annotations

from typing import Any

from storage.config import ExperimentConfig
from storage.errors import MismatchError
from storage.label_set import LabelSet
from storage.narrowing_as_asked import narrowed_as_asked
from storage.serving_teacher import differing_teacher, remedy
from storage.specs import TargetSpec, TextViewSpec


def served_text_target(label_set: LabelSet, *, config: ExperimentConfig, name: str, sections: set[str] | None) -> TargetSpec:
    """Return what a config's students read of a label set of texts, which holds that or more of the same.

    Values left open in the config match any.

    Args:
        name: of the target in the config; one the config does not have is read as it is stored.
        sections: of "views", "target" and "targets", those that are asked for of a label set that was named; None: all, of the
            experiment's own.

    Raises:
        MismatchError: it is of pictures, or does not hold what the config says; every field that differs, with both values.
    """
    request = label_set.manifest.request
    view, target = request.text_view(), request.target
    differing = _differing_views(label_set, view=view, config=config) if sections is None or "views" in sections else []
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


def _differing_views(label_set: LabelSet, *, view: TextViewSpec, config: ExperimentConfig) -> list[str]:
    asked: dict[str, Any] = config.views.model_dump(mode="json") | {"count": config.views.count}
    holds = view.to_json() | {"count": label_set.manifest.num_views}
    return [
        f"views.{field}: the config asks for {value!r}, the label set holds {holds.get(field)!r}"
        for field, value in asked.items()
        if value != holds.get(field)
    ]
