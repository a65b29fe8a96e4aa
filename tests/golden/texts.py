"""Golden label sets of token sequences, and of vectors: every codec, every kind of target and position once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from storage.alignment import rows_per_sample
from storage.cache import Cache
from storage.codecs import DrawnLabels, RankedLabels
from storage.codecs.values import UnstoredValues
from storage.features import FeatureRows
from storage.hashing import digest, key_hash
from storage.heads import Activation, FrozenHead, HeadSpec, LayerNorm, Linear, SoftCap
from storage.parts import DeadLetter, PartRecord, PartStatistics, PartWriter
from storage.samples import SampleTable
from storage.specs import (
    AnyView,
    AttentionSpec,
    CompactCodec,
    DenseCodec,
    EmbeddingsSpec,
    EvaluationView,
    ExactCodec,
    Float16Codec,
    HiddenStatesSpec,
    Int8Codec,
    MaskedTokensView,
    Normalization,
    PartSpec,
    RelationsSpec,
    RequestSpec,
    SampledCodec,
    SoftLabelsSpec,
    TargetSpec,
    TeacherSpec,
    TextTeacherSpec,
    ThresholdCodec,
    TokensView,
)
from storage.target_blocks import decode_target_block, encode_target_block
from storage.text.token_rows import MaskRows, TokenRows, offsets_of

Row = dict[int, float]

UNIT = "00000-00004"
KEYS = ("a.txt", "a.txt@7", "b/ü.txt", "c.txt@0")
LABELS = (2, -1, 0, 1)
TEXTS = ((2, 7, 8, 9, 250, 3), (5,), (299, 0, 17), (4, 4))
MASKED_PLACES = (((1, 4), (), (0, 2), (1,)), ((0,), (), (0, 1, 2), (0, 1)))
"""Of each view, of each sequence."""
MASK_ID = 103
BLOCK_SAMPLES = 3
DEAD_KEY, DEAD_VIEW = 2, 1
TOKENS_PER_PICTURE = 2

_TOKENIZER = digest(b"tokenizer")
_TEXT = {"tokenizer_sha256": _TOKENIZER, "layout": "cut", "length": 7, "special_tokens": True}
PLAIN = TokensView(vocabulary_size=300, **_TEXT)
WIDE = TokensView(vocabulary_size=70_000, **_TEXT)
"""Ids take three bytes; the first token of a text is 69,000 above the one of `TEXTS`."""
MASKED = MaskedTokensView(vocabulary_size=300, mask_token_id=MASK_ID, whole_words=True, seed=2**63 - 1, **_TEXT)
PICTURES = EvaluationView(size=(8, 6), resize_size=(9, 9))

HEAD = FrozenHead(
    spec=HeadSpec(
        reads="every",
        operations=(
            Linear(inputs=4, outputs=3, bias=True),
            Activation(name="gelu_tanh"),
            LayerNorm(width=3, eps=1e-12, bias=False),
            Linear(inputs=3, outputs=5, bias=False),
            SoftCap(cap=30.0),
        ),
    ),
    tensors={
        "0.weight": np.linspace(-1.1, 1.3, 12, dtype=np.float32).reshape(3, 4),
        "0.bias": np.array([0.5, -0.0, 1e-30], dtype=np.float32),
        "2.weight": np.array([1.0, 0.333, 3e30], dtype=np.float32),
        "3.weight": (np.arange(15, dtype=np.float32) / 8).reshape(5, 3),
    },
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A label set: what is stored of which view, and by which kind of teacher."""

    view: AnyView
    target: TargetSpec
    teacher: str = "masked_lm"

    @property
    def num_views(self) -> int:
        """Views of each sequence."""
        return 2 if isinstance(self.view, MaskedTokensView) else 1


def _labels(codec: Any, positions: Any, *, k: int | None = None, num_classes: int = 300) -> SoftLabelsSpec:
    return SoftLabelsSpec(num_classes=num_classes, k=k, codec=codec, positions=positions)


