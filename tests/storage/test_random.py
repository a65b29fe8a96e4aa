"""Uniforms of drawn labels: the same whatever else is drawn beside them."""

from __future__ import annotations

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from storage.random import label_uniforms, num_uniforms
from storage.specs import CompactCodec, DenseCodec, ExactCodec, SampledCodec, ThresholdCodec
from storage.views.random import view_uniforms

CODECS = (SampledCodec(draws=4), SampledCodec(draws=50, seed=9), ThresholdCodec(seed=2**63 - 1))


def test_only_what_is_drawn_takes_uniforms():
    assert [num_uniforms(codec) for codec in CODECS] == [4, 50, 1]
    assert [num_uniforms(codec) for codec in (ExactCodec(), CompactCodec(), DenseCodec())] == [0, 0, 0]


@given(st.sampled_from(CODECS), st.text(max_size=8), st.integers(0, 2**31), st.lists(st.integers(0, 300), max_size=12))
def test_a_position_has_its_own_uniforms(codec, key, view_index, positions):
    found = label_uniforms(codec, key=key, view_index=view_index, positions=np.array(positions, dtype=np.int64))
    everything = label_uniforms(codec, key=key, view_index=view_index, positions=np.arange(301))
    assert found.dtype == np.float64
    assert found.shape == (len(positions), num_uniforms(codec))
    assert ((found >= 0) & (found < 1)).all()
    np.testing.assert_array_equal(found, everything[positions])


def test_they_are_the_words_of_philox_from_the_position_on():
    codec = SampledCodec(draws=4, seed=7)
    key = xxhash.xxh3_128_intdigest((7).to_bytes(8, "little") + b"shard-3/doc")
    for position in (0, 1, 1000):
        block = np.random.Philox(key=key, counter=[position, 0, 1, 5]).random_raw(4)
        found = label_uniforms(codec, key="shard-3/doc", view_index=5, positions=np.array([position]))
        assert found.tolist() == [[(int(word) >> 11) / 2**53 for word in block]]


def test_their_values_are_fixed_for_ever():
    found = label_uniforms(SampledCodec(draws=2), key="a", view_index=0, positions=np.array([0, 1]))
    assert found.tolist() == [[0.786327734673836, 0.7594410157920647], [0.3569095255960967, 0.7560049668707145]]


@pytest.mark.parametrize("other", [{"key": "b"}, {"view_index": 1}, {"codec": SampledCodec(draws=8, seed=1)}])
def test_another_sample_view_or_seed_has_others(other):
    same = {"codec": SampledCodec(draws=8), "key": "a", "view_index": 0}

    def drawn(codec, **place):
        return set(label_uniforms(codec, **place, positions=np.arange(50)).reshape(-1).tolist())

    assert not drawn(**same) & drawn(**(same | other))


def test_a_mask_of_the_same_seed_has_others():
    masks = view_uniforms(0, key="a", view_index=0, count=400)
    assert not set(masks.tolist()) & set(
        label_uniforms(SampledCodec(draws=8), key="a", view_index=0, positions=np.arange(50)).reshape(-1).tolist()
    )
