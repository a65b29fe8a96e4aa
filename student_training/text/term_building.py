"""From the terms of a config to terms that run; what cannot be served is refused here, before any work starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypeVar, assert_never

import numpy as np
import numpy.typing as npt
import torch

from storage.config.terms import (
    AttentionTerm,
    EmbeddingsTerm,
    HardLabelTerm,
    HardTokensTerm,
    HiddenStatesTerm,
    RelationsTerm,
    SoftLabelsTerm,
    TermConfig,
)
from storage.config.training import TrainingConfig
from storage.errors import ConfigError
from storage.specs import (
    AttentionSpec,
    EmbeddingsSpec,
    HiddenStatesSpec,
    MaskedTokensView,
    RelationsSpec,
    SoftLabelsSpec,
    TargetSpec,
    TextViewSpec,
)
from student_training.heads import HeadModule
from student_training.text import term_checks as checks
from student_training.text.feature_terms import Attention, Embeddings, HiddenStates, Relations
from student_training.text.interface import StudentShape
from student_training.text.logit_terms import HardLabels, HardTokens, HeadLabels, SparseLabels
from student_training.text.term import Term

_Spec = TypeVar("_Spec", bound=TargetSpec)


def terms_of(training: TrainingConfig, *, targets: Mapping[str, TargetSpec], shape: StudentShape) -> tuple[TermConfig, ...]:
    """Return the terms of a config: `training.terms`, or what `training.loss` says in their place.

    Args:
        training: the training section.
        targets: what is cached, by name; empty where there are hard labels only.
        shape: of the student.

    Raises:
        ConfigError: `training.loss` cannot speak for these targets.
    """
    if training.terms is not None:
        return training.terms
    hard: HardLabelTerm | HardTokensTerm
    smoothing = getattr(training.targets, "smoothing", 0.0)
    hard_weight = 1.0 if training.targets.kind == "hard" else training.loss.hard_weight
    parts: list[TermConfig] = []
    if hard_weight < 1:
        if not any(isinstance(spec, SoftLabelsSpec) for spec in targets.values()):
            kinds = ", ".join(f"{name} ({spec.kind})" for name, spec in targets.items()) or "none"
            raise ConfigError(
                f"training.loss is of soft labels, and the targets are {kinds}; say in training.terms what is compared with them"
            )
        loss = training.loss
        parts.append(
            SoftLabelsTerm(
                kind="soft_labels",
                weight=1 - hard_weight,
                temperature=loss.distillation_temperature,
                scale_by_temperature_squared=loss.scale_by_temperature_squared,
                rest=loss.rest,
            )
        )
    if hard_weight > 0:
        if shape.kind == "sequence_classifier":
            hard = HardLabelTerm(kind="hard_label", weight=hard_weight, smoothing=smoothing)
        else:
            hard = HardTokensTerm(kind="hard_tokens", weight=hard_weight, smoothing=smoothing)
        parts.append(hard)
    return tuple(parts)


def build_terms(
    terms: Sequence[TermConfig],
    *,
    targets: Mapping[str, TargetSpec],
    view: TextViewSpec,
    shape: StudentShape,
    mean_class_probs: Mapping[str, npt.NDArray[np.floating]],
    heads: Mapping[str, HeadModule],
) -> list[Term]:
    """Return the terms; arguments as of `make_learner`.

    Raises:
        ConfigError: terms that cannot be served, all of them in one message.
    """
    builder = _Builder(targets=targets, view=view, shape=shape, mean_class_probs=mean_class_probs, heads=heads)
    problems, built = [], []
    for number, (term, name) in enumerate(zip(terms, _names(terms), strict=True)):
        try:
            built.append(builder.build(term, name=name))
        except ConfigError as error:
            problems.append(f"training.terms.{number} ({term.kind}): {error}")
    if problems:
        raise ConfigError("\n".join(problems))
    return built


def _names(terms: Sequence[TermConfig]) -> list[str]:
    """Return a name a term: its kind, numbered where a kind comes again."""
    seen: Counter[str] = Counter()
    names = []
    for term in terms:
        seen[term.kind] += 1
        names.append(f"{term.kind}_loss" + (f"_{seen[term.kind]}" if seen[term.kind] > 1 else ""))
    return names


class _Builder:
    """Builds one term after the other."""

    def __init__(
        self,
        *,
        targets: Mapping[str, TargetSpec],
        view: TextViewSpec,
        shape: StudentShape,
        mean_class_probs: Mapping[str, npt.NDArray[np.floating]],
        heads: Mapping[str, HeadModule],
    ) -> None:
        self._targets = targets
        self._masks = isinstance(view, MaskedTokensView)
        self._shape = shape
        self._mean_class_probs = mean_class_probs
        self._heads = heads

    def build(self, term: TermConfig, *, name: str) -> Term:
        """Return the term.

        Raises:
            ConfigError: it cannot be served; the message lacks the key of the term.
        """
        shape = self._shape
        match term:
            case SoftLabelsTerm():
                return self._soft_labels(term, name=name)
            case HardTokensTerm():
                return HardTokens(term, name=name, row_set=checks.hard_token_rows(shape, masks=self._masks))
            case HardLabelTerm():
                checks.require_classifier(shape)
                return HardLabels(term, name=name)
            case HiddenStatesTerm():
                target, hidden = self._find(term.target, HiddenStatesSpec)
                checks.check_hidden_states(term, spec=hidden, shape=shape)
                return HiddenStates(term, name=name, target=target, spec=hidden, shape=shape)
            case AttentionTerm():
                target, attention = self._find(term.target, AttentionSpec)
                checks.check_attention(term, spec=attention, shape=shape)
                return Attention(term, name=name, target=target, spec=attention, shape=shape)
            case RelationsTerm():
                target, spec = self._find(term.target, RelationsSpec, AttentionSpec)
                assert isinstance(spec, RelationsSpec | AttentionSpec)
                num_heads = checks.relation_heads(term, spec=spec, shape=shape)
                return Relations(term, name=name, target=target, spec=spec, num_relation_heads=num_heads)
            case EmbeddingsTerm():
                target, embeddings = self._find(term.target, EmbeddingsSpec)
                checks.check_embeddings(term, spec=embeddings, shape=shape)
                return Embeddings(term, name=name, target=target, width=embeddings.width, shape=shape)
            case _:
                assert_never(term)

    def _soft_labels(self, term: SoftLabelsTerm, *, name: str) -> Term:
        target, spec = self._find(term.target, SoftLabelsSpec, HiddenStatesSpec)
        assert isinstance(spec, SoftLabelsSpec | HiddenStatesSpec)
        if isinstance(spec, HiddenStatesSpec):
            head = self._heads.get(target)
            row_set = checks.check_head_labels(
                term, spec=spec, head=None if head is None else head.spec, shape=self._shape, masks=self._masks
            )
            assert head is not None
            tensor = f"hidden.{spec.layers[-1]}"
            return HeadLabels(term, name=name, target=target, tensor=tensor, row_set=row_set, head=head)
        loss = checks.check_soft_labels(term, spec=spec, shape=self._shape)
        mean = self._mean_class_probs.get(target) if term.rest == "mean" and loss != "cross_entropy" else None
        if term.rest == "mean" and loss != "cross_entropy" and mean is None:
            raise ConfigError(
                f"rest is mean, but the labels of target {target!r} hold no mean class probabilities; use uniform, bucket or "
                "renormalize"
            )
        return SparseLabels(
            term,
            name=name,
            target=target,
            row_set=spec.positions,
            loss=loss,
            generation_temperature=spec.generation_temperature,
            mean_class_probs=None if mean is None else torch.tensor(mean, dtype=torch.float64),
        )

    def _find(self, name: str | None, *kinds: type[_Spec]) -> tuple[str, _Spec]:
        """Return a target's name and spec: the one that is named, else the only one of the first kind that has any."""
        listed = ", ".join(f"{name} ({spec.kind})" for name, spec in self._targets.items()) or "none"
        if name is not None:
            if name not in self._targets:
                raise ConfigError(f"there is no target {name!r}; the targets are {listed}. Correct target, or add it to targets")
            spec = self._targets[name]
            for kind in kinds:
                if isinstance(spec, kind):
                    return name, spec
            raise ConfigError(f"target {name!r} holds {spec.kind}, which this term cannot read; the targets are {listed}")
        for kind in kinds:
            found = [(name, spec) for name, spec in self._targets.items() if isinstance(spec, kind)]
            if len(found) == 1:
                return found[0]
            if len(found) > 1:
                names = ", ".join(name for name, _ in found)
                raise ConfigError(f"targets {names} all fit; say which in target")
        wanted = " or ".join(str(kind.model_fields["kind"].default) for kind in kinds)
        raise ConfigError(f"it needs a target of {wanted}, and the targets are {listed}; add one, label again, or drop the term")
