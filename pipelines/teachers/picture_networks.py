"""Vectors of networks that look at pictures: vision transformers of timm and of transformers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from pipelines.teachers.attention_capture import LayerAttention, recorded
from pipelines.teachers.outputs import FeatureShape, RawOutputs, Wanted

if TYPE_CHECKING:
    import torch


class PictureNetwork(Protocol):
    """A forward pass over normalised pictures that gives vectors."""

    def run(self, inputs: torch.Tensor, *, wanted: Wanted) -> RawOutputs:
        """Return what is wanted of pictures [batch, 3, height, width]; attention of all layers where any is wanted."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TimmNetwork:
    """A model of timm: hidden states and attention of those built of `blocks` over tokens, embeddings of any with a head."""

    module: Any

    def run(self, inputs: torch.Tensor, *, wanted: Wanted) -> RawOutputs:
        """See `PictureNetwork.run`."""
        import torch

        hidden: list[Any] = []
        attention: dict[int, LayerAttention] = {}
        blocks = list(getattr(self.module, "blocks", ())) if wanted.hidden or wanted.attention_layers else []
        with contextlib.ExitStack() as stack:
            for index, block in enumerate(blocks, start=1):
                if index == 1:
                    stack.callback(block.register_forward_pre_hook(lambda _, given: hidden.append(given[0])).remove)
                stack.callback(block.register_forward_hook(lambda *call: hidden.append(call[2])).remove)
                layer: Any = getattr(block, "attn", None)
                if wanted.attention_layers and _is_plain(layer):
                    stack.callback(layer.qkv.register_forward_hook(_take_apart(layer, into=attention, index=index)).remove)
            logits, features = self._forward(inputs, labels=wanted.labels, stack=stack)
        embedding: Any = None
        if wanted.embedding:
            embedding = self.module.forward_head(features, pre_logits=True)
        # Stages that differ in resolution are no layers over the same tokens.
        same = {tuple(states.shape) if isinstance(states, torch.Tensor) and states.ndim == 3 else None for states in hidden}
        return RawOutputs(
            logits=logits,
            hidden=tuple(hidden) if len(same) == 1 and None not in same else (),
            attention=attention,
            embedding=embedding if embedding is not None and embedding.ndim == 2 else None,
        )

    def _forward(self, inputs: torch.Tensor, *, labels: bool, stack: contextlib.ExitStack) -> tuple[Any, Any]:
        """Return logits, if labels are wanted, and what enters the head."""
        if not labels:
            return None, self.module.forward_features(inputs)
        # The whole network, as where labels alone are wanted: what it does between the two is its own affair.
        seen: list[Any] = []
        whole = self.module.forward_features

        def forward_features(*given: Any, **options: Any) -> Any:
            seen.append(whole(*given, **options))
            return seen[-1]

        self.module.forward_features = forward_features
        stack.callback(delattr, self.module, "forward_features")
        logits = self.module(inputs)
        return logits, seen[-1] if seen else None


def _is_plain(layer: Any) -> bool:
    """Return whether a layer is timm's plain attention: one projection to query, key and value, no rotary positions behind it."""
    from timm.layers.attention import Attention

    return type(layer) is Attention and getattr(layer, "qkv", None) is not None


def _take_apart(layer: Any, *, into: dict[int, LayerAttention], index: int) -> Callable[..., None]:
    def hook(_module: Any, _given: Any, gave: torch.Tensor) -> None:
        batch, tokens, _ = gave.shape
        query, key, value = gave.reshape(batch, tokens, 3, layer.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        # As the layer does before its dot product.
        query, key = layer.q_norm(query), layer.k_norm(key)
        into[index] = LayerAttention(query=query, key=key, value=value, causal=False)

    return hook


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TransformersPictureNetwork:
    """An image classifier of transformers."""

    module: Any
    head_layer: Any

    def run(self, inputs: torch.Tensor, *, wanted: Wanted) -> RawOutputs:
        """See `PictureNetwork.run`."""
        seen: list[torch.Tensor] = []
        with contextlib.ExitStack() as stack:
            attention = stack.enter_context(recorded(None)) if wanted.attention_layers else None
            if wanted.embedding and self.head_layer is not None:
                hook = self.head_layer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
                stack.callback(hook.remove)
            outputs = self.module(pixel_values=inputs, output_hidden_states=wanted.hidden, return_dict=True)
        hidden = tuple(outputs.hidden_states or ()) if wanted.hidden else ()
        same = all(states.ndim == 3 for states in hidden) and len({states.shape for states in hidden}) == 1
        return RawOutputs(
            logits=outputs.logits if wanted.labels else None,
            hidden=hidden if same else (),
            attention=None if attention is None else dict(attention),
            embedding=seen[0] if seen and seen[0].ndim == 2 else None,
        )


def shape_of(raw: RawOutputs, *, model: str) -> FeatureShape:
    """Return what vectors a network gave of a batch of pictures in which all were wanted."""
    why = f"{model} has no layers that keep its tokens as they are (vision transformers have). Choose another model or target"
    return FeatureShape(
        num_layers=len(raw.hidden) - 1 if raw.hidden else None,
        width=int(raw.hidden[-1].shape[-1]) if raw.hidden else None,
        why_no_hidden=why,
        embedding_width=None if raw.embedding is None else int(raw.embedding.shape[-1]),
    ).with_attention(list((raw.attention or {}).values()), model=model)
