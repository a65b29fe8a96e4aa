"""Query, key and value vectors of any transformers network, as its dot products meet them: rotary position included.

Networks look their attention up by name in a registry of transformers. The name registered here computes what `sdpa` computes
and, inside `capturing`, keeps what it was given. A hook on the projections would miss rotary positions and fused projections.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from storage.attention_window import attention_window

ATTENTION = "decant_capture"
"""Name of the attention that can be captured."""

_SDPA: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS["sdpa"]
_captured: ContextVar[list[dict[str, Tensor]] | None] = ContextVar("captured", default=None)
_windows: ContextVar[list[int | None] | None] = ContextVar("windows", default=None)


@contextmanager
def capturing() -> Iterator[list[dict[str, Tensor]]]:
    """Yield a list that gets the vectors of each attention that runs, in order: "query", "key" and "value" [B, L, heads * d]."""
    layers: list[dict[str, Tensor]] = []
    token = _captured.set(layers)
    try:
        yield layers
    finally:
        _captured.reset(token)


@contextmanager
def seeing_windows() -> Iterator[list[int | None]]:
    """Yield a list that gets how far the tokens of each attention that runs see, in order; None: without limit."""
    windows: list[int | None] = []
    token = _windows.set(windows)
    try:
        yield windows
    finally:
        _windows.reset(token)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    **options: Any,
) -> Any:
    layers = _captured.get()
    if layers is not None:
        factor = 1.0 if scaling is None else scaling * math.sqrt(query.shape[3])
        # Where a network scales otherwise, its queries take the difference: scores are q.k / sqrt(d), as the teacher's are.
        scaled = query if abs(factor - 1) < 1e-6 else query * factor
        vectors = {"query": scaled, "key": key, "value": value}
        layers.append({name: heads.transpose(1, 2).flatten(2) for name, heads in vectors.items()})
    windows = _windows.get()
    if windows is not None:
        windows.append(attention_window(module, given=options))
    return _SDPA(module, query, key, value, attention_mask, scaling=scaling, **options)


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _attend)
ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
