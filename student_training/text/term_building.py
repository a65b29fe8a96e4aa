"""From the terms of a config to terms that run over texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from storage.config.terms import AttentionTerm, HardLabelTerm, HardTokensTerm, SoftLabelsTerm, TermConfig
from storage.config.training import TrainingConfig
from storage.errors import ConfigError
from storage.specs import HiddenStatesSpec, MaskedTokensView, SoftLabelsSpec, TargetSpec, TextViewSpec
from student_training.heads import HeadModule
from student_training.terms.building import TermBuilder
from student_training.terms.interface import StudentShape
from student_training.terms.term import Term
from student_training.text import term_checks as checks
from student_training.text.token_terms import HardTokens, HeadLabels


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
    builder = _TextTermBuilder(targets=targets, view=view, shape=shape, mean_class_probs=mean_class_probs, heads=heads)
    return builder.build_all(terms)


class _TextTermBuilder(TermBuilder):
    """Builds terms over texts."""

    def __init__(
        self,
        *,
        targets: Mapping[str, TargetSpec],
        view: TextViewSpec,
        shape: StudentShape,
        mean_class_probs: Mapping[str, npt.NDArray[np.floating]],
        heads: Mapping[str, HeadModule],
    ) -> None:
        super().__init__(targets=targets, shape=shape, mean_class_probs=mean_class_probs)
        self._masks = isinstance(view, MaskedTokensView)
        self._heads = heads
        self._max_tokens = view.length

    def check_windows(self, term: AttentionTerm) -> None:
        """Check that the student's tokens see all of a sequence."""
        checks.check_windows(term, shape=self.shape, max_tokens=self._max_tokens)

    def hard_tokens(self, term: HardTokensTerm, *, name: str) -> Term:
        """Return a term of the text's own tokens."""
        return HardTokens(term, name=name, row_set=checks.hard_token_rows(self.shape, masks=self._masks))

    def soft_labels(self, term: SoftLabelsTerm, *, name: str) -> Term:
        """Return a term of soft labels, stored ones or those of a teacher's kept head."""
        target, spec = self.find(term.target, SoftLabelsSpec, HiddenStatesSpec)
        if isinstance(spec, SoftLabelsSpec):
            if term.positions not in (None, spec.positions):
                raise ConfigError(
                    f"positions are {term.positions}, and the labels of target {target!r} are stored at {spec.positions} ones; "
                    "drop positions, which are of hidden states with a head, or label with these (target.positions)"
                )
            return self.sparse_labels(term, name=name, target=target, spec=spec)
        assert isinstance(spec, HiddenStatesSpec)
        head = self._heads.get(target)
        row_set = checks.check_head_labels(
            term,
            spec=spec,
            head=None if head is None else head.spec,
            teacher_kind=None if head is None else head.teacher_kind,
            shape=self.shape,
            masks=self._masks,
        )
        assert head is not None
        tensor = f"hidden.{spec.layers[-1]}"
        return HeadLabels(term, name=name, target=target, tensor=tensor, row_set=row_set, head=head)
