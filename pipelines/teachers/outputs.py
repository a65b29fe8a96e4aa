"""What networks give beside labels: hidden states, attention vectors, embeddings; and what they are like."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from pipelines.teachers.attention_capture import LayerAttention
from storage.errors import TeacherError
from storage.specs import Spec

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What is asked of a forward pass.

    Attributes:
        labels: logits, of every token or of the sequence.
        hidden: hidden states of all layers.
        attention_layers: counted from 1.
        embedding: what the head reads, one vector a sequence.
    """

    labels: bool = False
    hidden: bool = False
    attention_layers: frozenset[int] = frozenset()
    embedding: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class RawOutputs:
    """What a network gives of a batch, on its device and in its dtype.

    Attributes:
        logits: [batch, classes] of sequences, or [batch, tokens, outputs]; None where `states` stand for them.
        states: [batch, tokens, width], what the network's head reads: the head runs later, and only where it is asked.
        hidden: [batch, tokens, width] of layer 0 (what enters the first layer) to the last.
        embedding: [batch, width].
    """

    logits: torch.Tensor | None = None
    states: torch.Tensor | None = None
    hidden: tuple[torch.Tensor, ...] = ()
    attention: dict[int, LayerAttention] | None = None
    embedding: torch.Tensor | None = None


class AttentionShape(Spec):
    """The attention heads of a network, the same in every layer."""

    num_heads: int
    num_key_value_heads: int
    head_width: int
    causal: bool


class FeatureShape(Spec):
    """What vectors a network gives, as one short batch showed.

    Attributes:
        num_layers, width: of its hidden states; None where it gives none.
        embedding_width: None where it gives no embeddings.
        attention: None where its attention cannot be read.
        attention_windows: by layer, how far its tokens see; None: any distance. Empty where no layer has a limit.
        why_no_attention, why_no_hidden: what to say where they are asked for.
    """

    num_layers: int | None
    width: int | None
    embedding_width: int | None
    attention: AttentionShape | None = None
    num_attention_layers: int = 0
    attention_windows: tuple[int | None, ...] = ()
    why_no_attention: str = ""
    why_no_hidden: str = ""

    def with_attention(self, layers: Sequence[LayerAttention], *, model: str) -> Self:
        """Return the shape with what attention layers show.

        Args:
            model: what to call the network where they cannot be read.
        """
        if not layers:
            why = (
                f"{model} does not hand its vectors over. Choose a model that does (ViT and DeiT; BERT, RoBERTa, DistilBERT, "
                "GPT-2, Llama and most others of transformers), or another target"
            )
            return self.model_copy(update={"why_no_attention": why})
        heads = {(one.query.shape[1], one.key.shape[1], one.query.shape[3], one.value.shape[3], one.causal) for one in layers}
        num_heads, num_key_value_heads, head_width, value_width, causal = next(iter(heads))
        if len(heads) > 1 or head_width != value_width:
            why = f"layers or vectors of {model} differ in their heads; choose another target"
            return self.model_copy(update={"why_no_attention": why})
        found = AttentionShape(num_heads=num_heads, num_key_value_heads=num_key_value_heads, head_width=head_width, causal=causal)
        windows = tuple(one.window for one in layers)
        return self.model_copy(
            update={
                "attention": found,
                "num_attention_layers": len(layers),
                "attention_windows": windows if any(windows) else (),
            }
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class VectorOutputs:
    """What a teacher gave of a batch, on the device; float32 where it is handed out."""

    raw: RawOutputs

    def hidden(self, layer: int) -> torch.Tensor:
        """Return float32 [batch, tokens, width] of a layer: 0 is what enters the first one."""
        return self.raw.hidden[layer].float()

    def attention(self, layer: int) -> LayerAttention:
        """Return the vectors of an attention layer, counted from 1."""
        assert self.raw.attention is not None
        return self.raw.attention[layer]

    def embedding(self) -> torch.Tensor:
        """Return float32 [batch, width]."""
        assert self.raw.embedding is not None
        return self.raw.embedding.float()


NO_HIDDEN = "its network returns none. Choose another target"


def check_layers(layers: Collection[int], *, shape: FeatureShape, of: str, name: str) -> None:
    """Refuse layers that a network does not have.

    Args:
        of: "hidden_states", or "attention" whose layers count from 1.

    Raises:
        TeacherError: what can be chosen, and what cannot.
    """
    if of == "attention":
        if shape.attention is None:
            raise TeacherError(f"teacher {name} gives no attention vectors: {shape.why_no_attention}")
        first, last = 1, shape.num_attention_layers
    else:
        if shape.num_layers is None:
            raise TeacherError(f"teacher {name} gives no hidden states: {shape.why_no_hidden}")
        first, last = 0, shape.num_layers
    missing = sorted(layer for layer in layers if not first <= layer <= last)
    if missing:
        raise TeacherError(
            f"target.layers: teacher {name} has no layer {', '.join(map(str, missing))} of {of}; it has {first} to {last}"
        )