CASES: dict[str, Case] = {
    "text_masked": Case(view=MASKED, target=_labels(ExactCodec(), "masked", k=2)),
    "text_all": Case(view=WIDE, target=_labels(CompactCodec(), "all", k=2, num_classes=70_000)),
    "text_next": Case(view=PLAIN, target=_labels(CompactCodec(levels=20), "next"), teacher="causal_lm"),
    "text_sampled": Case(view=PLAIN, target=_labels(SampledCodec(draws=16, seed=7), "next"), teacher="causal_lm"),
    "text_threshold": Case(view=MASKED, target=_labels(ThresholdCodec(levels=4), "masked")),
    "text_dense": Case(view=PLAIN, target=_labels(DenseCodec(), "view", num_classes=4), teacher="sequence_classifier"),
    "text_states": Case(
        view=PLAIN,
        target=HiddenStatesSpec(layers=(0, 12), tokens="all", width=4, codec=Float16Codec(), head_sha256=HEAD.sha256()),
    ),
    "text_states_int8": Case(view=MASKED, target=HiddenStatesSpec(layers=(6,), tokens="all", width=5, codec=Int8Codec())),
    "text_states_groups": Case(
        view=PLAIN, target=HiddenStatesSpec(layers=(6,), tokens="first", width=19, codec=Int8Codec(group=8))
    ),
    "text_mean_state": Case(view=PLAIN, target=HiddenStatesSpec(layers=(6,), tokens="mean", width=3, codec=Float16Codec())),
    "text_attention": Case(
        view=PLAIN,
        target=AttentionSpec(
            layers=(1, 3),
            vectors=("query", "key", "value"),
            num_heads=2,
            num_key_value_heads=1,
            head_width=3,
            causal=True,
            codec=Int8Codec(),
        ),
        teacher="causal_lm",
    ),
    "text_relations": Case(
        view=PLAIN, target=RelationsSpec(layer=2, vectors=("query", "value"), num_relation_heads=3, codec=Float16Codec())
    ),
    "text_embeddings": Case(view=PLAIN, target=EmbeddingsSpec(width=4, codec=Float16Codec()), teacher="text_factory"),
    "picture_states": Case(view=PICTURES, target=HiddenStatesSpec(layers=(3,), tokens="all", width=4, codec=Int8Codec(group=8))),
}

ROWS: tuple[Row, ...] = (
    {1: 0.75, 0: 0.125, 3: 0.0625, 2: 0.0625},
    {3: 0.5, 2: 0.5, 1: 0.0, 0: 0.0},
    {2: 1.0, 0: 0.0, 1: 0.0, 3: 0.0},
    {0: 0.25, 3: 0.25, 1: 0.25, 2: 0.25},
)
"""In sixteenths, so that each can have been drawn."""


def said(position: int, *, row: int, view: int) -> Row:
    """Return the probabilities of a row: the row-th of a sample."""
    return ROWS[(2 * position + row + view) % len(ROWS)]


def number(tensor: int, *, position: int, row: int, channel: int, view: int) -> float:
    """Return a number of a vector; all of them are eighths below 3."""
    return ((13 * position + 5 * row + 3 * channel + 7 * tensor + 11 * view) % 41 - 20) / 8


def is_alive(position: int, *, case: Case, view: int) -> bool:
    """Return whether the teacher had a result."""
    return not (case.num_views > DEAD_VIEW and (position, view) == (DEAD_KEY, DEAD_VIEW))


def tokens_of(positions: list[int], *, case: Case, view: int) -> TokenRows:
    """Return sequences with the masks of a view."""
    shift = 69_000 if case.view == WIDE else 0
    ids = [token + shift * (place == 0) for position in positions for place, token in enumerate(TEXTS[position])]
    offsets = offsets_of(np.array([len(TEXTS[position]) for position in positions], dtype=np.int64))
    token_ids = np.array(ids, dtype=np.uint32)
    if not isinstance(case.view, MaskedTokensView):
        return TokenRows(offsets=offsets, token_ids=token_ids)
    places = [MASKED_PLACES[view][position] for position in positions]
    flat = [place for of_sequence in places for place in of_sequence]
    masks = MaskRows(
        offsets=offsets_of(np.array([len(of_sequence) for of_sequence in places], dtype=np.int64)),
        positions=np.array(flat, dtype=np.int64),
        # Every other one shows the mask, the others a token.
        input_ids=np.array([MASK_ID if place % 2 else 9 + place for place in flat], dtype=np.uint32),
    )
    return TokenRows(offsets=offsets, token_ids=token_ids, masks=masks)


