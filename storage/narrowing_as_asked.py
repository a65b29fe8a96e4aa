"""What of a stored target a config asks for."""

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
from storage.narrowing import why_not_narrower
from storage.specs import (
    AttentionSpec,
    EmbeddingsSpec,
    HiddenStatesSpec,
    RelationsSpec,
    SoftLabelsSpec,
    TargetSpec,
)


def narrowed_as_asked(stored: TargetSpec, *, config: ExperimentConfig, name: str) -> tuple[TargetSpec, list[str]]:
    """Return what a config asks for of a stored target, and what it asks for and is not stored.

    Values left open in the config match any.

    Args:
        name: of the target in the config; one the config does not have is read as it is stored.
    """
    asked = config.named_targets.get(name)
    if asked is None:
        return stored, []
    narrowed = _as_asked(asked, stored=stored)
    reason = f"it holds {stored.kind}, not {asked.kind}" if narrowed is None else why_not_narrower(stored, asked=narrowed)
    if reason is not None or narrowed is None:
        key = "target" if config.targets is None else f"targets.{name}"
        return stored, [f"{key}: the label set cannot serve the config's: {reason}"]
    return narrowed, []


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
