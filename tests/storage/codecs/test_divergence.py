"""The measured loss of a codec, against all classes added up one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import codecs
from storage.codecs import RankedLabels
from storage.codecs.divergence import codec_kl
from storage.soft_labels import SoftLabels
from storage.specs import CompactCodec, ExactCodec, SoftLabelsSpec
from tests.storage.rows import SHAPES, dense_selection, make_rows


def dense_kl(exact, stored):
    """KL(exact || stored) in nats, float64 [rows]; mass that float32 cannot hold does not count."""
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = exact * (np.log(exact) - np.log(stored))
    return np.where(exact > 1e-30, terms, 0).sum(axis=1)


@settings(max_examples=150)
@given(
    st.integers(1, 300),
    st.data(),
    st.sampled_from(SHAPES),
    st.just(ExactCodec()) | st.builds(CompactCodec, levels=st.integers(1, 255)),
    st.integers(0, 2**32 - 1),
)
def test_equals_the_sum_over_all_classes(num_classes, data, shape, codec, seed):
    k = data.draw(st.integers(1, num_classes))
    rows = make_rows(np.random.default_rng(seed), num_rows=4, num_classes=num_classes, entries=k, shape=shape)
    spec = SoftLabelsSpec(num_classes=num_classes, k=k, codec=codec)
    stored = codecs.decode(codecs.encode(rows, spec=spec), num_rows=4, spec=spec)
    expected = dense_kl(dense_selection(rows, num_classes=num_classes), stored.densify())
    found = codec_kl(rows, stored)
    assert found.dtype == np.float64
    assert np.isfinite(found).all()
    assert (found >= 0).all()
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_wrong_probabilities_cost_what_they_say():
    log_probs = np.log(np.float32([[0.5, 0.25]]))
    rows = RankedLabels(class_ids=np.uint32([[1, 3]]), log_probs=log_probs, log_rest=np.log(np.float32([0.25])))
    stored = SoftLabels(class_ids=np.int32([[3, 0]]), probs=np.float32([[0.25, 0]]), rest=np.float32([0.75]), num_classes=4)
    # exact: 1/8, 1/2, 1/8, 1/4; stored: class 1 shares the rest with 0 and 2, 1/4 each
    assert codec_kl(rows, stored) == pytest.approx([0.5 * np.log(2) - 0.25 * np.log(2)], rel=1e-6)


def test_certain_rows_have_a_finite_loss():
    # A very sure teacher, or a low generation temperature: log-probabilities far below what float32 probabilities can hold.
    rows = RankedLabels(class_ids=np.uint32([[0, 1, 2]]), log_probs=np.float32([[0, -103.5, -700]]), log_rest=np.float32([-104]))
    for codec in (ExactCodec(), CompactCodec()):
        spec = SoftLabelsSpec(num_classes=1000, k=3, codec=codec)
        stored = codecs.decode(codecs.encode(rows, spec=spec), num_rows=1, spec=spec)
        assert codec_kl(rows, stored)[0] < 1e-4


def test_no_rows_have_no_loss():
    rows = make_rows(np.random.default_rng(0), num_rows=0, num_classes=9, entries=3, shape="flat")
    spec = SoftLabelsSpec(num_classes=9, k=3, codec=ExactCodec())
    assert codec_kl(rows, codecs.decode(codecs.encode(rows, spec=spec), num_rows=0, spec=spec)).shape == (0,)
