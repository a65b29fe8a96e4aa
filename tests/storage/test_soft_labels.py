"""Sparse rows as values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import codecs
from storage.codecs.compact import encode
from storage.soft_labels import SoftLabels, as_ids, concatenate
from storage.specs import CompactCodec, ExactCodec, SoftLabelsSpec
from tests.storage.rows import SHAPES, dense_selection, make_rows


def rows_of(ids, probs, rest, *, num_classes=5):
    return SoftLabels(class_ids=np.int32(ids), probs=np.float32(probs), rest=np.float32(rest), num_classes=num_classes)


def test_densify_spreads_the_rest_over_the_other_classes():
    rows = rows_of([[3, 0], [2, 0], [1, 1]], [[0.5, 0.2], [0.4, 0], [0, 0]], [0.3, 0.6, 1])
    assert rows.densify() == pytest.approx(np.array([[0.2, 0.1, 0.1, 0.5, 0.1], [0.15, 0.15, 0.4, 0.15, 0.15], [0.2] * 5]))
    assert rows.densify().dtype == np.float64


def test_densify_without_other_classes():
    assert rows_of([[1, 0]], [[0.75, 0.25]], [0], num_classes=2).densify().tolist() == [[0.25, 0.75]]


@given(st.integers(1, 60), st.data(), st.sampled_from(SHAPES), st.integers(0, 2**32 - 1))
def test_densify_equals_one_entry_at_a_time(num_classes, data, shape, seed):
    k = data.draw(st.integers(1, num_classes))
    spec = SoftLabelsSpec(num_classes=num_classes, k=k, codec=ExactCodec())
    rows = make_rows(np.random.default_rng(seed), num_rows=3, num_classes=num_classes, entries=k, shape=shape)
    dense = codecs.decode(codecs.encode(rows, spec=spec), num_rows=3, spec=spec).densify()
    assert dense.sum(axis=1) == pytest.approx(np.ones(3), abs=1e-6)
    assert dense == pytest.approx(dense_selection(rows, num_classes=num_classes), abs=3e-3)


def test_take_reorders_and_repeats():
    rows = rows_of([[3], [2], [1]], [[0.5], [0.4], [0]], [0.5, 0.6, 1])
    taken = rows.take(np.array([2, 0, 0]))
    assert (taken.class_ids.tolist(), taken.rest.tolist(), taken.num_classes) == ([[1], [3], [3]], [1, 0.5, 0.5], 5)
    assert len(rows.take(np.zeros(0, dtype=np.int64))) == 0


def test_concatenate_pads_narrow_rows():
    wide = rows_of([[3, 1]], [[0.5, 0.25]], [0.25])
    narrow = rows_of([[2], [4]], [[1], [0.5]], [0, 0.5])
    none = rows_of(np.zeros((1, 0)), np.zeros((1, 0)), [1])
    joined = concatenate([narrow, wide, none])
    assert joined.class_ids.dtype == np.int32
    assert joined.probs.tolist() == [[1, 0], [0.5, 0], [0.5, 0.25], [0, 0]]
    assert joined.class_ids.tolist() == [[2, 0], [4, 0], [3, 1], [0, 0]]
    assert joined.rest.tolist() == [0, 0.5, 0.25, 1]
    for stacked, parts in ((joined, (narrow, wide, none)), (concatenate([wide]), (wide,))):
        assert np.array_equal(stacked.densify(), np.concatenate([part.densify() for part in parts]))


@pytest.mark.parametrize("parts", [[], [rows_of([[0]], [[1]], [0]), rows_of([[0]], [[1]], [0], num_classes=6)]])
def test_rows_over_other_classes_do_not_stack(parts):
    with pytest.raises(ValueError, match="cannot stack"):
        concatenate(parts)


@pytest.mark.parametrize(("num_classes", "dtype"), [(1, np.int32), (2**31, np.int32), (2**31 + 1, np.int64), (2**32, np.int64)])
def test_ids_are_as_narrow_as_their_classes_allow(num_classes, dtype):
    for given_dtype in (np.uint8, np.uint32, np.int32, np.int64):
        values = np.array([0, min(num_classes - 1, np.iinfo(given_dtype).max)], dtype=given_dtype)
        found = as_ids(values, num_classes=num_classes)
        assert found.dtype == dtype
        assert found.tolist() == values.tolist()
    ids = np.zeros(3, dtype=dtype)
    assert as_ids(ids, num_classes=num_classes) is ids


def test_blocks_of_unlike_width_stack():
    # A compact block is as wide as its fullest row.
    spec = SoftLabelsSpec(num_classes=50, k=8, codec=CompactCodec(levels=9))
    blocks = []
    for shape in SHAPES:
        rows = make_rows(np.random.default_rng(1), num_rows=4, num_classes=50, entries=8, shape=shape)
        blocks.append(codecs.decode(encode(rows, spec=spec), num_rows=4, spec=spec))
    assert len({block.probs.shape[1] for block in blocks}) > 1
    assert np.array_equal(concatenate(blocks).densify(), np.concatenate([block.densify() for block in blocks]))
