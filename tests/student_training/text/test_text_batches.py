"""From stored sequences to batches: the same for any number of workers and processes, from any step on; padding changes nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from storage.features import FeatureRows
from storage.specs import AttentionSpec, EmbeddingsSpec, Float16Codec, HiddenStatesSpec, RelationsSpec, SoftLabelsSpec
from storage.streams.aligned_rows import AlignedRows
from storage.streams.base import TextRows
from storage.streams.text_stream import TextLabelStream
from storage.text.token_rows import offsets_of
from student_training.data import BatchDataset, Share, load_batches
from student_training.plan import plan_training
from student_training.terms.interface import Wants
from student_training.terms.target_rows import later_of_pairs, to_target_rows
from student_training.text.collate import TextCollate
from student_training.text.rows import positions_of
from tests.storage.text_caches import (
    HIDDEN,
    MASKED,
    MASKED_LABELS,
    NEXT_LABELS,
    PLAIN,
    draw_documents,
    make_text_labeller,
    make_text_request,
    tokens_of,
)
from tests.student_training.text.text_batches import make_student

DOCUMENTS = {document.key: document for document in draw_documents()}


@pytest.fixture(scope="module")
def label_sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    dead = {"labels": frozenset({("doc001", 0)}), "hidden": frozenset({("doc015", 0)})}
    return {
        name: make_text_labeller(folder, request=make_text_request(target=target), dead=dead[name]).label(name=name, num_views=2)
        for name, target in {"labels": MASKED_LABELS, "hidden": HIDDEN}.items()
    }


def open_dataset(stream, *, world_size=1, rank=0, start=0, window_blocks=3, **options):
    return BatchDataset(
        stream,
        plan=plan_training(stream, epochs=2, batch_size=6, world_size=world_size),
        collate=TextCollate(max_length=16),
        seed=3,
        window_blocks=window_blocks,
        start=start,
        share=Share(rank=rank, world_size=world_size),
        **options,
    )


def contents(batches):
    """Everything in a batch that is no padding."""
    found = []
    for batch in batches:
        tensors = [batch.attention_mask.sum(1), batch.input_ids[batch.attention_mask], batch.token_ids[batch.attention_mask]]
        tensors += [batch.masked.nonzero(), batch.labels]
        for rows in batch.targets.values():
            tensors += [rows.sequence, rows.position]
            tensors += [rows.soft_labels.probs.sum(1)] if rows.soft_labels else list(rows.features.tensors.values())
        found.append((batch.step, batch.keys, tensors))
    return found


def assert_same(one, other):
    assert [(step, keys) for step, keys, _ in one] == [(step, keys) for step, keys, _ in other]
    for (_, _, tensors), (_, _, others) in zip(one, other, strict=True):
        assert len(tensors) == len(others)
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(tensors, others, strict=True))


@pytest.fixture(scope="module")
def straight(label_sets):
    return contents(load_batches(open_dataset(TextLabelStream(label_sets)), workers=0))


def test_batches_hold_their_sequences(label_sets, straight):
    assert [step for step, *_ in straight] == list(range(9))
    for batch in load_batches(open_dataset(TextLabelStream(label_sets)), workers=0):
        view = 0 if batch.step < 4 else 1
        own = tokens_of([DOCUMENTS[key] for key in batch.keys], view=MASKED, view_index=view)
        assert batch.input_ids[batch.attention_mask].tolist() == own.inputs().tolist()
        assert batch.token_ids[batch.attention_mask].tolist() == own.token_ids.tolist()
        assert batch.attention_mask.sum(1).tolist() == own.lengths.tolist()
        assert batch.masked.sum(1).tolist() == own.masks.counts.tolist()
        assert batch.labels.tolist() == [DOCUMENTS[key].label for key in batch.keys]
        longest = int(own.lengths.max())
        assert batch.input_ids.shape == (6, -(-longest // 8) * 8)
        labels, hidden = batch.targets["labels"], batch.targets["hidden"]
        assert batch.masked[labels.sequence, labels.position].all()
        assert len(labels) == batch.masked.sum() == len(labels.soft_labels.probs)
        assert torch.equal(torch.stack([hidden.sequence, hidden.position], dim=1), batch.attention_mask.nonzero())
        assert hidden.features.tensors["hidden.2"].shape == (batch.attention_mask.sum(), 8)


@pytest.mark.parametrize("workers", [1, 2])
def test_order_does_not_depend_on_loader_workers(label_sets, straight, workers):
    assert_same(contents(load_batches(open_dataset(TextLabelStream(label_sets)), workers=workers)), straight)


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_each_batch(label_sets, straight, world_size):
    stream = TextLabelStream(label_sets)
    shares = [
        contents(load_batches(open_dataset(stream, world_size=world_size, rank=rank), workers=0)) for rank in range(world_size)
    ]
    for step, (_, keys, tensors) in enumerate(straight):
        assert [key for share in shares for key in share[step][1]] == keys
        for index in (0, 1, 2, 4):
            assert torch.equal(torch.cat([share[step][2][index] for share in shares]), tensors[index])


@pytest.mark.parametrize("start", [1, 3, 4, 8])
def test_restart_at_any_step(label_sets, straight, start):
    assert_same(contents(load_batches(open_dataset(TextLabelStream(label_sets), start=start), workers=0)), straight[start:])


def test_sequences_of_like_length_share_batches(label_sets, straight):
    stream = TextLabelStream(label_sets)
    options = {"window_blocks": 7}
    plain = list(load_batches(open_dataset(stream, **options), workers=0))
    options["lengths"] = stream.lengths
    grouped = list(load_batches(open_dataset(stream, **options), workers=0))
    for epoch in (slice(0, 4), slice(4, 9)):
        lengths = [[batch.attention_mask.sum(1) for batch in found[epoch]] for found in (plain, grouped)]
        spread = [sum(int(lengths.max() - lengths.min()) for lengths in found) for found in lengths]
        assert spread[1] < 0.7 * spread[0]
        keys = [key for batch in grouped[epoch] for key in batch.keys]
        assert len(set(keys)) == len(keys)
    again = contents(load_batches(open_dataset(stream, start=2, **options), workers=1))
    assert_same(again, contents(grouped)[2:])


def rows_of(documents, *, masked=True):
    tokens = tokens_of(documents, view=MASKED if masked else None, view_index=0)
    return TextRows(
        keys=[document.key for document in documents],
        tokens=tokens,
        labels=np.array([document.label for document in documents]),
        targets={},
    )


@pytest.mark.parametrize(("longest", "width"), [(3, 8), (8, 8), (9, 14), (14, 14)])
def test_width_is_a_multiple_of_eight_that_the_student_still_takes(longest, width):
    documents = [document for document in DOCUMENTS.values() if len(document.tokens) <= longest]
    documents = [*documents, next(d for d in draw_documents(num=400, seed=1) if len(d.tokens) == longest)]
    batch = TextCollate(max_length=14)(rows_of(documents), step=0, pool=None)
    assert batch.input_ids.shape[1] == width


@pytest.mark.parametrize(("name", "head"), [("bert", "masked_lm"), ("gpt2", "causal_lm")])
def test_padding_changes_no_logit(name, head):
    """A sequence alone and among longer ones gives the same logits at its own tokens."""
    student = make_student(name, head=head).eval()
    documents = list(DOCUMENTS.values())[:4]
    collate = TextCollate(max_length=16)
    with torch.no_grad():
        batch = collate(rows_of(documents, masked=False), step=0, pool=None)
        together = student(batch.input_ids, attention_mask=batch.attention_mask, wants=Wants()).logits
        for row, document in enumerate(documents):
            alone = collate(rows_of([document], masked=False), step=0, pool=None)
            logits = student(alone.input_ids, attention_mask=alone.attention_mask, wants=Wants()).logits
            length = len(document.tokens)
            torch.testing.assert_close(together[row, :length], logits[0, :length], rtol=1e-4, atol=1e-5)


def target_rows(spec, *, documents, counts):
    tokens = tokens_of(documents, view=MASKED, view_index=0)
    names = spec.tensors if not isinstance(spec, SoftLabelsSpec) else {}
    values = FeatureRows(tensors={name: np.zeros((sum(counts), width), dtype=np.float32) for name, width in names.items()})
    return to_target_rows(
        AlignedRows(target=spec, offsets=offsets_of(np.array(counts)), values=values), masked_positions=tokens.masks.positions
    )


def test_rows_know_their_tokens():
    documents = [document for document in DOCUMENTS.values() if 2 <= len(document.tokens) <= 4][:2]
    lengths = [len(document.tokens) for document in documents]
    codec = Float16Codec()
    everywhere = [position for length in lengths for position in range(length)]
    attention = AttentionSpec(
        layers=(1,), vectors=("query",), num_heads=1, num_key_value_heads=1, head_width=2, causal=False, codec=codec
    )
    assert target_rows(attention, documents=documents, counts=lengths).position.tolist() == everywhere
    first = HiddenStatesSpec(layers=(1,), tokens="first", width=2, codec=codec)
    for spec in (first, EmbeddingsSpec(width=2, codec=codec)):
        rows = target_rows(spec, documents=documents, counts=[1, 1])
        assert (rows.sequence.tolist(), rows.position.tolist()) == ([0, 1], [0, 0])
    relations = RelationsSpec(layer=1, vectors=("key",), num_relation_heads=1, codec=codec)
    pairs = [length * (length + 1) // 2 for length in lengths]
    rows = target_rows(relations, documents=documents, counts=pairs)
    assert rows.position.tolist() == [later for length in lengths for later in range(length) for _ in range(later + 1)]


def test_later_tokens_of_pairs_of_long_sequences():
    ends = np.array([n * (n + 1) // 2 for n in (1, 2, 1000, 65534, 65535)])
    assert later_of_pairs(ends).tolist() == [1, 2, 1000, 65534, 65535]
    assert later_of_pairs(ends - 1).tolist() == [0, 1, 999, 65533, 65534]


def test_labels_of_next_tokens_stand_where_losses_look_for_them(tmp_path):
    label_set = make_text_labeller(tmp_path, request=make_text_request(target=NEXT_LABELS, view=PLAIN)).label()
    batch = next(load_batches(open_dataset(TextLabelStream({"next": label_set})), workers=0))
    rows, looked_for = batch.targets["next"], positions_of(batch, row_set="next")
    alone = positions_of(replace(batch, targets={}), row_set="next")
    assert torch.equal(rows.sequence, looked_for.sequence)
    assert torch.equal(rows.position, looked_for.position)
    assert torch.equal(rows.sequence, alone.sequence)
    assert torch.equal(rows.position, alone.position)
    assert rows.position.max() < batch.attention_mask.sum(1).max() - 1
    assert batch.masked is None
