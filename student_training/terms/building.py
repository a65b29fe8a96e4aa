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
from storage.errors import ConfigError
from storage.specs import AttentionSpec, EmbeddingsSpec, FeaturesSpec, HiddenStatesSpec, RelationsSpec, SoftLabelsSpec, TargetSpec
from student_training.terms import checks
from student_training.terms.feature_terms import Attention, Embeddings, HiddenStates, Relations
from student_training.terms.interface import StudentShape
from student_training.terms.logit_terms import HardLabels, SparseLabels
from student_training.terms.term import Term

_Spec = TypeVar("_Spec", bound=TargetSpec)


class TermBuilder:
    """Builds terms that any student may have; texts and pictures add theirs."""

    def __init__(
        self,
        *,
        targets: Mapping[str, TargetSpec],
        shape: StudentShape,
        mean_class_probs: Mapping[str, npt.NDArray[np.floating]],
    ) -> None:
        """Say what terms can be built of.

        Args:
            targets: what is cached, by the names batches have it under.
            shape: of the student.
            mean_class_probs: [num_classes] by target, for terms with `rest: mean`.
        """
        self.targets = targets
        self.shape = shape
        self._mean_class_probs = mean_class_probs

    def build_all(self, terms: Sequence[TermConfig]) -> list[Term]:
        """Return the terms.

        Raises:
            ConfigError: terms that cannot be served, all of them in one message.
        """
        problems, built = [], []
        for number, (term, name) in enumerate(zip(terms, _names(terms), strict=True)):
            try:
                built.append(self.build(term, name=name))
            except ConfigError as error:
                problems.append(f"training.terms.{number} ({term.kind}): {error}")
        if problems:
            raise ConfigError("\n".join(problems))
        return built

    def build(self, term: TermConfig, *, name: str) -> Term:
        """Return the term.

        Raises:
            ConfigError: it cannot be served; the message lacks the key of the term.
        """
        shape = self.shape
        match term:
            case SoftLabelsTerm():
                return self.soft_labels(term, name=name)
            case HardTokensTerm():
                return self.hard_tokens(term, name=name)
            case HardLabelTerm():
                checks.require_classifier(shape)
                return HardLabels(term, name=name)
            case HiddenStatesTerm():
                target, hidden = self.find(term.target, HiddenStatesSpec)
                checks.check_hidden_states(term, spec=hidden, shape=shape)
                self.check_tokens(hidden, target=target)
                return HiddenStates(term, name=name, target=target, spec=hidden, shape=shape)
            case AttentionTerm():
                target, attention = self.find(term.target, AttentionSpec)
                checks.check_attention(term, spec=attention, shape=shape)
                self.check_windows(term)
                self.check_tokens(attention, target=target)
                return Attention(term, name=name, target=target, spec=attention, shape=shape)
            case RelationsTerm():
                target, spec = self.find(term.target, RelationsSpec, AttentionSpec)
                assert isinstance(spec, RelationsSpec | AttentionSpec)
                num_heads = checks.relation_heads(term, spec=spec, shape=shape)
                self.check_tokens(spec, target=target)
                return Relations(term, name=name, target=target, spec=spec, num_relation_heads=num_heads)
            case EmbeddingsTerm():
                target, embeddings = self.find(term.target, EmbeddingsSpec)
                checks.check_embeddings(term, spec=embeddings, shape=shape)
                return Embeddings(term, name=name, target=target, width=embeddings.width, shape=shape)
            case _:
                assert_never(term)

    def soft_labels(self, term: SoftLabelsTerm, *, name: str) -> Term:
        """Return a term of soft labels."""
        target, spec = self.find(term.target, SoftLabelsSpec)
        return self.sparse_labels(term, name=name, target=target, spec=spec)

    def hard_tokens(self, term: HardTokensTerm, *, name: str) -> Term:
        """Return a term of a text's own tokens."""
        raise NotImplementedError

    def check_tokens(self, spec: FeaturesSpec, *, target: str) -> None:
        """Check that the student has the tokens that a target has rows of.

        Raises:
            ConfigError: it has not.
        """

    def check_windows(self, term: AttentionTerm) -> None:
        """Check that the student's tokens see all those whose attention is compared.

        Raises:
            ConfigError: they do not.
        """

    def sparse_labels(self, term: SoftLabelsTerm, *, name: str, target: str, spec: SoftLabelsSpec) -> SparseLabels:
        """Return a term of cached soft labels.

        Raises:
            ConfigError: it cannot be served.
        """
        loss = checks.check_soft_labels(term, spec=spec, shape=self.shape)
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

    def find(self, name: str | None, *kinds: type[_Spec]) -> tuple[str, _Spec]:
        """Return a target's name and spec: the one that is named, else the only one of the first kind that has any."""
        listed = ", ".join(f"{name} ({spec.kind})" for name, spec in self.targets.items()) or "none"
        if name is not None:
            if name not in self.targets:
                raise ConfigError(f"there is no target {name!r}; the targets are {listed}. Correct target, or add it to targets")
            spec = self.targets[name]
            for kind in kinds:
                if isinstance(spec, kind):
                    return name, spec
            raise ConfigError(f"target {name!r} holds {spec.kind}, which this term cannot read; the targets are {listed}")
        for kind in kinds:
            found = [(name, spec) for name, spec in self.targets.items() if isinstance(spec, kind)]
            if len(found) == 1:
                return found[0]
            if len(found) > 1:
                names = ", ".join(name for name, _ in found)
                raise ConfigError(f"targets {names} all fit; say which in target")
        wanted = " or ".join(str(kind.model_fields["kind"].default) for kind in kinds)
        raise ConfigError(f"it needs a target of {wanted}, and the targets are {listed}; add one, label again, or drop the term")


def _names(terms: Sequence[TermConfig]) -> list[str]:
    """Return a name a term: its kind, numbered where a kind comes again."""
    seen: Counter[str] = Counter()
    names = []
    for term in terms:
        seen[term.kind] += 1
        names.append(f"{term.kind}_loss" + (f"_{seen[term.kind]}" if seen[term.kind] > 1 else ""))
    return names
