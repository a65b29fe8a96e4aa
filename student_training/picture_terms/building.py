"""From the terms of a config to terms that run over pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from storage.config.terms import HardTokensTerm, SoftLabelsTerm, TermConfig
from storage.errors import ConfigError
from storage.specs import EmbeddingsSpec, FeaturesSpec, HiddenStatesSpec, TargetSpec
from student_training.terms.building import TermBuilder
from student_training.terms.interface import StudentShape
from student_training.terms.term import Term


def build_picture_terms(
    terms: Sequence[TermConfig],
    *,
    targets: Mapping[str, TargetSpec],
    num_tokens: Mapping[str, int],
    shape: StudentShape,
    drops_patches: bool,
    mean_class_probs: Mapping[str, npt.NDArray[np.floating]],
) -> list[Term]:
    """Return the terms; arguments as of `student_training.picture_terms.learner.make_picture_learner`.

    Raises:
        ConfigError: terms that cannot be served, all of them in one message.
    """
    builder = _PictureTermBuilder(
        targets=targets, num_tokens=num_tokens, shape=shape, drops_patches=drops_patches, mean_class_probs=mean_class_probs
    )
    return builder.build_all(terms)


class _PictureTermBuilder(TermBuilder):
    """Builds terms over pictures."""

    def __init__(
        self,
        *,
        targets: Mapping[str, TargetSpec],
        num_tokens: Mapping[str, int],
        shape: StudentShape,
        drops_patches: bool,
        mean_class_probs: Mapping[str, npt.NDArray[np.floating]],
    ) -> None:
        super().__init__(targets=targets, shape=shape, mean_class_probs=mean_class_probs)
        self._num_tokens = num_tokens
        self._drops_patches = drops_patches

    def soft_labels(self, term: SoftLabelsTerm, *, name: str) -> Term:
        """Return a term of cached soft labels."""
        if term.positions is not None:
            raise ConfigError(f"positions is {term.positions}, and a picture has one row of logits; leave positions out")
        return super().soft_labels(term, name=name)

    def hard_tokens(self, term: HardTokensTerm, *, name: str) -> Term:
        """Refuse it."""
        del term, name
        raise ConfigError("pictures have no tokens of a vocabulary to predict; use hard_label, or drop the term")

    def check_tokens(self, spec: FeaturesSpec, *, target: str) -> None:
        """Check that the student has the tokens that a target has rows of.

        Raises:
            ConfigError: it has others, or leaves some out.
        """
        shape = self.shape
        if isinstance(spec, EmbeddingsSpec) or (isinstance(spec, HiddenStatesSpec) and spec.tokens == "mean"):
            return
        if isinstance(spec, HiddenStatesSpec) and spec.tokens == "first":
            if not shape.num_prefix_tokens:
                raise ConfigError(
                    f"target {target!r} holds the first token of a picture, and the student has no class token, so that its "
                    "first one is a patch; give it one (kwargs.class_token: true), or label hidden states with tokens: mean"
                )
            return
        if self._drops_patches:
            raise ConfigError(
                f"target {target!r} holds every token, and the student drops patches while it is trained "
                "(kwargs.patch_drop_rate); set patch_drop_rate: 0, or label hidden states with tokens: mean"
            )
        stored = self._num_tokens[target]
        if stored != shape.num_tokens:
            patches = shape.num_tokens - shape.num_prefix_tokens
            pooled = ", or label hidden states with tokens: mean" if isinstance(spec, HiddenStatesSpec) else ""
            raise ConfigError(
                f"target {target!r} holds {stored} tokens a picture and the student has {shape.num_tokens} ({patches} patches "
                f"and {shape.num_prefix_tokens} prefix tokens), so that they cannot be compared one by one; give the student the "
                "teacher's grid of patches (kwargs.patch_size, training.preprocessing.size) and prefix tokens (class, "
                f"distillation and register tokens){pooled}"
            )
