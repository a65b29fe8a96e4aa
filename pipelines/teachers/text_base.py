"""What every teacher of texts is once it is loaded: a spec, its limits, and what it computes of padded batches of token ids."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from pipelines.teachers.base import describe
from pipelines.teachers.outputs import FeatureShape, RawOutputs, VectorOutputs, Wanted
from storage.errors import TeacherError
from storage.specs import Positions, TextTeacherSpec

if TYPE_CHECKING:
    import torch

    from storage.text.tokenizer import TextTokenizer, TokenizerFacts


PROBE_TOKENS = 4
"""Tokens of the sequences that show what a network gives."""


class TextNetwork(Protocol):
    """A forward pass over padded batches of token ids."""

    def run(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, *, wanted: Wanted) -> RawOutputs:
        """Return what is wanted.

        Args:
            input_ids: int64 [batch, tokens], padded on the right.
            attention_mask: int64 [batch, tokens], 1 where there is a token.
        """

    def head(self, states: torch.Tensor) -> torch.Tensor:
        """Return the logits [positions, outputs] of some of `RawOutputs.states`, [positions, width]."""


class NetworkShape(FeatureShape):
    """What a network gives, as one short batch showed.

    Attributes:
        num_outputs: of its head, padding beyond the vocabulary included.
        per_token: whether it gives logits of every token, or of the sequence.
        max_length: most tokens it takes; None: no limit is known.
        why_no_soft_labels: what to say where they are asked for; empty where its logits are a distribution's.
    """

    num_outputs: int
    per_token: bool
    max_length: int | None
    why_no_soft_labels: str = ""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TextTeacher:
    """A loaded teacher: eval mode, no gradients, weights on the device in the dtype of `spec.precision`.

    Attributes:
        name: what the config calls it, for messages and reports.
        spec: identity of the labels it gives.
        positions: which rows its soft labels have unless the target says otherwise.
        tokenizer: the one that it was trained with.
        class_names: of a classifier, in the order of the logits, where the model's config holds them.
        pad_token_id: what stands behind a sequence that is shorter than its batch; it is never attended to.
        lock: one batch at a time; the vectors of attention are collected beside the forward pass.
    """

    name: str
    spec: TextTeacherSpec
    shape: NetworkShape
    positions: Positions
    tokenizer: TextTokenizer
    class_names: tuple[str, ...] | None
    pad_token_id: int
    device: torch.device
    dtype: torch.dtype
    network: TextNetwork
    lock: Any

    @property
    def vocabulary_size(self) -> int:
        """Tokens of the tokenizer; logits beyond them pad the head and are cut off."""
        return self.tokenizer.facts.vocabulary_size

    def run(self, token_ids: npt.NDArray[np.integer], *, lengths: npt.NDArray[np.int64], wanted: Wanted) -> TextOutputs:
        """Run a padded batch.

        Args:
            token_ids: [batch, tokens]; what lies at and behind a sequence's length is not read.
            lengths: int64 [batch].

        Raises:
            TeacherError: the forward pass fails, or runs out of memory.
        """
        import torch

        longest = token_ids.shape[1]
        there = np.arange(longest) < lengths[:, None]
        batch = f"a batch of {len(lengths)} sequences of up to {longest} tokens ({self.spec.precision}, {self.device})"
        try:
            with self.lock, torch.inference_mode():
                inputs = torch.from_numpy(np.where(there, token_ids, self.pad_token_id).astype(np.int64)).to(self.device)
                mask = torch.from_numpy(there.astype(np.int64)).to(self.device)
                raw = self.network.run(inputs, mask, wanted=wanted)
        except torch.OutOfMemoryError as error:
            raise TeacherError(
                f"teacher {self.name} ran out of memory on {batch}: nothing was labelled. Lower generation.batch_size or "
                "views.length, or set teacher.precision: bf16"
            ) from error
        except Exception as error:
            raise TeacherError(
                f"teacher {self.name} failed on {batch}: {describe(error)}. Check that the model takes sequences of this length "
                "(views.length), tokens of this tokenizer (teacher.tokenizer) and this precision (teacher.precision: fp32)"
            ) from error
        return TextOutputs(teacher=self, raw=raw)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TextOutputs(VectorOutputs):
    """What a teacher gave of a batch of sequences, on the device; float32 where it is handed out."""

    teacher: TextTeacher

    def sequence_logits(self) -> torch.Tensor:
        """Return float32 [batch, classes]."""
        assert self.raw.logits is not None
        return self.raw.logits.float()

    def token_logits(self, sequences: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return float32 [tokens, vocabulary] of some tokens; what a head has beyond the vocabulary is cut off.

        Args:
            sequences: int64 [tokens], rows of the batch.
            positions: int64 [tokens], in their sequence.

        Raises:
            TeacherError: out of memory.
        """
        import torch

        try:
            with torch.inference_mode():
                if self.raw.logits is not None:
                    chosen = self.raw.logits[sequences, positions]
                else:
                    assert self.raw.states is not None
                    with self.teacher.lock:
                        chosen = self.teacher.network.head(self.raw.states[sequences, positions])
                return chosen[:, : self.teacher.vocabulary_size].float()
        except torch.OutOfMemoryError as error:
            raise TeacherError(
                f"teacher {self.teacher.name} ran out of memory on the logits of {len(sequences)} tokens: nothing was labelled. "
                "Lower generation.batch_size, or set teacher.precision: bf16"
            ) from error


def probe(tokenizer: TokenizerFacts, *, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and mask of two sequences, one of them shorter."""
    import torch

    rows = [ordinary_ids(tokenizer, num_tokens=PROBE_TOKENS, first=i) for i in range(2)]
    ids = torch.from_numpy(np.stack(rows).astype(np.int64)).to(device)
    mask = torch.ones_like(ids)
    mask[1, -1] = 0
    return ids, mask


def ordinary_ids(tokenizer: TokenizerFacts, *, num_tokens: int, first: int = 0) -> npt.NDArray[np.uint32]:
    """Return uint32 [num_tokens], a sequence that no network can take amiss: one token after the other, none of them special.

    Args:
        first: which of them it begins with.
    """
    ordinary = [i for i in range(min(tokenizer.vocabulary_size, 1000)) if i not in tokenizer.special_ids] or [0]
    return np.array(ordinary, dtype=np.uint32)[(first + np.arange(num_tokens)) % len(ordinary)]


def new_lock() -> Any:
    """Return what keeps a teacher's batches apart."""
    return threading.RLock()
