"""The renderer: pixel for pixel what timm and torchvision do, and frozen by digests."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform
from torchvision.transforms import functional as F
from torchvision.transforms.functional import InterpolationMode

from storage.errors import SampleError
from storage.specs import EvaluationView, Interpolation, RandomResizedCropView, Size
from storage.views import RENDERER_VERSION, ViewParams, draw_view_params, render, view_digest

INTERPOLATIONS = get_args(Interpolation)
SHAPES = [(375, 500), (500, 375), (64, 64), (33, 257), (501, 90), (7, 5), (1, 9), (9, 1)]


def picture(height: int, width: int, *, seed: int = 0) -> Image.Image:
    """Return noise over a gradient: every pixel matters and none repeats."""
    noise = np.random.default_rng(seed).integers(0, 120, (height, width, 3))
    rows, columns = np.mgrid[0:height, 0:width]
    ramp = np.stack([rows * 135 / height, columns * 135 / width, (rows + columns) * 135 / (height + width)], axis=-1)
    return Image.fromarray((noise + ramp).astype(np.uint8))


def render_view(spec: EvaluationView | RandomResizedCropView, image: Image.Image, *, size: Size | None = None) -> np.ndarray:
    params = draw_view_params(spec, key="key", view_index=0, width=image.width, height=image.height)
    return render(image, params, interpolation=spec.interpolation, size=size)


def timm_view(image: Image.Image, *, size: Size, crop_pct: float, crop_mode: str, interpolation: str) -> np.ndarray:
    transform = create_transform(
        input_size=(3, *size), is_training=False, crop_pct=crop_pct, crop_mode=crop_mode, interpolation=interpolation
    )
    geometry = [step for step in transform.transforms if type(step).__name__ in ("Resize", "ResizeKeepRatio", "CenterCrop")]
    assert len(geometry) == 2
    for step in geometry:
        image = step(image)
    return np.asarray(image)


def evaluation_view(*, size: Size, crop_pct: float, crop_mode: str, interpolation: str) -> EvaluationView:
    return EvaluationView(
        size=size,
        resize="squash" if crop_mode == "squash" else "shorter_edge",
        resize_size=(math.floor(size[0] / crop_pct), math.floor(size[1] / crop_pct)),
        interpolation=interpolation,
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("crop_mode", ["center", "squash"])
@pytest.mark.parametrize(
    ("size", "crop_pct"), [((224, 224), 0.875), ((96, 96), 0.9), ((60, 60), 1.0), ((33, 33), 1.3), ((48, 80), 0.95)]
)
def test_evaluation_view_is_pixel_identical_to_timm(shape: Size, crop_mode: str, size: Size, crop_pct: float) -> None:
    for interpolation in ("bilinear", "bicubic"):
        geometry = {"size": size, "crop_pct": crop_pct, "crop_mode": crop_mode, "interpolation": interpolation}
        image = picture(*shape)
        rendered = render_view(evaluation_view(**geometry), image)
        assert rendered.dtype == np.uint8
        assert rendered.shape == (*size, 3)
        np.testing.assert_array_equal(rendered, timm_view(image, **geometry))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_every_interpolation_is_pixel_identical_to_timm(interpolation: Interpolation) -> None:
    geometry = {"size": (72, 72), "crop_pct": 0.875, "crop_mode": "center", "interpolation": interpolation}
    image = picture(100, 141)
    np.testing.assert_array_equal(render_view(evaluation_view(**geometry), image), timm_view(image, **geometry))


@settings(max_examples=60)
@given(st.integers(1, 150), st.integers(1, 150), st.integers(1, 70), st.integers(1, 70), st.integers(1, 90), st.booleans())
def test_any_evaluation_view_equals_torchvision(height: int, width: int, out_h: int, out_w: int, edge: int, squash: bool) -> None:
    image = picture(height, width)
    spec = EvaluationView(size=(out_h, out_w), resize="squash" if squash else "shorter_edge", resize_size=(edge, edge))
    resized = F.resize(image, [edge, edge] if squash else [edge], InterpolationMode.BICUBIC)
    np.testing.assert_array_equal(render_view(spec, image), np.asarray(F.center_crop(resized, [out_h, out_w])))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_random_view_equals_torchvision_resized_crop(shape: Size, interpolation: Interpolation) -> None:
    image = picture(*shape)
    spec = RandomResizedCropView(size=(40, 56), interpolation=interpolation)
    for view_index in range(4):
        params = draw_view_params(spec, key="key", view_index=view_index, width=image.width, height=image.height)
        expected = F.resized_crop(
            image, params.top, params.left, params.height, params.width, [40, 56], InterpolationMode(interpolation)
        )
        if params.flip:
            expected = F.hflip(expected)
        rendered = render(image, params, interpolation=interpolation)
        assert rendered.flags.c_contiguous
        np.testing.assert_array_equal(rendered, np.asarray(expected))


def test_size_renders_the_same_random_box_at_another_size() -> None:
    image = picture(90, 120)
    params = draw_view_params(RandomResizedCropView(size=(64, 64)), key="a", view_index=1, width=120, height=90)
    small = draw_view_params(RandomResizedCropView(size=(32, 48)), key="a", view_index=1, width=120, height=90)
    np.testing.assert_array_equal(
        render(image, params, interpolation="bicubic", size=(32, 48)), render(image, small, interpolation="bicubic")
    )


def test_size_keeps_the_field_of_view_of_an_evaluation_view() -> None:
    image = picture(200, 300)
    large = EvaluationView(size=(112, 112), resize_size=(128, 128))
    small = EvaluationView(size=(56, 56), resize_size=(64, 64))
    np.testing.assert_array_equal(render_view(large, image, size=(56, 56)), render_view(small, image))
    np.testing.assert_array_equal(render_view(large, image, size=(112, 112)), render_view(large, image))


def test_small_picture_is_padded_with_black() -> None:
    white = Image.new("RGB", (3, 2), (255, 255, 255))
    rendered = render_view(EvaluationView(size=(8, 9), resize_size=(4, 4)), white)
    expected = np.zeros((8, 9, 3), np.uint8)
    expected[2:6, 1:7] = 255
    np.testing.assert_array_equal(rendered, expected)


def test_pixels_outside_the_box_do_not_leak_in() -> None:
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[10:20, 10:20] = 200
    params = ViewParams(left=10, top=10, width=10, height=10, resize_size=(30, 30), size=(30, 30), flip=False)
    assert (render(Image.fromarray(pixels), params, interpolation="bicubic") == 200).all()


DIGESTS = {
    (RandomResizedCropView(size=(32, 32)), 0): 0xF2925A9BC88DE220,
    (RandomResizedCropView(size=(32, 32)), 1): 0x58B1B68534FEC3E3,
    (EvaluationView(size=(32, 32), resize_size=(36, 36), interpolation="nearest"), 0): 0x9FEB0885FD669D21,
}


def test_digests_are_frozen() -> None:
    """Fails when Pillow's resampling, the draw or the digest changes: then a new RENDERER_VERSION is due."""
    assert RENDERER_VERSION == 1
    rows, columns = np.mgrid[0:75, 0:101]
    image = Image.fromarray(np.stack([rows * 3, columns * 2, (rows * columns) % 256], axis=-1).astype(np.uint8))
    digests = {}
    for spec, view_index in DIGESTS:
        params = draw_view_params(spec, key="golden", view_index=view_index, width=101, height=75)
        digests[spec, view_index] = view_digest(render(image, params, interpolation=spec.interpolation))
    assert digests == DIGESTS


