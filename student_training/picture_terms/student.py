"""Students of pictures that show what their layers compute: any timm network, vision transformers in full."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from timm.layers.attention import Attention
from torch import Tensor, nn

from storage.specs import Size
from student_training.terms.interface import StudentOutput, StudentShape, Wants

_ALL_KINDS = ("query", "key", "value")


class PictureStudent(nn.Module):
    """A timm network. What it shows is what `pipelines.teachers.picture_networks` stores of a teacher.

    Hidden states are those of `blocks` over tokens: 0 is what enters the first block, l what block l gives, prefix tokens first.
    Query, key and value vectors are those of timm's plain attention, norms included. A network without such layers has an
    embedding and logits.

    Attributes:
        network: the network; it alone is evaluated and exported.
        shape: what it has.
        drops_patches: whether it leaves patches out while it is trained, so that its tokens are not those of a teacher.
    """

    def __init__(self, network: nn.Module, *, size: Size, num_classes: int) -> None:
        super().__init__()
        self.network = network
        blocks = getattr(network, "blocks", None)
        # In a tuple, so that they are not registered a second time.
        self._blocks: tuple[nn.Module, ...] = tuple(blocks) if isinstance(blocks, nn.Sequential | nn.ModuleList) else ()
        self.drops_patches = not isinstance(getattr(network, "patch_drop", None), nn.Identity | None)
        self.shape = self._look(size=size, num_classes=num_classes)

    def _look(self, *, size: Size, num_classes: int) -> StudentShape:
        """Return what one grey picture shows."""
        was_training = self.network.training
        self.network.eval()
        attention = [self._attention(layer) for layer in range(1, len(self._blocks) + 1)]
        plain = [layer for layer in attention if layer is not None]
        with torch.no_grad():
            output = self(torch.zeros(1, 3, *size), wants=Wants(hidden_states=True, embedding=_has_embedding(self.network)))
        self.network.train(was_training)
        hidden = output.hidden_states
        heads = {(layer.num_heads, layer.head_dim) for layer in plain}
        num_heads, head_width = heads.pop() if hidden and len(plain) == len(attention) and len(heads) == 1 else (0, 0)
        return StudentShape(
            kind="picture_classifier",
            num_classes=num_classes,
            num_layers=len(hidden) - 1 if hidden else 0,
            width=hidden[0].shape[2] if hidden else 0,
            num_heads=num_heads,
            num_key_value_heads=num_heads,
            head_width=head_width,
            embedding_width=0 if output.embedding is None else output.embedding.shape[1],
            num_tokens=hidden[0].shape[1] if hidden else 0,
            num_prefix_tokens=_num_prefix_tokens(self.network, num_tokens=hidden[0].shape[1]) if hidden else 0,
        )

    def _attention(self, layer: int) -> Attention | None:
        """Return the plain attention of a layer, counted from 1: one projection, and no positions between it and the product."""
        found: Any = getattr(self._blocks[layer - 1], "attn", None)
        return found if type(found) is Attention and found.qkv is not None else None

    def forward(self, images: Tensor, *, wants: Wants | None = None) -> StudentOutput:
        """Return what is wanted of pictures.

        Args:
            images: float [B, 3, H, W], normalised.
            wants: which outputs; None: logits.
        """
        wants = Wants() if wants is None else wants
        network: Any = self.network
        hidden: list[Tensor] = []
        vectors: dict[str, Tensor] = {}
        logits: Tensor | None = None
        embedding: Tensor | None = None
        with ExitStack() as stack:
            if wants.hidden_states and self._blocks:
                stack.callback(self._blocks[0].register_forward_pre_hook(lambda _, given: hidden.append(given[0])).remove)
                for block in self._blocks:
                    stack.callback(block.register_forward_hook(lambda *call: hidden.append(call[2])).remove)
            for layer in {int(name.partition(".")[2]) for name in wants.vectors}:
                attention = self._attention(layer)
                assert attention is not None
                hook = _take_apart(attention, into=vectors, layer=layer)
                stack.callback(attention.qkv.register_forward_hook(hook).remove)
            if wants.embedding:
                features = network.forward_features(images)
                embedding = network.forward_head(features, pre_logits=True)
                logits = network.forward_head(features) if wants.logits else None
            elif wants.logits:
                logits = network(images)
            else:
                network.forward_features(images)
        return StudentOutput(
            logits=logits,
            hidden_states=tuple(hidden) if _are_of_the_same_tokens(hidden) else (),
            vectors={name: vectors[name] for name in wants.vectors},
            embedding=embedding if embedding is not None and embedding.ndim == 2 else None,
        )


def _num_prefix_tokens(network: nn.Module, *, num_tokens: int) -> int:
    """Return how many tokens come before the patches; some networks (CaiT, XCiT) add theirs after these layers."""
    if num_tokens == getattr(getattr(network, "patch_embed", None), "num_patches", None):
        return 0
    return int(getattr(network, "num_prefix_tokens", 0))


def _has_embedding(network: nn.Module) -> bool:
    """Return whether timm can show what the head of a network reads."""
    head: Any = getattr(network, "forward_head", None)
    return head is not None and "pre_logits" in inspect.signature(head).parameters


def _are_of_the_same_tokens(hidden: list[Tensor]) -> bool:
    """Return whether blocks keep tokens as they are; stages that differ in resolution do not."""
    return len({tuple(states.shape) for states in hidden if states.ndim == 3}) == 1 and all(states.ndim == 3 for states in hidden)


def _take_apart(attention: Attention, *, into: dict[str, Tensor], layer: int) -> Callable[..., None]:
    def hook(_module: nn.Module, _given: Any, gave: Tensor) -> None:
        query, key, value = gave.reshape(*gave.shape[:2], 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        # As the layer does before its dot product.
        heads = (attention.q_norm(query), attention.k_norm(key), value)
        for kind, vectors in zip(_ALL_KINDS, heads, strict=True):
            into[f"{kind}.{layer}"] = vectors.transpose(1, 2).flatten(2)

    return hook
