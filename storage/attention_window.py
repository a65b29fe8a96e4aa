"""How far the tokens of an attention layer see, without which its maps cannot be rebuilt from queries and keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def attention_window(layer: Any, *, given: Mapping[str, Any]) -> int | None:
    """Return how far a layer's tokens see, by what it hands to its attention, or else by its config; None: without limit.

    Args:
        layer: an attention module of transformers.
        given: the options it calls its attention with.
    """
    if "sliding_window" in given:
        found = given["sliding_window"]
        return int(found) if found else None
    config = getattr(layer, "config", None)
    kinds, index = getattr(config, "layer_types", None), getattr(layer, "layer_idx", None)
    kind = kinds[index] if kinds and index is not None else None
    if kind == "full_attention":
        return None
    # Chunks let tokens see less than a window as long does, and as much where a sequence is no longer than one.
    found = getattr(config, "attention_chunk_size" if kind == "chunked_attention" else "sliding_window", None)
    return int(found) if found else None
