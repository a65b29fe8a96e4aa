"""What a stream gives of cached targets, what a student gives back, and what of it a loss asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from storage.specs import TargetSpec
from student_training.objective import SparseTargets


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureTargets:
    """Stored vectors of a batch.

    Attributes:
        tensors: float [R, width] by stored name: "hidden.6", "query.3", "embedding", "key_relations.12".
    """

    tensors: dict[str, Tensor]

    def pin_memory(self) -> FeatureTargets:
        """Return the vectors in page-locked memory."""
        return FeatureTargets(tensors={name: values.pin_memory() for name, values in self.tensors.items()})

    def to(self, device: torch.device) -> FeatureTargets:
        """Return the vectors on a device, copied without waiting where memory is page-locked."""
        return FeatureTargets(tensors={name: values.to(device, non_blocking=True) for name, values in self.tensors.items()})


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetRows:
    """One named target of a batch: R rows, sample by sample, in the order of their positions. A picture is a sequence, too.

    Attributes:
        spec: what the rows are.
        sequence: int64 [R], row of the batch that each belongs to, ascending.
        position: int64 [R], the token whose output is to match: of labels of next tokens the one before, so that it ends at the
            last but one. 0 where a sequence has one row. Of relations, whose rows are pairs, the later token of the pair: rows
            of a sequence are its lower triangle, row by row.
        soft_labels: of targets that are soft labels, [R, K].
        features: of all others.
    """

    spec: TargetSpec
    sequence: Tensor
    position: Tensor
    soft_labels: SparseTargets | None = None
    features: FeatureTargets | None = None

    def __len__(self) -> int:
        return len(self.sequence)

    def pin_memory(self) -> TargetRows:
        """Return the rows in page-locked memory."""
        return replace(
            self,
            sequence=self.sequence.pin_memory(),
            position=self.position.pin_memory(),
            soft_labels=None if self.soft_labels is None else self.soft_labels.pin_memory(),
            features=None if self.features is None else self.features.pin_memory(),
        )

    def to(self, device: torch.device) -> TargetRows:
        """Return the rows on a device, copied without waiting where memory is page-locked."""
        return replace(
            self,
            sequence=self.sequence.to(device, non_blocking=True),
            position=self.position.to(device, non_blocking=True),
            soft_labels=None if self.soft_labels is None else self.soft_labels.to(device),
            features=None if self.features is None else self.features.to(device),
        )


class TermBatch(Protocol):
    """What terms need of a batch, of texts or of pictures."""

    @property
    def labels(self) -> Tensor:
        """int64 [B], hard labels, NO_LABEL where there is none."""

    @property
    def attention_mask(self) -> Tensor:
        """Bool [B, L], False where there is padding; pictures have none."""

    @property
    def targets(self) -> Mapping[str, TargetRows]:
        """Cached targets by their names in the experiment."""

    def __len__(self) -> int: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Positions:
    """Tokens of a batch: (sequence[i], position[i]).

    Attributes:
        sequence: int64 [P].
        position: int64 [P].
    """

    sequence: Tensor
    position: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Wants:
    """What a student is asked for.

    Attributes:
        logits: whether logits are wanted.
        positions: of a language model, where; None: everywhere.
        hidden_states: whether hidden states are wanted.
        vectors: names of attention vectors: "query.3".
        embedding: whether one vector a sample is wanted.
    """

    logits: bool = True
    positions: Positions | None = None
    hidden_states: bool = False
    vectors: tuple[str, ...] = ()
    embedding: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class StudentOutput:
    """What a student gives.

    Attributes:
        logits: [B, C] of a classifier; of a language model [B, L, V], or [P, V] where only some positions are wanted.
        hidden_states: [B, L, H] of layers 0 to n; 0 is what enters the first layer. Empty unless wanted.
        vectors: [B, L, heads * width] by name, of those that are wanted.
        embedding: [B, E], what the head of a classifier reads; of a language model, the mean of its last hidden states.
    """

    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] = ()
    vectors: dict[str, Tensor] = field(default_factory=dict)
    embedding: Tensor | None = None


def mean_of_tokens(hidden: Tensor, *, attention_mask: Tensor) -> Tensor:
    """Return [B, H], the mean of hidden states [B, L, H] over the tokens of each sample."""
    there = attention_mask[:, :, None]
    return torch.where(there, hidden, 0.0).sum(dim=1) / there.sum(dim=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class StudentShape:
    """What a student has, as far as losses depend on it.

    Attributes:
        kind: which head it has.
        num_classes: classes or, of a language model, tokens of the vocabulary.
        num_layers: layers whose output it can show; 0 where it has none.
        width: of hidden states.
        num_heads: attention heads of a layer; 0 where it has none.
        num_key_value_heads: likewise, of keys and values.
        head_width: of each.
        embedding_width: of its embedding of a sample.
        causal: whether a token sees no later ones.
        attention_windows: by layer, how far a token sees; None: any distance. Empty where no layer has a limit.
        num_tokens: of every picture, tokens of a layer, prefix included; 0 where there are none, and of texts.
        num_prefix_tokens: of these, class, distillation and register tokens, which come first.
    """

    kind: Literal["masked_lm", "causal_lm", "sequence_classifier", "picture_classifier"]
    num_classes: int
    num_layers: int = 0
    width: int = 0
    num_heads: int = 0
    num_key_value_heads: int = 0
    head_width: int = 0
    embedding_width: int = 0
    causal: bool = False
    attention_windows: tuple[int | None, ...] = ()
    num_tokens: int = 0
    num_prefix_tokens: int = 0

    @property
    def of_pictures(self) -> bool:
        """Whether it looks at pictures."""
        return self.kind == "picture_classifier"
