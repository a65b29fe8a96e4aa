"""Codecs of vectors: what comes back is close, says so, and nothing that is no number gets in or out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.blocks import decode_block, encode_block
from storage.codecs import features
from storage.codecs.int8 import RUN_ROWS
from storage.errors import FormatError
from storage.features import FeatureRows
from storage.specs import AttentionSpec, EmbeddingsSpec, Float16Codec, HiddenStatesSpec, Int8Codec, RelationsSpec

CODECS = [Float16Codec(), Int8Codec(), Int8Codec(group=8), Int8Codec(group=64)]
IDS = ["float16", "int8", "int8 by 8", "int8 by 64"]


def embeddings(width, codec):
    return EmbeddingsSpec(width=width, codec=codec)


def through(values, codec, *, width=None):
    """Values [rows, width] as they come back."""
    spec = embeddings(values.shape[1] if width is None else width, codec)
    streams = features.encode(FeatureRows(tensors={"embedding": values}), spec=spec)
    lengths = features.stream_lengths(len(values), spec=spec)
    assert {name: len(stream) for name, stream in streams.items()} == lengths
    assert all(stream.dtype == np.uint8 for stream in streams.values())
    return features.decode(streams, num_rows=len(values), spec=spec).tensors["embedding"]


def sharers(values, codec):
    """The largest magnitude among the numbers that share each number's scale, one run or group at a time."""
    magnitudes = np.abs(values.astype(np.float64))
    largest = np.zeros_like(magnitudes)
    if codec.group is None:
        for start in range(0, len(values), RUN_ROWS):
            largest[start : start + RUN_ROWS] = magnitudes[start : start + RUN_ROWS].max(axis=0)
    else:
        for start in range(0, values.shape[1], codec.group):
            largest[:, start : start + codec.group] = magnitudes[:, start : start + codec.group].max(axis=1, keepdims=True)
    return largest


def relative_error(values, found):
    return np.sqrt(((found.astype(np.float64) - values) ** 2).sum() / (values.astype(np.float64) ** 2).sum())


@settings(max_examples=150)
@given(
    st.integers(0, 2 * RUN_ROWS + 3),
    st.sampled_from([1, 7, 8, 9, 64, 65, 130]),
    st.sampled_from(CODECS),
    st.sampled_from([1e-30, 1e-7, 1e-4, 1.0, 3e4]),
    st.integers(0, 2**32 - 1),
)
def test_every_number_comes_back_within_its_bound(num_rows, width, codec, size, seed):
    rng = np.random.default_rng(seed)
    values = np.clip(rng.standard_t(3, size=(num_rows, width)) * size, -65504, 65504).astype(np.float32)
    values[:, rng.random(width) < 0.2] = 0
    values[:, rng.random(width) < 0.1] *= 20 if size < 1e3 else 1
    found = through(values, codec)
    assert found.shape == values.shape
    error = np.abs(found.astype(np.float64) - values)
    if isinstance(codec, Float16Codec):
        assert found.dtype == np.float16
        bound = np.maximum(np.abs(values) * 2.0**-11, 2.0**-25)
    else:
        assert found.dtype == np.float32
        # Half a step; steps are rounded up to float16, which are 2^-24 apart where they are smallest.
        bound = np.where(values == 0, 0, sharers(values, codec) / 254 * (1 + 2.0**-9) + 2.0**-25)
    assert (error <= bound * (1 + 1e-6)).all()


@pytest.mark.parametrize("codec", CODECS, ids=IDS)
def test_what_is_stored_already_is_stored_again_without_loss(codec):
    values = np.random.default_rng(0).normal(size=(300, 24)).astype(np.float32)
    once = through(values, codec)
    if isinstance(codec, Float16Codec):
        assert np.array_equal(through(once, codec), once)
    else:
        assert relative_error(once, through(once, codec)) < 1e-3


