"""Targets of which a full block is more than a block may hold: known from specs, and so said before anything is computed."""

from __future__ import annotations

import numpy as np

from storage.block_bounds import BLOCK_TOKENS, MAX_BLOCK_SAMPLES, MAX_BLOCK_VALUE_ROWS, block_samples
from storage.blocks import MAX_STREAM_BYTES
from storage.codecs.dense import MAX_VALUES
from storage.codecs.stored import MAX_ENTRIES
from storage.label_blocks import block_rows
from storage.parts import MAX_MEANS
from storage.specs import (
    DenseCodec,
    ExactCodec,
    FeaturesSpec,
    MaskedTokensView,
    RelationsSpec,
    SoftLabelsSpec,
    TargetSpec,
    TextViewSpec,
)
from storage.specs.features import rows_of_samples
from storage.target_blocks import MAX_PICTURE_TOKENS

_SHORTEST = 16
"""Tokens of sequences that a full block is taken to hold at least. Blocks of shorter ones have more masked tokens, and more
samples; where that is too much, the writer of the block says so."""


def most_rows(target: TargetSpec, *, view: TextViewSpec) -> int:
    """Return the most rows of a target that a full block of texts has."""
    tokens = max(BLOCK_TOKENS, view.length)
    num_samples = BLOCK_TOKENS // min(_SHORTEST, view.length)
    if isinstance(target, SoftLabelsSpec):
        if target.positions == "view":
            return num_samples
        if target.positions == "masked" and isinstance(view, MaskedTokensView):
            lengths = np.arange(min(_SHORTEST, view.length), view.length + 1)
            masked = np.maximum(np.rint(view.mask_share * (lengths - 2 * view.special_tokens)), 1)
            return int(np.ceil((masked / lengths).max() * tokens))
        return tokens
    if isinstance(target, RelationsSpec):
        whole = rows_of_samples(target, num_tokens=view.length)
        return max(whole, min(BLOCK_TOKENS * (view.length + 1) // 2, MAX_BLOCK_VALUE_ROWS - 1))
    return tokens if target.per_token else num_samples


def why_too_large(target: TargetSpec, *, view: TextViewSpec | None) -> tuple[str, str] | None:
    """Return the field that is at fault, and why, of a target whose full blocks would be too large; None of others.

    Args:
        view: of texts; None of soft labels of pictures.
    """
    if isinstance(target, SoftLabelsSpec):
        most = block_rows(target, num_samples=2**31) if view is None else most_rows(target, view=view)
        what = f"each of up to {most:,} rows of a block"
        if target.num_classes > MAX_MEANS:
            return "kind", (
                f"{target.num_classes:,} classes are more than the {MAX_MEANS:,} whose mean probabilities can be kept; choose "
                "embeddings or hidden_states"
            )
        if isinstance(target.codec, DenseCodec) and most * target.num_classes > MAX_VALUES:
            return "codec.kind", (
                f"dense keeps {target.num_classes:,} probabilities of {what}, which may hold {MAX_VALUES:,}; choose threshold or "
                "sampled, whose expected values are the probabilities, or exact with a large k"
            )
        if isinstance(target.codec, ExactCodec) and most * target.max_entries > MAX_STREAM_BYTES:
            return "k", (
                f"{target.max_entries:,} classes of {what} are more than the {MAX_STREAM_BYTES:,} bytes that a stream of it may "
                f"have; give at most {MAX_STREAM_BYTES // most:,}"
            )
        if not isinstance(target.codec, DenseCodec | ExactCodec) and most * target.max_entries > MAX_ENTRIES:
            return "k" if target.k is not None else "codec", (
                f"{target.max_entries:,} classes of {what} are more than the {MAX_ENTRIES:,} that it may hold; give at most "
                f"{MAX_ENTRIES // most:,}"
            )
        return None
    assert view is not None
    most = most_rows(target, view=view)
    widest = max(target.tensors.values())
    if most * widest > MAX_STREAM_BYTES:
        remedy = "lower views.length or num_relation_heads" if isinstance(target, RelationsSpec) else "lower views.length"
        return "kind", (
            f"{target.kind} of {widest:,} numbers for each of up to {most:,} rows of a block are more than the "
            f"{MAX_STREAM_BYTES:,} bytes that a stream of it may have; {remedy}"
        )
    return None


def why_vectors_too_large(target: FeaturesSpec, *, num_tokens: int) -> str | None:
    """Return why a full block of pictures of so many tokens would be too large, and what to do; None where it would not.

    Args:
        num_tokens: of each picture; 1 where the target has no rows for them.
    """
    remedy = "give smaller views (views.size)"
    if isinstance(target, RelationsSpec):
        remedy += ", fewer heads (num_relation_heads), or store attention, from which relations are rebuilt"
    if num_tokens > MAX_PICTURE_TOKENS:
        return f"a picture may have {MAX_PICTURE_TOKENS:,}; {remedy}"
    most = rows_of_samples(target, num_tokens=num_tokens) * block_samples(num_samples=MAX_BLOCK_SAMPLES, num_tokens=num_tokens)
    widest = max(target.tensors.values())
    if most >= MAX_BLOCK_VALUE_ROWS:
        return f"{most:,} rows of a block are more than it may hold, {MAX_BLOCK_VALUE_ROWS - 1:,}; {remedy}"
    if most * widest > MAX_STREAM_BYTES:
        return f"{most:,} rows of a block, {widest:,} wide, are more than the {MAX_STREAM_BYTES:,} bytes of a stream; {remedy}"
    return None
