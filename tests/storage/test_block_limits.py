"""What is refused before work would not fit in a block, and what is taken does."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.alignment import rows_per_sample
from storage.block_bounds import block_bounds
from storage.block_limits import most_rows, why_too_large, why_vectors_too_large
from storage.codecs.dense import MAX_VALUES
from storage.specs import (
    AttentionSpec,
    CompactCodec,
    DenseCodec,
    EmbeddingsSpec,
    ExactCodec,
    Float16Codec,
    HiddenStatesSpec,
    MaskedTokensView,
    RelationsSpec,
    SampledCodec,
    SoftLabelsSpec,
    TokensView,
)

FLOAT16 = Float16Codec()
VIEW = {"tokenizer_sha256": "a" * 64, "vocabulary_size": 300_000, "layout": "cut", "special_tokens": True}
TARGETS = [
    SoftLabelsSpec(num_classes=9, k=2, codec=CompactCodec(), positions="view"),
    SoftLabelsSpec(num_classes=9, k=2, codec=CompactCodec(), positions="all"),
    SoftLabelsSpec(num_classes=9, k=2, codec=CompactCodec(), positions="next"),
    SoftLabelsSpec(num_classes=9, k=2, codec=CompactCodec(), positions="masked"),
    HiddenStatesSpec(layers=(1,), tokens="all", width=4, codec=FLOAT16),
    EmbeddingsSpec(width=4, codec=FLOAT16),
    RelationsSpec(layer=1, vectors=("query",), num_relation_heads=2, codec=FLOAT16),
]


def masked(length, **changes):
    return MaskedTokensView(**VIEW, length=length, mask_token_id=3, **changes)


def dense(num_classes, positions="view"):
    return SoftLabelsSpec(num_classes=num_classes, k=None, codec=DenseCodec(), positions=positions)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: getattr(target, "positions", target.kind))
@given(lengths=st.lists(st.integers(16, 5000), min_size=1, max_size=60), share=st.floats(0.01, 1))
def test_no_block_of_sequences_has_more_rows_than_are_reckoned_with(target, lengths, share):
    counts = np.array(lengths, dtype=np.int64)
    view = masked(int(counts.max()), mask_share=share)
    num_masked = np.clip(np.rint(share * (counts - 2)).astype(np.int64), 1, counts - 2)
    rows = rows_per_sample(target, lengths=counts, mask_counts=num_masked)
    bounds = block_bounds(counts)
    assert np.add.reduceat(rows, bounds[:-1]).max() <= most_rows(target, view=view)


@pytest.mark.parametrize(
    ("target", "view", "refused"),
    [
        (dense(30_522, "all"), TokensView(**VIEW, length=512), False),
        (dense(50_257, "next"), TokensView(**VIEW, length=1024), True),
        (dense(119_547, "masked"), masked(128), False),
        (dense(250_002, "masked"), masked(512), True),
        (dense(20_000), TokensView(**VIEW, length=128), False),
        (dense(838_860), None, False),
        (dense(900_000), None, True),
    ],
)
def test_dense_labels_of_more_classes_than_a_block_holds_are_refused(target, view, refused):
    found = why_too_large(target, view=view)
    assert (found is not None) == refused
    if found is not None:
        assert found[0] == "codec.kind"
        assert f"{target.num_classes:,} probabilities" in found[1]
        assert "choose threshold or sampled" in found[1]
    elif view is not None:
        assert most_rows(target, view=view) * target.num_classes <= MAX_VALUES


@pytest.mark.parametrize(
    ("target", "length", "field"),
    [
        (SoftLabelsSpec(num_classes=100_000, k=65_535, codec=ExactCodec(), positions="all"), 65_535, "k"),
        (SoftLabelsSpec(num_classes=100_000, k=65_535, codec=ExactCodec(), positions="all"), 512, None),
        (SoftLabelsSpec(num_classes=100_000, k=None, codec=SampledCodec(), positions="all"), 65_535, None),
        (SoftLabelsSpec(num_classes=100_000, k=None, codec=SampledCodec(draws=65_535), positions="all"), 512, "codec"),
        (SoftLabelsSpec(num_classes=100_000, k=33_555, codec=CompactCodec(), positions="all"), 512, "k"),
        (SoftLabelsSpec(num_classes=100_000, k=33_554, codec=CompactCodec(), positions="all"), 512, None),
        (SoftLabelsSpec(num_classes=2**26 + 1, k=10, codec=CompactCodec()), 512, "kind"),
        (SoftLabelsSpec(num_classes=2**26, k=10, codec=CompactCodec()), 512, None),
        (RelationsSpec(layer=1, vectors=("query",), num_relation_heads=128, codec=FLOAT16), 5000, "kind"),
        (RelationsSpec(layer=1, vectors=("query",), num_relation_heads=128, codec=FLOAT16), 512, None),
        (HiddenStatesSpec(layers=(1,), tokens="all", width=16_384, codec=FLOAT16), 65_535, None),
        (HiddenStatesSpec(layers=(1,), tokens="all", width=16_385, codec=FLOAT16), 65_535, "kind"),
        (
            AttentionSpec(
                layers=(1,),
                vectors=("query", "key"),
                num_heads=256,
                num_key_value_heads=8,
                head_width=128,
                causal=True,
                codec=FLOAT16,
            ),
            65_535,
            "kind",
        ),
    ],
)
def test_streams_that_no_reader_would_take_are_refused(target, length, field):
    found = why_too_large(target, view=TokensView(**VIEW, length=length))
    assert (found and found[0]) == field
    if found is not None:
        assert any(
            remedy in found[1] for remedy in ("views.length", "give at most 16,384", "give at most 33,554", "choose embeddings")
        )


@pytest.mark.parametrize(
    ("target", "num_tokens", "problem"),
    [
        (TARGETS[4], 65_535, None),
        (TARGETS[4], 65_536, "a picture may have 65,535; give smaller views"),
        (TARGETS[5], 1, None),
        (TARGETS[6], 197, None),
        (TARGETS[6], 5792, None),
        (TARGETS[6], 5793, "16,782,321 rows of a block are more"),
        (
            TARGETS[6].model_copy(update={"num_relation_heads": 128}),
            4096,
            r"bytes of a stream; give smaller views .*or store attention",
        ),
    ],
)
def test_vectors_of_pictures_that_no_block_holds_are_refused(target, num_tokens, problem):
    found = why_vectors_too_large(target, num_tokens=num_tokens)
    if problem is None:
        assert found is None
    else:
        assert re.search(problem, found)
