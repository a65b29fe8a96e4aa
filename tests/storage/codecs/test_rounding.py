"""What rounding explains of a stored number is known from the stored block alone, and is hardly more than what it does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from storage.codecs import features
from storage.codecs.rounding import rounding_limits
from storage.features import FeatureRows
from storage.specs import EmbeddingsSpec, Float16Codec, Int8Codec

CODECS = [Float16Codec(), Int8Codec(), Int8Codec(group=8)]


def through(values, codec):
    spec = EmbeddingsSpec(width=values.shape[1], codec=codec)
    streams = {
        name: np.frombuffer(np.ascontiguousarray(data).tobytes(), dtype=np.uint8)
        for name, data in features.encode(FeatureRows(tensors={"embedding": values}), spec=spec).items()
    }
    return spec, features.decode(streams, num_rows=len(values), spec=spec)


@pytest.mark.parametrize("codec", CODECS)
@given(
    values=arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 300), st.sampled_from([1, 3, 20])),
        elements=st.floats(-60000, 60000, width=32, allow_subnormal=False),
        fill=st.floats(-(2.0**-20), 2.0**-20, width=32),
    )
)
def test_no_number_is_further_off_than_its_limit(codec, values):
    spec, stored = through(values, codec)
    limits = rounding_limits(stored, rows=np.arange(len(values)), spec=spec).tensors["embedding"]
    assert limits.dtype == np.float32
    apart = np.abs(stored.tensors["embedding"].astype(np.float64) - values)
    assert (apart <= limits.astype(np.float64) * (1 + 1e-6)).all()


@pytest.mark.parametrize("codec", CODECS)
def test_limits_are_of_the_rows_asked_for_and_no_wider_than_half_a_step(codec):
    values = np.random.default_rng(0).normal(size=(600, 24)).astype(np.float32)
    values[300:] *= 100
    spec, stored = through(values, codec)
    limits = rounding_limits(stored, rows=np.array([5, 599]), spec=spec).tensors["embedding"]
    assert limits.shape == (2, 24)
    apart = np.abs(stored.tensors["embedding"].astype(np.float64) - values)
    assert (apart[5] <= limits[0]).all()
    assert limits[1].mean() > 20 * limits[0].mean()
    # The largest of some uniform errors nearly reaches its limit.
    assert (apart[599] / limits[1]).max() > 0.8
    assert (limits[0] <= np.abs(values[:256]).max() / 127).all()


def test_no_rows_have_no_limits():
    spec, stored = through(np.ones((4, 3), dtype=np.float32), Int8Codec())
    assert rounding_limits(stored, rows=np.zeros(0, dtype=np.int64), spec=spec).tensors["embedding"].shape == (0, 3)