def _values(where: list[tuple[int, int]], *, target: TargetSpec, view: int) -> UnstoredValues:
    """Return rows, each given as (position of the sample, row of it)."""
    if not isinstance(target, SoftLabelsSpec):
        return FeatureRows(
            tensors={
                name: np.array(
                    [[number(index, position=p, row=r, channel=c, view=view) for c in range(width)] for p, r in where],
                    dtype=np.float32,
                ).reshape(len(where), width)
                for index, (name, width) in enumerate(target.tensors.items())
            }
        )
    rows = [said(position, row=row, view=view) for position, row in where]
    if isinstance(target.codec, SampledCodec | ThresholdCodec):
        drawn = [sorted((class_id, round(16 * prob)) for class_id, prob in row.items() if prob) for row in rows]
        flat = np.array([entry for row in drawn for entry in row], dtype=np.uint32).reshape(-1, 2)
        offsets = offsets_of(np.array([len(row) for row in drawn], dtype=np.int64))
        return DrawnLabels(offsets=offsets, class_ids=flat[:, 0].copy(), counts=flat[:, 1].copy())
    entries = target.max_entries
    class_ids = np.zeros((len(rows), entries), dtype=np.uint32)
    probs = np.zeros((len(rows), entries))
    for index, row in enumerate(rows):
        named = list(row.items())[:entries]
        others = [class_id for class_id in range(entries + 4) if class_id not in row][: entries - len(named)]
        class_ids[index] = [class_id for class_id, _ in named] + others
        probs[index, : len(named)] = [prob for _, prob in named]
    with np.errstate(divide="ignore"):
        return RankedLabels(
            class_ids=class_ids,
            log_probs=np.log(probs).astype(np.float32),
            log_rest=np.log(np.maximum(1 - probs.sum(axis=1), 0)).astype(np.float32),
        )