def test_digest_sees_shape_and_bytes_and_nothing_else() -> None:
    pixels = np.arange(2 * 6 * 3, dtype=np.uint8).reshape(2, 6, 3)
    assert view_digest(pixels) == view_digest(pixels.copy())
    assert view_digest(pixels) == view_digest(np.asfortranarray(pixels))
    assert view_digest(pixels) != view_digest(pixels.reshape(6, 2, 3))
    changed = pixels.copy()
    changed[1, 5, 2] ^= 1
    assert view_digest(pixels) != view_digest(changed)
    assert 0 <= view_digest(pixels) < 2**64


def test_picture_that_is_not_rgb_is_refused() -> None:
    params = draw_view_params(RandomResizedCropView(size=(8, 8)), key="a", view_index=0, width=9, height=9)
    with pytest.raises(SampleError, match=r"mode LA.*image.convert\('RGB'\)"):
        render(Image.new("LA", (9, 9)), params, interpolation="bicubic")


def test_box_of_another_picture_is_refused() -> None:
    params = ViewParams(left=4, top=0, width=8, height=8, resize_size=(8, 8), size=(8, 8), flip=False)
    with pytest.raises(SampleError, match="column 12, row 8 but the picture has 11 x 9"):
        render(Image.new("RGB", (11, 9)), params, interpolation="bicubic")
