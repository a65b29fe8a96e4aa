"""Small caches of texts, whose every row is known: sequences drawn from a vocabulary, labelled by a function of their tokens."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from storage.alignment import rows_per_sample
from storage.cache import Cache
from storage.codecs import RankedLabels
from storage.features import FeatureRows
from storage.hashing import key_hash
from storage.label_set import LabelSet, UsedPart, commit_label_set, label_set_id
from storage.parts import DeadLetter, PartStatistics, PartWriter
from storage.samples import SampleTable
from storage.specs import (
    CompactCodec,
    Float16Codec,
    HiddenStatesSpec,
    MaskedTokensView,
    PartSpec,
    RequestSpec,
    SoftLabelsSpec,
    TextTeacherSpec,
    TokensView,
)
from storage.target_blocks import encode_target_block
from storage.text.masking import mask_tokens
from storage.text.token_rows import TokenRows, offsets_of
from tests.storage.rows import make_rows

VOCABULARY = 40
TOKENIZER = "70" * 32
MASK_ID = 3
FIRST_WORD_ID = 5
PLAIN = TokensView(tokenizer_sha256=TOKENIZER, vocabulary_size=VOCABULARY, layout="truncate", length=16, special_tokens=False)
MASKED = MaskedTokensView(
    tokenizer_sha256=TOKENIZER,
    vocabulary_size=VOCABULARY,
    layout="truncate",
    length=16,
    special_tokens=False,
    mask_token_id=MASK_ID,
    mask_share=0.3,
    seed=5,
)
MASKED_LABELS = SoftLabelsSpec(num_classes=VOCABULARY, k=4, codec=CompactCodec(), positions="masked")
NEXT_LABELS = SoftLabelsSpec(num_classes=VOCABULARY, k=4, codec=CompactCodec(), positions="next")
CLASS_LABELS = SoftLabelsSpec(num_classes=3, k=2, codec=CompactCodec())
HIDDEN = HiddenStatesSpec(layers=(1, 2), tokens="all", width=8, codec=Float16Codec())


@dataclass(frozen=True)
class Document:
    """One sequence of a text label set."""

    key: str
    tokens: tuple[int, ...]
    label: int = -1


def draw_documents(*, num=30, max_length=16, min_length=2, seed=0, num_labels=3):
    """Documents of all lengths; the label is the sum of the tokens modulo the labels."""
    rng = np.random.default_rng(seed)
    documents = []
    for number in range(num):
        length = int(rng.integers(min_length, max_length + 1))
        tokens = tuple(rng.integers(FIRST_WORD_ID, VOCABULARY, size=length).tolist())
        documents.append(Document(key=f"doc{number:03d}", tokens=tokens, label=sum(tokens) % num_labels))
    return tuple(documents)


def make_text_request(*, target=MASKED_LABELS, view=MASKED, kind="masked_lm", weights="7e" * 32):
    return RequestSpec(
        teacher=TextTeacherSpec(
            kind=kind,
            architecture="tiny",
            weights_sha256=weights,
            num_classes=target.num_classes if isinstance(target, SoftLabelsSpec) else VOCABULARY,
            precision="fp32",
        ),
        view=view,
        target=target,
    )


def tokens_of(documents, *, view, view_index):
    """Sequences as the teacher saw them."""
    lengths = np.array([len(document.tokens) for document in documents], dtype=np.int64)
    tokens = TokenRows(
        offsets=offsets_of(lengths),
        token_ids=np.array([token for document in documents for token in document.tokens], dtype=np.uint32),
    )
    if not isinstance(view, MaskedTokensView):
        return tokens
    keys = [document.key for document in documents]
    maskable = np.ones(len(tokens.token_ids), dtype=np.bool_)
    return TokenRows(
        offsets=tokens.offsets,
        token_ids=tokens.token_ids,
        masks=mask_tokens(tokens, keys=keys, maskable=maskable, view=view, view_index=view_index),
    )


def random_values(target, *, key, view, num_rows):
    """Rows of one sequence: a function of target, key and view."""
    rng = np.random.default_rng(zlib.crc32(f"{target.to_json()} {key} {view}".encode()))
    if isinstance(target, SoftLabelsSpec):
        return make_rows(rng, num_rows=num_rows, num_classes=target.num_classes, entries=target.max_entries, shape="peaked")
    return FeatureRows(
        tensors={name: rng.normal(size=(num_rows, width)).astype(np.float32) for name, width in target.tensors.items()}
    )


def stack_values(rows, *, target):
    if isinstance(target, SoftLabelsSpec):
        return RankedLabels(
            class_ids=np.concatenate([row.class_ids for row in rows]),
            log_probs=np.concatenate([row.log_probs for row in rows]),
            log_rest=np.concatenate([row.log_rest for row in rows]),
        )
    return FeatureRows(tensors={name: np.concatenate([row.tensors[name] for row in rows]) for name in target.tensors})


def random_teacher(target):
    """A teacher of any target: (documents, tokens, row counts, view) to values."""

    def teach(documents, tokens, counts, view):
        del tokens
        rows = [
            random_values(target, key=document.key, view=view, num_rows=count)
            for document, count in zip(documents, counts.tolist(), strict=True)
        ]
        return stack_values([*rows, random_values(target, key="", view=0, num_rows=0)], target=target)

    return teach


@dataclass(frozen=True, kw_only=True)
class TextLabeller:
    """Makes text label sets by hand.

    Attributes:
        units: documents of each unit.
        dead: (key, view) of sequences that the teacher failed on.
        teach: what the teacher says; None: random rows.
    """

    cache: Cache
    units: tuple[tuple[Document, ...], ...]
    request: RequestSpec = field(default_factory=make_text_request)
    dead: frozenset = frozenset()
    samples_per_block: int = 4
    teach: Callable | None = None

    def unit_digest(self, index):
        return hashlib.sha256(repr(self.units[index]).encode()).hexdigest()

    def make_part(self, index, *, first_view, num_views):
        documents = self.units[index]
        target, view_spec = self.request.target, self.request.text_view()
        teach = self.teach or random_teacher(target)
        table = SampleTable(
            keys=tuple(document.key for document in documents),
            labels=np.array([document.label for document in documents], dtype=np.int64),
        )
        part = PartSpec(
            request=self.request.fingerprint(), unit_digest=self.unit_digest(index), first_view=first_view, num_views=num_views
        )
        writer = PartWriter(part=part, target=target, samples=table)
        num_rows = num_positions = 0
        for view in range(first_view, first_view + num_views):
            for first in range(0, len(documents), self.samples_per_block):
                covered = documents[first : first + self.samples_per_block]
                alive = tuple(document for document in covered if (document.key, view) not in self.dead)
                tokens = tokens_of(alive, view=view_spec, view_index=view)
                counts = rows_per_sample(
                    target, lengths=tokens.lengths, mask_counts=None if tokens.masks is None else tokens.masks.counts
                )
                data = encode_target_block(
                    teach(alive, tokens, counts, view),
                    target=target,
                    view=view,
                    first_sample=first,
                    present=np.array([document in alive for document in covered]),
                    key_hash=key_hash([document.key for document in covered]),
                    tokens=tokens,
                    vocabulary_size=view_spec.vocabulary_size,
                )
                writer.add_block(data, view=view, first_sample=first, num_samples=len(covered), num_rows=len(alive))
                num_rows += len(alive)
                num_positions += int(counts.sum())
        letters = tuple(
            DeadLetter(key=document.key, position=position, view=view, stage="teacher", reason="made so")
            for position, document in enumerate(documents)
            for view in range(first_view, first_view + num_views)
            if (document.key, view) in self.dead
        )
        classes = target.num_classes if isinstance(target, SoftLabelsSpec) else None
        return writer.finish(
            unit_name=f"unit{index}",
            class_means=None if classes is None else np.full(classes, 1 / classes),
            dead_letters=letters,
            statistics=PartStatistics(num_rows=num_rows, num_positions=num_positions),
            provenance={"made": "by hand"},
        )

    def label(self, *, name="texts", num_views=1) -> LabelSet:
        """Commit parts and a label set over all units."""
        self.cache.add_request(self.request)
        used = []
        for index in range(len(self.units)):
            data, record = self.make_part(index, first_view=0, num_views=num_views)
            record = self.cache.commit_part(data, record=record)
            used.append((UsedPart(unit_name=f"unit{index}", part=record.part, first_view=0, num_views=num_views), record))
        return commit_label_set(
            self.cache,
            identity=label_set_id(request=self.request.fingerprint(), parts=[part for part, _ in used]),
            name=name,
            request=self.request,
            parts=iter(used),
            num_views=num_views,
            classes=None,
            source={"kind": "jsonl", "path": "somewhere"},
        )


def make_text_labeller(folder, *, documents=None, unit_size=9, **options):
    """A labeller over some documents, in units of nine, with its cache below a folder."""
    documents = draw_documents() if documents is None else documents
    units = tuple(documents[first : first + unit_size] for first in range(0, len(documents), unit_size))
    return TextLabeller(cache=Cache.at(str(folder / "cache")), units=units, **options)
