"""What the stream of texts gives, what a student gives back, and what of it a loss asks for."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

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
    """One named target of a batch: R rows, sequence by sequence, in the order of their positions.

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


@dataclass(frozen=True, kw_only=True, slots=True)
class TextBatch:
    """Sequences of one step that one process trains on, padded on the right to the longest of them.

    Attributes:
        step: update, counted from 0 over all epochs.
        keys: sample keys, for messages.
        input_ids: int64 [B, L], what the teacher saw: masks applied.
        token_ids: int64 [B, L], what the text is.
        attention_mask: bool [B, L], False where there is padding.
        masked: bool [B, L], tokens that are masked; None where the view masks none.
        labels: int64 [B], hard labels, NO_LABEL where there is none.
        targets: cached targets by their names in the experiment; empty from a source alone.
    """

    step: int
    keys: list[str]
    input_ids: Tensor
    token_ids: Tensor
    attention_mask: Tensor
    masked: Tensor | None
    labels: Tensor
    targets: dict[str, TargetRows]

    def __len__(self) -> int:
        return len(self.keys)

    def pin_memory(self) -> TextBatch:
        """Return the batch in page-locked memory; the DataLoader calls this."""
        return replace(
            self,
            input_ids=self.input_ids.pin_memory(),
            token_ids=self.token_ids.pin_memory(),
            attention_mask=self.attention_mask.pin_memory(),
            masked=None if self.masked is None else self.masked.pin_memory(),
            labels=self.labels.pin_memory(),
            targets={name: rows.pin_memory() for name, rows in self.targets.items()},
        )

    def to(self, device: torch.device) -> TextBatch:
        """Return the batch on a device, copied without waiting where memory is page-locked."""
        return replace(
            self,
            input_ids=self.input_ids.to(device, non_blocking=True),
            token_ids=self.token_ids.to(device, non_blocking=True),
            attention_mask=self.attention_mask.to(device, non_blocking=True),
            masked=None if self.masked is None else self.masked.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            targets={name: rows.to(device) for name, rows in self.targets.items()},
        )


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
        embedding: whether one vector a sequence is wanted.
    """

    logits: bool = True
    positions: Positions | None = None
    hidden_states: bool = False
    vectors: tuple[str, ...] = ()
    embedding: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class TextOutput:
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
    """Return [B, H], the mean of hidden states [B, L, H] over the tokens of each sequence."""
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
        embedding_width: of its embedding of a sequence.
        causal: whether a token sees no later ones.
    """

    kind: Literal["masked_lm", "causal_lm", "sequence_classifier"]
    num_classes: int
    num_layers: int = 0
    width: int = 0
    num_heads: int = 0
    num_key_value_heads: int = 0
    head_width: int = 0
    embedding_width: int = 0
    causal: bool = False


class TextStudent(nn.Module):
    """A network that reads token sequences."""

    shape: StudentShape

    def forward(self, input_ids: Tensor, *, attention_mask: Tensor, wants: Wants | None = None) -> TextOutput:
        """Return what is wanted of padded sequences; padding changes nothing.

        Args:
            input_ids: int64 [B, L].
            attention_mask: bool [B, L].
            wants: which outputs; None: logits everywhere.
        """
        raise NotImplementedError


class Learner(nn.Module):
    """A student with what it minimises: one module, so that one wrapper, optimiser and checkpoint hold all that is trained.

    Made by `student_training.text.objective.make_learner`. Export and evaluate `student` alone.

    Attributes:
        student: the network.
        names: names of the losses that are computed, `loss` first.
    """

    student: TextStudent
    names: tuple[str, ...]

    def counts(self, batch: TextBatch) -> Tensor:
        """Return float32 [terms], what each term's sum is divided by. Several processes use the mean over them."""
        raise NotImplementedError

    def forward(self, batch: TextBatch, *, counts: Tensor | None = None) -> dict[str, Tensor]:
        """Return scalars: `loss`, and each term by its name, not yet weighted.

        Args:
            batch: on the module's device.
            counts: divisors; None: those of this batch.
        """
        raise NotImplementedError
