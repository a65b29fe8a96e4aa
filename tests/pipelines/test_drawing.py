"""Drawn labels: their expected value is the teacher's distribution, at every size of vocabulary and wherever a row stands."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import extraction
from pipelines.extraction import extract
from storage import codecs
from storage.codecs.sampled import num_shares
from storage.random import label_uniforms
from storage.specs import CompactCodec, DenseCodec, ExactCodec, SampledCodec, SoftLabelsSpec, ThresholdCodec

DRAWING = (SampledCodec(), SampledCodec(draws=3), ThresholdCodec(levels=3), ThresholdCodec(levels=7), ThresholdCodec(levels=16))


def spec_of(num_classes, codec, *, temperature=1.0):
    return SoftLabelsSpec(num_classes=num_classes, k=None, codec=codec, generation_temperature=temperature)


def softmax(logits, *, temperature=1.0):
    values = np.asarray(logits, dtype=np.float64) / temperature
    values = np.exp(values - values.max(axis=-1, keepdims=True))
    return values / values.sum(axis=-1, keepdims=True)


def draw(logits, *, spec, key="sample", positions=None):
    positions = np.arange(len(logits)) if positions is None else positions
    uniforms = label_uniforms(spec.codec, key=key, view_index=0, positions=positions)
    return extract(logits, spec=spec, alive=np.ones(len(logits), dtype=np.bool_), uniforms=uniforms)


def decoded(rows, *, spec):
    """float64 [rows, classes] after the way through the codec."""
    return codecs.decode(codecs.encode(rows, spec=spec), num_rows=len(rows), spec=spec).densify()


@settings(max_examples=12)
@given(
    st.sampled_from(DRAWING),
    st.integers(2, 30),
    st.sampled_from([0.1, 1.0, 3.0]),
    st.sampled_from([0.5, 1.0, 2.0]),
    st.integers(0, 2**32),
)
def test_the_expected_target_is_the_distribution(codec, num_classes, spread, temperature, seed):
    num_draws = 4000
    spec = spec_of(num_classes, codec, temperature=temperature)
    logits = np.random.default_rng(seed).normal(size=num_classes).astype(np.float32) * spread
    rows = draw(torch.from_numpy(logits).expand(num_draws, -1), spec=spec, key=f"sample {seed}").rows
    targets = decoded(rows, spec=spec)
    p, shares = softmax(logits, temperature=temperature), num_shares(codec)
    # Counts are binomial, or a whole number of shares and at most one more.
    over = p * shares % 1
    variance = p * (1 - p) / shares if isinstance(codec, SampledCodec) else over * (1 - over) / shares**2
    # Six deviations, and what a class that is drawn once in all these rows may add.
    tolerance = 6 * np.sqrt(variance / num_draws) + 6 / (num_draws * shares) + 1e-6
    assert (np.abs(targets.mean(axis=0) - p) <= tolerance).all()
    # A variance has a deviation of its own, about sqrt(kurtosis / rows): wide for classes that are hardly ever drawn.
    often = (p * shares > 0.05) & (variance * shares**2 > 0.02)
    np.testing.assert_allclose(targets.var(axis=0)[often], variance[often], rtol=0.6)
    if not isinstance(codec, SampledCodec):
        assert (np.abs(targets - p) < 1 / shares + 1e-6).all()


@pytest.mark.parametrize("num_classes", [30_522, 128_256, 151_936, 262_144])
@pytest.mark.parametrize("codec", [SampledCodec(), ThresholdCodec(levels=7)])
def test_large_vocabularies(num_classes, codec):
    # The mass lies in the last classes, where what was cumulated before has had the most chances to be rounded.
    logits = torch.full((40, num_classes), -4.0)
    logits[:, -3:] = torch.tensor([9.0, 8.0, 8.0])
    spec = spec_of(num_classes, codec)
    rows = draw(logits, spec=spec).rows
    found = codecs.decode(codecs.encode(rows, spec=spec), num_rows=40, spec=spec)
    counts = rows.counts.astype(np.int64)
    assert (np.add.reduceat(counts, rows.offsets[:-1]) == num_shares(codec)).all()
    p = softmax(logits[0].numpy())
    for back in (1, 2, 3):
        shares = np.where(found.class_ids == num_classes - back, found.probs, 0).sum(axis=1)
        deviation = np.sqrt(p[-back] * (1 - p[-back]) / num_shares(codec) / 40)
        assert abs(shares.mean() - p[-back]) < 5 * deviation
    tail = (rows.class_ids < num_classes - 3) * counts
    assert 0 < tail.sum() / (40 * num_shares(codec)) < 2.5 * p[:-3].sum()


def test_flat_rows_over_many_classes_reach_them_all_alike():
    spec = spec_of(262_144, SampledCodec(draws=500))
    rows = draw(torch.zeros(8, 262_144), spec=spec).rows
    halves = np.bincount(rows.class_ids // 65_536, weights=rows.counts, minlength=4)
    assert (np.abs(halves - 1000) < 6 * np.sqrt(4000 * 0.25 * 0.75)).all()


@pytest.mark.parametrize("codec", DRAWING)
def test_a_row_depends_on_nothing_but_itself(codec, monkeypatch):
    logits = torch.randn(11, 300, generator=torch.Generator().manual_seed(3)) * 2
    spec = spec_of(300, codec)
    whole = draw(logits, spec=spec)
    order = np.random.default_rng(0).permutation(11)
    moved = draw(logits[torch.from_numpy(order)], spec=spec, positions=order)
    for name in ("class_ids", "counts", "offsets"):
        np.testing.assert_array_equal(getattr(moved.rows, name), getattr(whole.rows.take(order), name))
    monkeypatch.setitem(extraction._CHUNK_VALUES, "cpu", 900)
    chunked = draw(logits, spec=spec)
    for name in ("class_ids", "counts", "offsets"):
        np.testing.assert_array_equal(getattr(chunked.rows, name), getattr(whole.rows, name))
    np.testing.assert_allclose(chunked.probability_sums, whole.probability_sums, rtol=1e-5)


@pytest.mark.parametrize("codec", [ExactCodec(), CompactCodec()])
def test_ranked_rows_taken_in_chunks_are_the_same(codec, monkeypatch):
    logits = torch.randn(11, 300, generator=torch.Generator().manual_seed(3)) * 2
    spec = SoftLabelsSpec(num_classes=300, k=20, codec=codec)
    alive = np.ones(11, dtype=np.bool_)
    whole = extract(logits, spec=spec, alive=alive).rows
    monkeypatch.setitem(extraction._CHUNK_VALUES, "cpu", 1000)
    chunked = extract(logits, spec=spec, alive=alive).rows
    for name in ("class_ids", "log_probs", "log_rest"):
        np.testing.assert_array_equal(getattr(chunked, name), getattr(whole, name))


@pytest.mark.parametrize("uniform", [0.0, 2.0**-53, 0.5, 1 - 2.0**-53])
@pytest.mark.parametrize("codec", [SampledCodec(draws=7), ThresholdCodec(levels=2), ThresholdCodec(levels=255)])
def test_the_ends_of_the_unit_interval(uniform, codec):
    logits = torch.tensor([[0.0, 3.0, -200.0], [-200.0, 1.0, 1.0], [-200.0, 0.0, -200.0]])
    spec = spec_of(3, codec)
    uniforms = np.full((3, 7 if isinstance(codec, SampledCodec) else 1), uniform)
    rows = extract(logits, spec=spec, alive=np.ones(3, dtype=np.bool_), uniforms=uniforms).rows
    rows.check(num_classes=3, shares=num_shares(codec))
    # A probability of e^-200 is 0 in float32: never drawn, whatever the uniform.
    assert 2 not in rows.class_ids[: rows.offsets[1]]
    assert 0 not in rows.class_ids[rows.offsets[1] :]
    assert rows.class_ids[rows.offsets[2] :].tolist() == [1]


def test_a_row_that_is_not_finite_is_reported_and_changes_no_other():
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    spec = spec_of(6, SampledCodec())
    clean = draw(logits, spec=spec)
    logits[2, 5] = torch.nan
    found = draw(logits, spec=spec)
    assert found.finite.tolist() == [True, True, False, True]
    others = np.array([0, 1, 3])
    for name in ("class_ids", "counts"):
        np.testing.assert_array_equal(getattr(found.rows.take(others), name), getattr(clean.rows.take(others), name))
    np.testing.assert_allclose(found.probability_sums, softmax(logits[others]).sum(axis=0), rtol=1e-5)


def test_no_rows():
    found = extract(
        torch.zeros(3, 5), spec=spec_of(5, SampledCodec()), alive=np.zeros(0, dtype=np.bool_), uniforms=np.zeros((0, 50))
    )
    assert (len(found.rows), len(found.rows.class_ids)) == (0, 0)
    ranked = extract(torch.zeros(3, 5), spec=spec_of(5, DenseCodec()), alive=np.zeros(0, dtype=np.bool_))
    assert ranked.rows.class_ids.shape == (0, 5)


def test_dense_rows_are_all_classes():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(5))
    spec = spec_of(50, DenseCodec())
    rows = extract(logits, spec=spec, alive=np.ones(3, dtype=np.bool_)).rows
    np.testing.assert_allclose(decoded(rows, spec=spec), softmax(logits), rtol=5e-3)


@pytest.mark.parametrize(
    ("codec", "uniforms"),
    [
        (SampledCodec(), None),
        (CompactCodec(), np.zeros((2, 50))),
        (SampledCodec(), np.zeros((2, 1))),
        (ThresholdCodec(), np.zeros((3, 1))),
    ],
)
def test_uniforms_that_do_not_fit_are_refused(codec, uniforms):
    with pytest.raises(ValueError, match=f"for 2 rows of codec {codec.kind}"):
        extract(torch.zeros(2, 5), spec=spec_of(5, codec), alive=np.ones(2, dtype=np.bool_), uniforms=uniforms)
