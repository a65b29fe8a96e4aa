"""The stream of uniforms: frozen, independent between views, extensible."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from storage.views import view_uniforms

GOLDEN = {
    (0, "", 0): [
        "0x1.1454c24700300p-7",
        "0x1.796c3ca4aca26p-2",
        "0x1.4cda02180c66fp-1",
        "0x1.d44c3db6f5dd9p-1",
        "0x1.a3892df2d6c92p-1",
        "0x1.1f9f0584445d0p-1",
    ],
    (0, "n01440764/pic_000001", 0): [
        "0x1.d249622d2ffe4p-3",
        "0x1.d9d1cf23c6850p-2",
        "0x1.4df858e93b0d2p-1",
        "0x1.61b308d0b5065p-1",
        "0x1.8e5b3c84a2337p-1",
        "0x1.95281770c07a0p-1",
    ],
    (0, "n01440764/pic_000001", 1): [
        "0x1.65638739e8b06p-2",
        "0x1.53ecce249121dp-1",
        "0x1.8952160e2f800p-4",
        "0x1.18e0a353dacf2p-2",
        "0x1.24698a75241e0p-5",
        "0x1.7a1d3ca58719fp-1",
    ],
    (2**63 - 1, "züge/8", 99_998): [
        "0x1.9fddb5cd3f12ep-2",
        "0x1.e0fe53e239bd8p-3",
        "0x1.7ec3b1e42ce4cp-1",
        "0x1.b8e86fca0585cp-2",
        "0x1.6775bc1167c1cp-2",
        "0x1.0dee5a8fad62cp-2",
    ],
}


@pytest.mark.parametrize(("seed", "key", "view_index"), GOLDEN)
def test_stream_is_frozen(seed: int, key: str, view_index: int) -> None:
    uniforms = view_uniforms(seed, key=key, view_index=view_index, count=6)
    assert [value.hex() for value in uniforms.tolist()] == GOLDEN[seed, key, view_index]


def test_long_stream_is_frozen() -> None:
    uniforms = view_uniforms(7, key="sample", view_index=3, count=4096)
    assert (
        hashlib.sha256(uniforms.astype("<f8").tobytes()).hexdigest()
        == "c0c43f9feae85669285fca6eb5ee9cc48cd4f040bc427254bd156295e7e9aa17"
    )


@given(
    st.integers(0, 2**63 - 1),
    st.text(st.characters(codec="utf-8"), max_size=40),
    st.integers(0, 2**40),
    st.integers(0, 50),
    st.integers(0, 50),
)
def test_longer_request_begins_with_the_shorter(seed: int, key: str, view_index: int, count: int, more: int) -> None:
    short = view_uniforms(seed, key=key, view_index=view_index, count=count)
    long = view_uniforms(seed, key=key, view_index=view_index, count=count + more)
    assert short.dtype == np.float64
    assert short.shape == (count,)
    np.testing.assert_array_equal(long[:count], short)
    assert ((long >= 0) & (long < 1)).all()


def philox_block(key: int, counter: list[int]) -> list[int]:
    """Philox4x64-10, written from the paper."""
    mask, keys, words = 2**64 - 1, [key & (2**64 - 1), key >> 64], list(counter)
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * words[0], 0xCA5A826395121157 * words[2]
        words = [(second >> 64) ^ words[1] ^ keys[0], second & mask, (first >> 64) ^ words[3] ^ keys[1], first & mask]
        keys = [(keys[0] + 0x9E3779B97F4A7C15) & mask, (keys[1] + 0xBB67AE8584CAA73B) & mask]
    return words


def test_stream_follows_its_documentation() -> None:
    key = xxhash.xxh3_128_intdigest((11).to_bytes(8, "little") + "a/ü".encode())
    words = [word for block in (1, 2, 3) for word in philox_block(key, [block, 0, 0, 9])]
    expected = [(word >> 11) / 2**53 for word in words]
    assert view_uniforms(11, key="a/ü", view_index=9, count=12).tolist() == expected


def test_neighbouring_views_keys_and_seeds_share_no_draw() -> None:
    streams = [
        view_uniforms(seed, key=key, view_index=view_index, count=256)
        for seed in (0, 1)
        for key in ("a", "b", "ab")
        for view_index in range(8)
    ]
    assert np.unique(np.concatenate(streams)).size == len(streams) * 256


def test_uniforms_are_uniform_across_views() -> None:
    first = np.array([view_uniforms(0, key=f"sample_{i}", view_index=i % 3, count=4) for i in range(5000)])
    deciles = np.array([np.histogram(first[:, column], bins=10, range=(0, 1))[0] for column in range(4)])
    # 500 +- 5 standard deviations of a binomial count.
    assert (np.abs(deciles - 500) < 5 * np.sqrt(5000 * 0.1 * 0.9)).all()
    assert np.abs(np.corrcoef(first.T) - np.eye(4)).max() < 5 / np.sqrt(5000)


def test_global_generator_is_neither_read_nor_moved() -> None:
    np.random.seed(1)  # noqa: NPY002
    before = view_uniforms(0, key="a", view_index=0, count=8)
    expected = np.random.random(3)  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    np.testing.assert_array_equal(view_uniforms(0, key="a", view_index=0, count=8), before)
    np.testing.assert_array_equal(np.random.random(3), expected)  # noqa: NPY002
