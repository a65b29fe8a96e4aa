"""Query, key and value vectors of transformers models, taken where the dot product meets them.

Every model that asks transformers' attention interface for its attention hands its vectors to one function, whatever its
projections are called and whatever it does to them before (rotary positions, norms). That function is ours here, and computes
what `sdpa` does.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from storage.attention_window import attention_window
from storage.errors import TeacherError

if TYPE_CHECKING:
    import torch

IMPLEMENTATION = "decant_sdpa"
_local = threading.local()


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerAttention:
    """What one attention layer multiplies.

    Attributes:
        query: [batch, heads, tokens, head width]; the scores are query times key over the square root of the head width.
        key: [batch, key and value heads, tokens, head width].
        value: as `key`.
        causal: whether a token sees only those before it.
        window: a token sees those less than so many places away; None: it sees any.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    causal: bool
    window: int | None = None

    def vectors(self, name: str) -> torch.Tensor:
        """Return float32 [batch, tokens, heads * head width] of query, key or value: heads side by side."""
        of = {"query": self.query, "key": self.key, "value": self.value}[name]
        return of.transpose(1, 2).flatten(2).float()


@dataclass(kw_only=True)
class _Recorder:
    layers: frozenset[int] | None
    num_seen: int = 0
    found: dict[int, LayerAttention] = field(default_factory=dict)


def install(module: Any, *, name: str) -> bool:
    """Let a transformers model hand over its vectors, and return whether it can.

    Raises:
        TeacherError: it can, but does not take the implementation.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    if not getattr(module, "_supports_attention_backend", False) or not getattr(module, "_supports_sdpa", False):
        return False

    def attend(
        layer: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        is_causal: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        recorder: _Recorder | None = getattr(_local, "recorder", None)
        if recorder is not None:
            recorder.num_seen += 1
            if recorder.layers is None or recorder.num_seen in recorder.layers:
                factor = 1.0 if scaling is None else scaling * query.shape[-1] ** 0.5
                recorder.found[recorder.num_seen] = LayerAttention(
                    # Where a model scales otherwise, its queries take the difference, so that the scores are right.
                    query=query if abs(factor - 1) < 1e-6 else query * factor,
                    key=key,
                    value=value,
                    causal=bool(getattr(layer, "is_causal", False) if is_causal is None else is_causal),
                    window=attention_window(layer, given=kwargs),
                )
        return sdpa_attention_forward(layer, query, key, value, attention_mask, scaling=scaling, is_causal=is_causal, **kwargs)

    AttentionInterface.register(IMPLEMENTATION, attend)
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
    if getattr(module.config, "_attn_implementation", None) != "sdpa":
        return False
    module.set_attn_implementation(IMPLEMENTATION)
    if module.config._attn_implementation != IMPLEMENTATION:
        raise TeacherError(
            f"teacher {name} ({type(module).__name__}) does not let its attention be read; leave out attention and relations, or "
            "give another model"
        )
    return True


@contextlib.contextmanager
def recorded(layers: Collection[int] | None) -> Iterator[dict[int, LayerAttention]]:
    """Collect what the attention layers of models that run in this thread multiply, by layer, counted from 1.

    Args:
        layers: which ones; None: all.
    """
    recorder = _Recorder(layers=None if layers is None else frozenset(layers))
    _local.recorder = recorder
    try:
        yield recorder.found
    finally:
        _local.recorder = None
