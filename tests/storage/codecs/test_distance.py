"""Distances of sparse rows are those of the densified ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import codecs
from storage.codecs.distance import distances, top_class
from storage.soft_labels import SoftLabels
from storage.specs import CompactCodec, ExactCodec, SoftLabelsSpec
from tests.storage.rows import make_rows


def rows_of(seed, *, num_classes, entries, codec, num_rows=5):
    spec = SoftLabelsSpec(num_classes=num_classes, k=entries, codec=codec)
    rng = np.random.default_rng(seed)
    ranked = make_rows(rng, num_rows=num_rows, num_classes=num_classes, entries=entries, shape="peaked")
    return codecs.decode(codecs.encode(ranked, spec=spec), num_rows=num_rows, spec=spec)


@given(
    seed=st.integers(0, 2**32),
    num_classes=st.integers(2, 40),
    widths=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    kinds=st.tuples(st.booleans(), st.booleans()),
)
def test_distances_are_those_of_the_dense_rows(seed, num_classes, widths, kinds):
    one, other = (
        rows_of(
            seed + number,
            num_classes=num_classes,
            entries=min(width, num_classes),
            codec=ExactCodec() if exact else CompactCodec(levels=60),
        )
        for number, (width, exact) in enumerate(zip(widths, kinds, strict=True))
    )
    found = distances(one, other)
    here, there = one.densify(), other.densify()
    np.testing.assert_allclose(found.total_variation, np.abs(here - there).sum(axis=1) / 2, atol=1e-6)
    floors = np.maximum(here, 1e-12), np.maximum(there, 1e-12)
    np.testing.assert_allclose(found.kl, np.maximum((here * np.log(floors[0] / floors[1])).sum(axis=1), 0), atol=2e-5)
    same = distances(one, one)
    assert same.total_variation.max() == same.kl.max() == 0
    assert same.same_top.all()


def said(*rows, num_classes=10):
    """Rows of {class: probability}."""
    entries = max(len(row) for row in rows)
    class_ids = np.zeros((len(rows), entries), dtype=np.int32)
    probs = np.zeros((len(rows), entries), dtype=np.float32)
    for index, row in enumerate(rows):
        class_ids[index, : len(row)] = list(row)
        probs[index, : len(row)] = list(row.values())
    return SoftLabels(class_ids=class_ids, probs=probs, rest=1 - probs.sum(axis=1), num_classes=num_classes)


def test_the_most_probable_class_and_ties():
    one = said({3: 0.5, 4: 0.5}, {1: 0.9}, {1: 0.9}, {})
    other = said({4: 0.6, 3: 0.4}, {2: 0.9}, {1: 0.2, 2: 0.1}, {})
    assert distances(one, other).same_top.tolist() == [True, False, True, True]
    assert top_class(one).tolist() == [3, 1, 1, -1]
    assert top_class(said({}, {})).tolist() == [-1, -1]


def test_rows_over_four_billion_classes_take_no_memory():
    one, other = (said({2**31 - 5: 0.7, 7: 0.1}, num_classes=2**32), said({2**31 - 5: 0.6, 9: 0.1}, num_classes=2**32))
    found = distances(one, other)
    assert found.total_variation[0] == pytest.approx(0.2, abs=1e-6)


def test_other_rows_are_refused():
    with pytest.raises(ValueError, match="cannot be compared"):
        distances(said({1: 1.0}), said({1: 1.0}, {1: 1.0}))
    with pytest.raises(ValueError, match="cannot be compared"):
        distances(said({1: 1.0}), said({1: 1.0}, num_classes=11))
