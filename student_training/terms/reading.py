"""Which targets a loss reads: parts of the others are not fetched."""

from __future__ import annotations

from collections.abc import Mapping

from storage.config.terms import TermConfig
from storage.config.training import TrainingConfig
from storage.errors import ConfigError
from storage.specs import AttentionSpec, EmbeddingsSpec, HiddenStatesSpec, RelationsSpec, SoftLabelsSpec, TargetSpec

_KINDS: dict[str, tuple[type[TargetSpec], ...]] = {
    "soft_labels": (SoftLabelsSpec, HiddenStatesSpec),
    "hidden_states": (HiddenStatesSpec,),
    "attention": (AttentionSpec,),
    "relations": (RelationsSpec, AttentionSpec),
    "embeddings": (EmbeddingsSpec,),
}
"""What a term reads where it names no target: of the first kind that there is."""


def targets_read(training: TrainingConfig, *, specs: Mapping[str, TargetSpec]) -> dict[str, TargetSpec]:
    """Return the targets that the terms of a training read, by name.

    Raises:
        ConfigError: a term names a target that the experiment does not have.
    """
    if training.terms is None:
        if training.loss.hard_weight == 1:
            return {}
        # Where none are soft labels, all are kept, for the message that says so.
        return {name: spec for name, spec in specs.items() if isinstance(spec, SoftLabelsSpec)} or dict(specs)
    names = {name for number, term in enumerate(training.terms) for name in _read_by(term, number=number, specs=specs)}
    return {name: spec for name, spec in specs.items() if name in names}


def _read_by(term: TermConfig, *, number: int, specs: Mapping[str, TargetSpec]) -> list[str]:
    kinds = _KINDS.get(term.kind)
    if kinds is None:
        return []
    asked: str | None = getattr(term, "target", None)
    if asked is not None:
        if asked not in specs:
            listed = ", ".join(f"{name} ({spec.kind})" for name, spec in specs.items())
            raise ConfigError(
                f"training.terms.{number}.target: there is no target {asked!r}; the experiment has {listed}. Correct it, or add "
                "the target and run decant label"
            )
        return [asked]
    found = ([name for name, spec in specs.items() if isinstance(spec, kind)] for kind in kinds)
    # Where none fits, all are kept, for the message that says so.
    return next((names for names in found if names), list(specs))
