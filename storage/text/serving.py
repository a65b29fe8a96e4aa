"""Whether a label set of texts serves what an experiment asks for."""

from __future__ import annotations

from typing import Any

from storage.config import ExperimentConfig
from storage.config.targets import (
    AttentionConfig,
    EmbeddingsConfig,
    HiddenStatesConfig,
    RelationsConfig,
    SoftLabelsConfig,
    TargetConfig,
)
from storage.errors import MismatchError
from storage.label_set import LabelSet
from storage.narrowing import why_not_narrower
from storage.specs import (
    AttentionSpec,
    EmbeddingsSpec,
    HiddenStatesSpec,
    RelationsSpec,
    SoftLabelsSpec,
    TargetSpec,
    TextViewSpec,
)


def served_text_target(label_set: LabelSet, *, config: ExperimentConfig, name: str, sections: set[str] | None) -> TargetSpec:
    """Return what a config's students read of a label set of texts, which holds that or more of the same.

    Values left open in the config match any.

    Args:
        name: of the target in the config; one the config does not have is read as it is stored.
        sections: of "views", "target" and "targets", those that are asked for; None: all.

    Raises:
        MismatchError: it is of pictures, or does not hold what the config says; every field that differs, with both values.
    """
    request = label_set.manifest.request
    view, target = request.text_view(), request.target
    differing = _differing_views(label_set, view=view, config=config) if sections is None or "views" in sections else []
    asked = config.named_targets.get(name)
    if asked is not None and (sections is None or sections & {"target", "targets"}):
        narrowed = _as_asked(asked, stored=target)
        reason = f"it holds {target.kind}, not {asked.kind}" if narrowed is None else why_not_narrower(target, asked=narrowed)
        if reason is not None:
            key = "target" if config.targets is None else f"targets.{name}"
            differing.append(f"{key}: the label set cannot serve the config's: {reason}")
        elif narrowed is not None:
            target = narrowed
    if differing:
        raise MismatchError(
            f"label set {label_set.manifest.name!r} ({label_set.manifest.id}) does not serve this config:\n"
            + "\n".join(f"  {line}" for line in differing)
            + "\nRun decant label with this config, or name another label set in training.targets"
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


def _as_asked(config: TargetConfig, *, stored: TargetSpec) -> TargetSpec | None:
    """Return what a config asks for, with what it leaves open as it is stored; None where another kind is stored."""
    match config, stored:
        case SoftLabelsConfig(), SoftLabelsSpec():
            return SoftLabelsSpec(
                num_classes=stored.num_classes,
                k=None if config.k is None else min(config.k, stored.num_classes),
                codec=config.codec,
                generation_temperature=config.generation_temperature,
                positions=config.positions or stored.positions,
            )
        case HiddenStatesConfig(), HiddenStatesSpec():
            return _changed(stored, layers=config.layers, tokens=config.tokens, codec=config.codec)
        case AttentionConfig(), AttentionSpec():
            return _changed(stored, layers=config.layers, vectors=config.vectors, codec=config.codec)
        case RelationsConfig(), RelationsSpec():
            heads = config.num_relation_heads or stored.num_relation_heads
            return _changed(stored, layer=config.layer, vectors=config.vectors, num_relation_heads=heads)
        case EmbeddingsConfig(), EmbeddingsSpec():
            return _changed(stored, codec=config.codec)
        case _:
            return None


def _changed(stored: TargetSpec, **changes: Any) -> TargetSpec:
    return stored.model_copy(update=changes)
