"""Parameters of views: frozen draws, always inside the picture, distributed as torchvision's."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import RandomResizedCrop

from storage.errors import SampleError
from storage.specs import EvaluationView, RandomResizedCropView
from storage.views import ViewParams, draw_view_params

RANDOM = RandomResizedCropView(size=(224, 192), seed=5)

GOLDEN = {
    ("n01440764/pic_000001", 0, 500, 375): (135, 10, 297, 340, False),
    ("n01440764/pic_000001", 1, 500, 375): (61, 25, 234, 244, True),
    ("wide", 0, 3000, 7): (1495, 0, 9, 7, False),
    ("dot", 2, 1, 1): (0, 0, 1, 1, False),
}


@pytest.mark.parametrize(("key", "view_index", "width", "height"), GOLDEN)
def test_draws_are_frozen(key: str, view_index: int, width: int, height: int) -> None:
    params = draw_view_params(RANDOM, key=key, view_index=view_index, width=width, height=height)
    assert (params.left, params.top, params.width, params.height, params.flip) == GOLDEN[key, view_index, width, height]
    assert params.resize_size == params.size == (224, 192)


lengths = st.one_of(st.just(1), st.integers(1, 40), st.integers(1, 20_000))


def unordered_range(low: float, high: float) -> st.SearchStrategy[tuple[float, float]]:
    return st.tuples(st.floats(low, high), st.floats(low, high)).map(lambda pair: (min(pair), max(pair)))


@given(
    width=lengths,
    height=lengths,
    scale=unordered_range(1e-6, 1.0),
    ratio=unordered_range(0.01, 100.0),
    key=st.text(st.characters(codec="utf-8"), max_size=8),
    view_index=st.integers(0, 99_999),
    seed=st.integers(0, 2**63 - 1),
)
def test_box_is_inside_every_picture(
    width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float], key: str, view_index: int, seed: int
) -> None:
    spec = RandomResizedCropView(size=(8, 8), scale=scale, ratio=ratio, seed=seed)
    params = draw_view_params(spec, key=key, view_index=view_index, width=width, height=height)
    assert 0 <= params.left
    assert 0 <= params.top
    assert params.width >= 1
    assert params.height >= 1
    assert params.left + params.width <= width
    assert params.top + params.height <= height
    assert params == draw_view_params(spec, key=key, view_index=view_index, width=width, height=height)


def test_flip_probability_is_kept() -> None:
    def flips(probability: float) -> int:
        spec = RandomResizedCropView(size=(8, 8), flip_probability=probability)
        return sum(draw_view_params(spec, key=f"s{i}", view_index=0, width=9, height=9).flip for i in range(2000))

    assert flips(0.0) == 0
    assert flips(1.0) == 2000
    assert abs(flips(0.25) - 500) < 5 * np.sqrt(2000 * 0.25 * 0.75)


def test_seed_key_and_view_change_the_draw_and_the_output_size_does_not() -> None:
    draw: dict[str, Any] = {"key": "a", "view_index": 0, "width": 640, "height": 480}
    base = draw_view_params(RANDOM, **draw)
    assert draw_view_params(RANDOM, **draw | {"key": "b"}) != base
    assert draw_view_params(RANDOM, **draw | {"view_index": 1}) != base
    assert draw_view_params(RANDOM.model_copy(update={"seed": 6}), **draw) != base
    smaller = draw_view_params(RANDOM.model_copy(update={"size": (64, 64)}), **draw)
    assert smaller == dataclasses.replace(base, size=(64, 64), resize_size=(64, 64))


def largest_gap(first: np.ndarray, second: np.ndarray) -> float:
    """Two-sample Kolmogorov-Smirnov statistic."""
    values = np.concatenate([first, second])
    ranks = [np.searchsorted(np.sort(sample), values, side="right") / sample.size for sample in (first, second)]
    return float(np.abs(ranks[0] - ranks[1]).max())


@pytest.mark.parametrize(
    ("width", "height", "scale", "ratio"),
    [(500, 375, (0.08, 1.0), (0.75, 4 / 3)), (320, 900, (0.3, 0.9), (0.5, 2.0)), (1000, 150, (0.08, 1.0), (0.75, 4 / 3))],
)
def test_draws_are_distributed_as_torchvision_draws_them(
    width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> None:
    count = 4000
    spec = RandomResizedCropView(size=(8, 8), scale=scale, ratio=ratio)
    ours = np.empty((count, 4))
    for index in range(count):
        params = draw_view_params(spec, key=f"sample_{index}", view_index=0, width=width, height=height)
        ours[index] = params.top, params.left, params.height, params.width
    picture = torch.empty(3, height, width)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = np.array([RandomResizedCrop.get_params(picture, list(scale), list(ratio)) for _ in range(count)], dtype=float)
    # Significance 1e-6: sqrt(-ln(1e-6 / 2) / 2 * 2 / count).
    limit = np.sqrt(-np.log(0.5e-6) / count)
    for name, statistic in {
        "top": lambda box: box[:, 0] / (height - box[:, 2] + 1),
        "left": lambda box: box[:, 1] / (width - box[:, 3] + 1),
        "area": lambda box: box[:, 2] * box[:, 3],
        "ratio": lambda box: box[:, 3] / box[:, 2],
    }.items():
        assert largest_gap(statistic(ours), statistic(theirs)) < limit, name


def test_picture_outside_the_ratio_falls_back_to_the_central_crop() -> None:
    spec = RandomResizedCropView(size=(8, 8), scale=(1.0, 1.0), flip_probability=0.0)
    params = draw_view_params(spec, key="a", view_index=0, width=1000, height=30)
    assert params == ViewParams(left=480, top=0, width=40, height=30, resize_size=(8, 8), size=(8, 8), flip=False)
    params = draw_view_params(spec, key="a", view_index=0, width=30, height=1001)
    assert (params.left, params.top, params.width, params.height) == (0, 480, 30, 40)


def test_evaluation_view_takes_the_whole_picture_whatever_key_and_view() -> None:
    spec = EvaluationView(size=(224, 224), resize_size=(256, 256))
    params = draw_view_params(spec, key="a", view_index=0, width=500, height=375)
    assert params == ViewParams(left=0, top=0, width=500, height=375, resize_size=(256, 341), size=(224, 224), flip=False)
    assert draw_view_params(spec, key="b", view_index=9, width=500, height=375) == params


def test_picture_too_elongated_to_resize_is_refused() -> None:
    spec = EvaluationView(size=(224, 224), resize_size=(256, 256))
    with pytest.raises(SampleError, match=r"20000 x 1 pixels .* becomes 5120000 x 256 .* gets no view. Crop the picture"):
        draw_view_params(spec, key="a", view_index=0, width=20_000, height=1)