@pytest.mark.parametrize("codec", CODECS, ids=IDS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_any_floats_are_taken(codec, dtype):
    values = np.random.default_rng(1).normal(size=(5, 16)).astype(dtype)
    assert relative_error(values.astype(np.float64), through(values, codec)) < 0.01
    assert np.array_equal(through(np.asfortranarray(values), codec), through(values, codec))
    assert np.array_equal(through(values[::2], codec), through(values[::2].copy(), codec))


@pytest.mark.parametrize("codec", CODECS, ids=IDS)
def test_constant_channels_are_exact_to_their_scale(codec):
    values = np.broadcast_to(np.float32([0, 1, -1, 127, 0.5, 0.01, 254, -3]), (600, 8))
    found = through(np.ascontiguousarray(values), codec)
    if getattr(codec, "group", None) is None:
        assert found == pytest.approx(values, rel=2**-10)
        assert np.array_equal(found[0], found[-1])
    else:
        assert np.abs(found - values).max() <= 254 / 254 * (1 + 2**-9)


def test_channels_that_are_always_large_cost_others_nothing():
    # What BERT does: some channels are tens of times larger than all others, in every row.
    values = np.random.default_rng(2).normal(size=(1000, 96)).astype(np.float32)
    values[:, [3, 70]] *= 40
    others = np.setdiff1d(np.arange(96), [3, 70])
    by_channel, by_group = through(values, Int8Codec()), through(values, Int8Codec(group=32))
    assert relative_error(values, by_channel) < 0.01
    assert relative_error(values[:, others], by_channel[:, others]) < 0.01
    assert relative_error(values[:, others], by_group[:, others]) > 0.05


def test_rows_that_are_large_once_cost_others_nothing_with_groups():
    # What language models do: the first token has a channel that is thousands of times larger than anywhere else.
    values = np.random.default_rng(3).normal(size=(512, 64)).astype(np.float32)
    values[::64, 5] = 3000
    rows = np.setdiff1d(np.arange(512), np.arange(0, 512, 64))
    assert relative_error(values[rows], through(values, Int8Codec(group=64))[rows]) < 0.01
    assert relative_error(values[rows], through(values, Int8Codec())[rows]) > 0.02


def test_runs_of_rows_have_scales_of_their_own():
    values = np.ones((RUN_ROWS + 1, 8), dtype=np.float32)
    values[RUN_ROWS] = 0.01
    assert through(values, Int8Codec())[RUN_ROWS] == pytest.approx(0.01, rel=2**-10)


@pytest.mark.parametrize("codec", CODECS, ids=IDS)
def test_no_rows(codec):
    assert through(np.zeros((0, 24), dtype=np.float32), codec).shape == (0, 24)


@pytest.mark.parametrize("codec", CODECS, ids=IDS)
@pytest.mark.parametrize(
    ("number", "problem"),
    [(np.nan, "holds nan, which is no number"), (np.inf, "holds inf, which is no"), (-np.inf, "holds -inf, which is no number")],
)
def test_what_is_no_number_is_refused(codec, number, problem):
    values = np.ones((300, 70), dtype=np.float32)
    values[299, 69] = number
    with pytest.raises(FormatError, match=f"tensor embedding {problem}"):
        through(values, codec)


def test_numbers_beyond_float16_are_refused_and_int8_goes_further():
    values = np.ones((3, 8), dtype=np.float32)
    values[1, 2] = 65520
    with pytest.raises(FormatError, match="tensor embedding holds 65520, which is more than float16 holds .*store .* as int8"):
        through(values, Float16Codec())
    assert through(values, Int8Codec())[1, 2] == pytest.approx(65520, rel=2**-10)
    values[1, 2] = -1e7
    with pytest.raises(FormatError, match=r"holds -1e\+07, which is more than int8 with a float16 scale holds"):
        through(values, Int8Codec())
    with pytest.raises(FormatError, match=r"holds 1e\+300, which is more than int8 with a float16 scale holds"):
        through(np.full((2, 8), 1e300), Int8Codec(group=8))


SPECS = [
    HiddenStatesSpec(layers=(0, 6, 60), tokens="all", width=12, codec=Int8Codec()),
    HiddenStatesSpec(layers=(6,), tokens="mean", width=12, codec=Float16Codec()),
    AttentionSpec(
        layers=(1, 3),
        vectors=("query", "key", "value"),
        num_heads=4,
        num_key_value_heads=2,
        head_width=3,
        causal=True,
        codec=Int8Codec(group=8),
    ),
    RelationsSpec(layer=2, vectors=("query", "value"), num_relation_heads=5, codec=Float16Codec()),
    EmbeddingsSpec(width=9, codec=Int8Codec()),
]


def make_features(spec, num_rows, *, seed=0):
    rng = np.random.default_rng(seed)
    return FeatureRows(
        tensors={name: rng.normal(size=(num_rows, width)).astype(np.float32) for name, width in spec.tensors.items()}
    )


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_every_tensor_has_its_own_streams(spec):
    rows = make_features(spec, 20)
    streams = features.encode(rows, spec=spec)
    assert list(streams) == list(features.stream_lengths(20, spec=spec))
    found = features.decode(streams, num_rows=20, spec=spec)
    assert list(found.tensors) == list(spec.tensors)
    for name, values in rows.tensors.items():
        assert relative_error(values, found.tensors[name]) < 0.01
    # And they pass through the container, whatever it compresses.
    limits = features.stream_lengths(20, spec=spec)
    _, stored = decode_block(encode_block({}, streams), origin="here", read_header=lambda header: (header, limits))
    again = features.decode(stored, num_rows=20, spec=spec)
    assert all(np.array_equal(again.tensors[name], found.tensors[name]) for name in spec.tensors)


def test_other_tensors_are_refused():
    spec = SPECS[0]
    rows = make_features(spec, 4).tensors
    wrong = [
        {},
        {name: rows[name] for name in list(rows)[1:]},
        {**rows, "hidden.7": rows["hidden.6"]},
        {**rows, "hidden.6": rows["hidden.6"][:, :11]},
        {**rows, "hidden.6": rows["hidden.6"][:3]},
        {**rows, "hidden.6": rows["hidden.6"].reshape(-1)},
    ]
    for tensors in wrong:
        with pytest.raises(FormatError, match="the spec asks for"):
            features.encode(FeatureRows(tensors=tensors), spec=spec)


@pytest.mark.parametrize("codec", CODECS, ids=IDS)
def test_streams_that_cannot_be_are_refused(codec):
    spec = embeddings(12, codec)
    streams = features.encode(make_features(spec, 6), spec=spec)
    for name in streams:
        for changed in ({name: streams[name][:-1]}, {name: np.append(streams[name], np.uint8(0))}, {name: streams[name][:0]}):
            with pytest.raises(FormatError, match="bytes"):
                features.decode({**streams, **changed}, num_rows=6, spec=spec)
        with pytest.raises(FormatError, match=f"stream '{name}' is missing; the block holds"):
            features.decode({other: streams[other] for other in streams if other != name}, num_rows=6, spec=spec)
    for num_rows in (5, 7, 300):
        with pytest.raises(FormatError, match="bytes"):
            features.decode(streams, num_rows=num_rows, spec=spec)


@pytest.mark.parametrize(("high", "refused"), [(0x7C, True), (0xFC, True), (0x7F, True), (0x7B, False), (0xFB, False)])
def test_stored_float16_is_finite(high, refused):
    spec = embeddings(8, Float16Codec())
    streams = features.encode(make_features(spec, 2), spec=spec)
    streams["embedding/1"] = streams["embedding/1"].copy()
    streams["embedding/1"][9] = high
    if refused:
        with pytest.raises(FormatError, match="tensor embedding holds NaN or an infinity"):
            features.decode(streams, num_rows=2, spec=spec)
    else:
        assert np.isfinite(features.decode(streams, num_rows=2, spec=spec).tensors["embedding"]).all()


@pytest.mark.parametrize(("scale", "refused"), [(0x7C00, True), (0x7C01, True), (0x8001, True), (0x7BFF, False), (0, False)])
def test_stored_scales_are_finite_and_never_negative(scale, refused):
    spec = embeddings(8, Int8Codec(group=8))
    streams = features.encode(make_features(spec, 2), spec=spec)
    streams["embedding/scales"] = np.array([0x3C00, scale], dtype="<u2").view(np.uint8)
    if refused:
        with pytest.raises(FormatError, match="a scale of tensor embedding is negative, infinite or NaN"):
            features.decode(streams, num_rows=2, spec=spec)
    else:
        assert np.isfinite(features.decode(streams, num_rows=2, spec=spec).tensors["embedding"]).all()


def test_a_step_that_is_never_written_is_refused():
    spec = embeddings(8, Int8Codec())
    streams = features.encode(make_features(spec, 2), spec=spec)
    streams["embedding/values"] = np.full(16, 0x80, dtype=np.uint8)
    with pytest.raises(FormatError, match="tensor embedding holds -128"):
        features.decode(streams, num_rows=2, spec=spec)
