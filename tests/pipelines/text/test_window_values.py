"""Values come out of a window as they went into its batches, and are held once."""

from __future__ import annotations

import tracemalloc

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelines import vectors
from pipelines.text.soft_labels import ExtractedRows
from pipelines.text.window_values import WindowValues
from pipelines.vectors import extract_vectors, relations
from storage.features import FeatureRows
from storage.specs import EmbeddingsSpec, Float16Codec

WIDTH = 3
TARGET = EmbeddingsSpec(width=WIDTH, codec=Float16Codec())


def window_of(counts, *, batch_size, order, width=WIDTH, target=TARGET):
    """Values [sequence, row, ...] of sequences in batches of an order."""
    rows = {sequence: np.full((count, width), sequence, dtype=np.float32) for sequence, count in enumerate(counts)}
    for sequence, values in rows.items():
        values[:, 0] = 1000 * sequence + np.arange(len(values))
    extracted, orders = [], []
    for first in range(0, len(order), batch_size):
        batch = np.array(order[first : first + batch_size], dtype=np.int64)
        extracted.append(
            ExtractedRows(
                values=FeatureRows(tensors={"embedding": np.concatenate([rows[sequence] for sequence in batch.tolist()])}),
                counts=np.array([counts[sequence] for sequence in batch.tolist()], dtype=np.int64),
                whole=np.ones(len(batch), dtype=np.bool_),
                probability_sums=None,
            )
        )
        orders.append(batch)
    del rows
    return WindowValues.of(extracted, order=orders, target=target)


@given(counts=st.lists(st.integers(0, 4), max_size=12), batch_size=st.integers(1, 5), data=st.data())
def test_sequences_come_out_in_the_order_asked_for(counts, batch_size, data):
    window = window_of(counts, batch_size=batch_size, order=data.draw(st.permutations(range(len(counts)))))
    asked = data.draw(st.lists(st.sampled_from(range(len(counts))), unique=True) if counts else st.just([]))
    found = window.of_sequences(np.array(asked, dtype=np.int64))
    expected = [1000 * sequence + row for sequence in asked for row in range(counts[sequence])]
    assert found.tensors["embedding"][:, 0].tolist() == expected
    assert found.tensors["embedding"][:, 1].tolist() == [sequence for sequence in asked for _ in range(counts[sequence])]


def test_blocks_are_taken_without_a_copy_of_the_window():
    wide = EmbeddingsSpec(width=64, codec=Float16Codec())
    window = window_of([200] * 64, batch_size=16, order=list(range(64))[::-1], width=64, target=wide)
    held = sum(values.tensors["embedding"].nbytes for values in window.batches)
    tracemalloc.start()
    try:
        for first in range(0, 64, 4):
            window.of_sequences(np.arange(first, first + 4))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 0.3 * held


def test_relations_are_the_same_bits_however_many_samples_are_multiplied_at_a_time(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    given = torch.randn(7, 33, 24, generator=generator)
    lengths = torch.tensor([33, 1, 20, 33, 5, 8, 31])
    there = torch.arange(33) < lengths[:, None]
    whole = relations(given, there=there, num_heads=4)
    sizes = []
    real = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda one, other: sizes.append(len(one)) or real(one, other))
    for most, expected in ((1, [1] * 7), (2 * 4 * 33**2, [2, 2, 2, 1]), (1 << 30, [7])):
        sizes.clear()
        monkeypatch.setattr(vectors, "_CHUNK_VALUES", most)
        assert torch.equal(relations(given, there=there, num_heads=4), whole)
        assert sizes == expected
    pairs = [(sample, i, j) for sample, length in enumerate(lengths.tolist()) for i in range(length) for j in range(i + 1)]
    assert len(whole) == len(pairs)
    for row in (0, 17, 561, len(pairs) - 1):
        sample, i, j = pairs[row]
        left, right = (given[sample, token].double().view(4, 6) for token in (i, j))
        assert torch.allclose(whole[row].double(), (left * right).sum(dim=1) / 6**0.5, atol=1e-5)


def test_what_float16_cannot_hold_is_found_row_by_row():
    class Outputs:
        def embedding(self):
            return torch.tensor([[1.0, 2.0, 3.0], [torch.nan, 0, 0], [0, -torch.inf, 0], [65504.0, 0, 0], [-65600.0, 0, 0]])

    target = EmbeddingsSpec(width=3, codec=Float16Codec())
    _, storable = extract_vectors(Outputs(), target=target, there=torch.ones((5, 1), dtype=torch.bool))
    assert storable.tolist() == [True, False, False, True, False]
