"""Ranked labels against an independent float64 computation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelines.extraction import extract
from storage.specs import CompactCodec, ExactCodec, SoftLabelsSpec


def spec(num_classes, k, *, temperature=1.0):
    codec = CompactCodec() if k is None else ExactCodec()
    return SoftLabelsSpec(num_classes=num_classes, k=k, codec=codec, generation_temperature=temperature)


def oracle(logits, *, temperature=1.0):
    """Log-probabilities in float64."""
    values = np.asarray(logits, dtype=np.float64) / temperature
    values = values - values.max(axis=1, keepdims=True)
    return values - np.log(np.exp(values).sum(axis=1, keepdims=True))


def alive(num_rows):
    return np.ones(num_rows, dtype=np.bool_)


@given(
    num_rows=st.integers(1, 6),
    num_classes=st.integers(2, 40),
    spread=st.sampled_from([0.1, 3.0, 30.0, 300.0]),
    temperature=st.sampled_from([0.5, 1.0, 4.0]),
    data=st.data(),
)
def test_the_most_probable_classes_and_the_rest_are_those_of_float64(num_rows, num_classes, spread, temperature, data):
    k = data.draw(st.integers(1, num_classes - 1))
    logits = np.random.default_rng(data.draw(st.integers(0, 2**32))).normal(size=(num_rows, num_classes)) * spread
    logits = logits.astype(np.float32)
    found = extract(torch.from_numpy(logits), spec=spec(num_classes, k, temperature=temperature), alive=alive(num_rows)).rows
    expected = oracle(logits, temperature=temperature)
    ranked = -np.sort(-expected, axis=1)
    np.testing.assert_allclose(found.log_probs, ranked[:, :k], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(expected, found.class_ids.astype(np.int64), axis=1), ranked[:, :k], atol=1e-4)
    np.testing.assert_allclose(found.log_rest, np.logaddexp.reduce(ranked[:, k:], axis=1), rtol=1e-5, atol=1e-5)
    assert found.class_ids.dtype == np.uint32
    assert found.log_probs.dtype == found.log_rest.dtype == np.float32
    found.check(num_classes=num_classes)


@pytest.mark.parametrize("gap", [20.0, 60.0, 500.0])
def test_a_tiny_rest_is_not_lost_to_rounding(gap):
    logits = np.full((1, 1000), -gap, dtype=np.float32)
    logits[0, :2] = 0, -1
    found = extract(torch.from_numpy(logits), spec=spec(1000, 2), alive=alive(1)).rows
    expected = np.logaddexp.reduce(oracle(logits)[0, 2:])
    assert 1 - np.exp(found.log_probs, dtype=np.float32).sum() < 1e-5
    assert found.log_rest[0] == pytest.approx(expected, rel=1e-5)


def test_nothing_is_left_where_every_class_is_kept():
    found = extract(torch.randn(3, 5), spec=spec(5, 5), alive=alive(3)).rows
    assert np.isneginf(found.log_rest).all()
    np.testing.assert_allclose(np.exp(found.log_probs).sum(axis=1), 1, rtol=1e-6)


def test_a_quality_level_keeps_every_class_for_the_grid_to_choose_from():
    assert extract(torch.randn(2, 7), spec=spec(7, None), alive=alive(2)).rows.class_ids.shape == (2, 7)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_is_reported_and_changes_no_other(bad):
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    clean = extract(logits, spec=spec(6, 3), alive=alive(4))
    logits[2, 5] = bad
    found = extract(logits, spec=spec(6, 3), alive=alive(4))
    assert found.finite.tolist() == [True, True, False, True]
    others = [0, 1, 3]
    for name in ("class_ids", "log_probs", "log_rest"):
        np.testing.assert_array_equal(getattr(found.rows, name)[others], getattr(clean.rows, name)[others])
    assert np.isfinite(found.rows.log_probs).all()
    np.testing.assert_allclose(found.probability_sums, np.exp(oracle(logits[others])).sum(axis=0), rtol=1e-5)


def test_logits_that_the_temperature_makes_infinite_are_reported():
    logits = torch.tensor([[1e38, 0.0, 0.0], [1.0, 2.0, 3.0]])
    assert extract(logits, spec=spec(3, 2, temperature=0.1), alive=alive(2)).finite.tolist() == [False, True]


def test_padding_and_samples_without_pixels_count_for_nothing():
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(2))
    mask = np.array([True, False, True])
    found = extract(logits, spec=spec(4, 2), alive=mask)
    assert len(found.rows) == len(found.finite) == 3
    np.testing.assert_allclose(found.probability_sums, np.exp(oracle(logits[[0, 2]])).sum(axis=0), rtol=1e-5)
    assert found.probability_sums.dtype == np.float64


def test_logits_of_half_precision_are_ranked_in_float32():
    logits = torch.randn(2, 50, generator=torch.Generator().manual_seed(3)).to(torch.float16)
    found = extract(logits, spec=spec(50, 4), alive=alive(2)).rows
    np.testing.assert_allclose(found.log_probs, -np.sort(-oracle(logits), axis=1)[:, :4], rtol=1e-6)