def request_of(case: Case) -> RequestSpec:
    """Return what was asked for."""
    num_classes = case.target.num_classes if isinstance(case.target, SoftLabelsSpec) else 300
    teacher: TextTeacherSpec | TeacherSpec
    if case.view == PICTURES:
        teacher = TeacherSpec(
            kind="transformers",
            architecture="ViTModel@0123",
            weights_sha256=digest(b"weights"),
            num_classes=num_classes,
            normalization=Normalization(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
            precision="fp16",
        )
    else:
        kind: Any = case.teacher
        teacher = TextTeacherSpec(
            kind=kind, architecture="Tiny@0123", weights_sha256=digest(b"weights"), num_classes=num_classes, precision="fp32"
        )
    return RequestSpec(teacher=teacher, view=case.view, target=case.target)


def make_part(cache: Cache, case: Case) -> tuple[bytes, PartRecord]:
    """Return the only part of a label set."""
    part = PartSpec(
        request=cache.add_request(request_of(case)), unit_digest=digest(b"texts"), first_view=0, num_views=case.num_views
    )
    writer = PartWriter(part=part, target=case.target, samples=SampleTable(keys=KEYS, labels=np.array(LABELS)))
    num_rows = num_positions = 0
    for view in range(case.num_views):
        for first in range(0, len(KEYS), BLOCK_SAMPLES):
            positions = list(range(first, min(first + BLOCK_SAMPLES, len(KEYS))))
            alive = [position for position in positions if is_alive(position, case=case, view=view)]
            where, data = _block(alive, positions=positions, case=case, view=view)
            writer.add_block(data, view=view, first_sample=first, num_samples=len(positions), num_rows=len(alive))
            num_rows += len(alive)
            num_positions += len(where)
    is_soft = isinstance(case.target, SoftLabelsSpec)
    letters = [
        DeadLetter(key=KEYS[position], position=position, view=view, stage="teacher", reason="the teacher's states hold NaN")
        for view in range(case.num_views)
        for position in range(len(KEYS))
        if not is_alive(position, case=case, view=view)
    ]
    return writer.finish(
        unit_name=UNIT,
        class_means=np.full(case.target.num_classes, 1 / case.target.num_classes) if is_soft else None,
        dead_letters=tuple(letters),
        statistics=PartStatistics(num_rows=num_rows, num_positions=num_positions, squared_sum=0.0 if is_soft else 0.5),
        provenance={"decant": "0.1.0", "device": "by hand"},
    )


def _block(alive: list[int], *, positions: list[int], case: Case, view: int) -> tuple[list[tuple[int, int]], bytes]:
    block: dict[str, Any] = {}
    if case.view == PICTURES:
        lengths, mask_counts = np.full(len(alive), TOKENS_PER_PICTURE), None
        digests = np.array([2**64 - 1 - position for position in positions], dtype=np.uint64)
        block = {"tokens_per_picture": TOKENS_PER_PICTURE, "view_digests": digests}
    else:
        assert isinstance(case.view, TokensView | MaskedTokensView)
        tokens = tokens_of(alive, case=case, view=view)
        lengths, mask_counts = tokens.lengths, None if tokens.masks is None else tokens.masks.counts
        block = {"tokens": tokens, "vocabulary_size": case.view.vocabulary_size}
    counts = rows_per_sample(case.target, lengths=lengths, mask_counts=mask_counts).tolist()
    where = [(position, row) for position, count in zip(alive, counts, strict=True) for row in range(count)]
    data = encode_target_block(
        _values(where, target=case.target, view=view),
        target=case.target,
        view=view,
        first_sample=positions[0],
        present=np.array([position in alive for position in positions]),
        key_hash=key_hash([KEYS[position] for position in positions]),
        **block,
    )
    return where, data


def decode_text_block(data: bytes, *, origin: str) -> dict[str, Any]:
    """Return all that a block of targets holds as JSON data."""
    block = decode_target_block(data, origin=origin)
    found: dict[str, Any] = {
        "view": block.view,
        "first_sample": block.first_sample,
        "num_samples": block.num_samples,
        "positions": block.positions.tolist(),
        "key_hash": f"{block.key_hash:016x}",
        "row_offsets": block.row_offsets.tolist(),
    }
    if block.view_digests is not None:
        found["view_digests"] = [f"{value:016x}" for value in block.view_digests.tolist()]
    if block.tokens is not None:
        found |= {"token_offsets": block.tokens.offsets.tolist(), "token_ids": block.tokens.token_ids.tolist()}
        if block.tokens.masks is not None:
            masks = block.tokens.masks
            found |= {
                "mask_offsets": masks.offsets.tolist(),
                "mask_positions": masks.positions.tolist(),
                "mask_inputs": masks.input_ids.tolist(),
            }
    if isinstance(block.values, FeatureRows):
        found["tensors"] = {name: values.astype(np.float64).tolist() for name, values in block.values.tensors.items()}
        return found
    labels = block.values
    found["rows"] = [
        [[class_id, prob] for class_id, prob in zip(ids, probs, strict=True) if prob > 1e-37]
        for ids, probs in zip(labels.class_ids.tolist(), labels.probs.tolist(), strict=True)
    ]
    found["rest"] = labels.rest.tolist()
    return found


def decode_golden_head(cache: Cache) -> dict[str, Any]:
    """Return the golden head as JSON data."""
    head = cache.head(HEAD.sha256())
    tensors = {name: values.astype(np.float64).tolist() for name, values in head.tensors.items()}
    return {"sha256": head.sha256(), "spec": head.spec.to_json(), "tensors": tensors}
