from __future__ import annotations

import contextlib
import io
import struct
import subprocess
import sys
import threading
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from storage.errors import SampleError
from storage.images import decode_image

LIMIT = 10**8
GRADIENT = np.linspace(0, 255, 12 * 16 * 3).astype(np.uint8).reshape(12, 16, 3)
RED, GREEN = (200, 10, 20), (10, 180, 30)


def encode(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def decode(data, *, max_pixels=LIMIT):
    image = decode_image(data, max_pixels=max_pixels)
    assert type(image) is Image.Image
    assert image.mode == "RGB"
    assert image.info == {}
    return np.asarray(image)


def rgb():
    return Image.fromarray(GRADIENT)


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("PNG", {}),
        ("PNG", {"optimize": True}),
        ("BMP", {}),
        ("PPM", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_lossless_formats_come_back_exactly(format, options):
    assert np.array_equal(decode(encode(rgb(), format, **options)), GRADIENT)


WRITABLE = {
    "JPEG": ("1", "L", "RGB", "CMYK", "YCbCr"),
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "LAB"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("1", "L", "LA", "P", "RGB", "RGBA"),
}


@pytest.mark.parametrize(("format", "mode"), [(format, mode) for format, modes in WRITABLE.items() for mode in modes])
def test_8_bit_pictures_are_what_pillow_makes_of_them(format, mode):
    data = encode(Image.new("LAB", (4, 4), (50, 9, 9)) if mode == "LAB" else rgb().convert(mode), format)
    with Image.open(io.BytesIO(data)) as opened:
        assert np.array_equal(decode(data), np.asarray(opened.convert("RGB")))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 2}, {"quality": 100, "subsampling": 0}])
def test_jpeg(options):
    data = encode(rgb(), "JPEG", **options)
    with Image.open(io.BytesIO(data)) as opened:
        assert np.array_equal(decode(data), np.asarray(opened))
    assert np.abs(decode(data).astype(int) - GRADIENT).mean() < 12


def test_alpha_is_dropped_not_composited():
    pixels = np.dstack([GRADIENT, np.zeros((12, 16), np.uint8)])
    assert np.array_equal(decode(encode(Image.fromarray(pixels, "RGBA"))), GRADIENT)
    grey = np.dstack([GRADIENT[..., 0], np.zeros((12, 16), np.uint8)])
    assert np.array_equal(decode(encode(Image.fromarray(grey, "LA")))[..., 1], GRADIENT[..., 0])


@pytest.mark.parametrize("transparency", [None, 0, bytes([0, 128])])
def test_palettes_with_and_without_transparency(transparency):
    image = Image.new("P", (4, 4))
    image.putpalette([*RED, *GREEN])
    image.paste(1, (0, 0, 2, 4))
    data = encode(image, **({} if transparency is None else {"transparency": transparency}))
    pixels = decode(data)
    assert tuple(pixels[0, 0]) == GREEN
    assert tuple(pixels[0, 3]) == RED


@pytest.mark.parametrize("key", [(200, 10, 20), 7])
def test_a_transparent_colour_stays_a_colour(key):
    image = Image.new("RGB", (2, 2), RED) if isinstance(key, tuple) else Image.new("L", (2, 2), key)
    expected = key if isinstance(key, tuple) else (key,) * 3
    assert tuple(decode(encode(image, transparency=key))[0, 0]) == expected


def test_cmyk_jpeg_is_not_inverted():
    data = encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)
    assert b"Adobe" in data
    red, green, blue = decode(data)[8, 8].astype(int)
    assert red > 240
    assert green < 15
    assert blue < 15


RAMP = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_keeps_its_high_byte(format):
    assert decode(encode(Image.fromarray(RAMP), format))[0, :, 2].tolist() == [0, 0, 1, 128, 255]


def test_big_endian_16_bit_grey():
    assert decode(encode(Image.frombytes("I;16B", (5, 1), RAMP.astype(">u2").tobytes()), "TIFF"))[0, :, 0].tolist() == [
        0,
        0,
        1,
        128,
        255,
    ]


def test_16_bit_grey_looks_like_16_bit_rgb():
    raw = np.repeat(RAMP[..., None], 3, axis=2).astype(">u2").tobytes()
    ppm = b"P6 5 1 65535\n" + raw
    ours = decode(encode(Image.fromarray(RAMP)))
    assert np.abs(decode(ppm).astype(int) - ours).max() <= 1


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 65535, 32768]], np.int32), [0, 255, 128]),
        (np.array([[0, 1_000_000, 500_000]], np.int32), [0, 255, 128]),
        (np.array([[-100, 100, 0]], np.int32), [0, 255, 128]),
        (np.array([[0, 1, 0.5]], np.float32), [0, 255, 128]),
        (np.array([[0.25, 0.75, 0.25]], np.float32), [64, 191, 64]),
        (np.array([[-2, 2, 0]], np.float32), [0, 255, 128]),
        (np.array([[7, 7, 7]], np.float32), [0, 0, 0]),
    ],
)
def test_deeper_pictures_are_scaled_not_clipped(values, expected):
    assert decode(encode(Image.fromarray(values), "TIFF"))[0, :, 1].tolist() == expected


def test_nan_is_refused():
    with pytest.raises(SampleError, match="NaN"):
        decode(encode(Image.fromarray(np.array([[0, np.nan]], np.float32)), "TIFF"))


UPRIGHT = np.zeros((2, 3, 3), np.uint8)
UPRIGHT[0, 0] = RED
UPRIGHT[0, 2] = GREEN
STORED = {  # how a camera that writes this orientation stores UPRIGHT
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.transpose(1, 0, 2),
    6: np.rot90(UPRIGHT, 1),
    7: UPRIGHT[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(UPRIGHT, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize(("format", "options"), [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})])
def test_exif_orientation_is_applied(orientation, format, options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(np.ascontiguousarray(STORED[orientation])), format, exif=exif, **options)
    assert np.array_equal(decode(data), UPRIGHT)


@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_of_jpeg(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    large = np.kron(STORED[orientation], np.ones((16, 16, 1), np.uint8))
    pixels = decode(encode(Image.fromarray(large), "JPEG", exif=exif, quality=95, subsampling=0))
    assert np.abs(pixels[8::16, 8::16].astype(int) - UPRIGHT).max() < 12


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x01"]
)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
def test_damaged_exif_is_no_reason_to_lose_a_picture(exif):
    assert decode(encode(rgb(), "JPEG", exif=exif)).shape == GRADIENT.shape


def test_sizes_from_1_to_8000():
    for size in ((1, 1), (1, 8000), (8000, 1), (8000, 10)):
        assert decode(encode(Image.new("RGB", size, RED), "JPEG")).shape == (size[1], size[0], 3)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation(format):
    options = {"lossless": True} if format == "WEBP" else {}
    frames = [Image.new("RGB", (5, 4), color) for color in (RED, GREEN)]
    data = encode(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert np.array_equal(decode(data), np.broadcast_to(np.array(RED, np.uint8), (4, 5, 3)))


def test_the_main_picture_of_a_multi_picture_jpeg():
    frames = [Image.new("RGB", (16, 16), color) for color in (RED, GREEN)]
    pixels = decode(encode(frames[0], "MPO", save_all=True, append_images=frames[1:]))
    assert np.abs(pixels[0, 0].astype(int) - RED).max() < 5


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"not a picture at all", "not an image"),
        (b"<html><body>404</body></html>", "not an image"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not an image"),
        (b"\xff\xd8\xff", "truncated or damaged"),
        (b"\x89PNG\r\n\x1a\n", "truncated or damaged"),
        (b"BM but a text", "truncated or damaged"),
    ],
)
def test_what_is_no_picture_is_refused_with_the_reason(data, message):
    with pytest.raises(SampleError, match=message):
        decode(data)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "BMP", "PPM", "WEBP", "GIF", "TIFF"])
def test_truncation_is_refused(format):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), format)
    for share in (0.02, 0.5, 0.9):
        with pytest.raises(SampleError, match="truncated or damaged|not an image"):
            decode(data[: int(len(data) * share)])


def png_header(width, height):
    data = bytearray(encode(Image.new("RGB", (1, 1))))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


BMP = encode(Image.new("RGB", (1, 1)), "BMP")
BOMBS = {
    "PNG": png_header(60_000, 60_000),
    "PPM": b"P6 60000 60000 255\n",
    "BMP": BMP[:18] + struct.pack("<ii", 60_000, 60_000) + BMP[26:],
    "GIF": b"GIF89a"
    + struct.pack("<HH", 60_000, 60_000)
    + b"\0\0\0,\0\0\0\0"
    + struct.pack("<HH", 60_000, 60_000)
    + b"\0\x02\0;",
    "WEBP": encode(Image.new("RGB", (16_000, 16_000)), "WEBP", lossless=True, method=0, quality=0),
}


@pytest.mark.parametrize("format", BOMBS)
def test_bombs_are_refused_by_their_header(format):
    with pytest.raises(SampleError, match="exceed the limit of 100000000"):
        decode(BOMBS[format])


def test_the_limit_is_exact():
    data = encode(Image.new("RGB", (30, 20)))
    assert decode(data, max_pixels=600).shape == (20, 30, 3)
    with pytest.raises(SampleError, match="30 x 20 pixels exceed the limit of 599"):
        decode(data, max_pixels=599)


def test_pillows_own_limit_does_not_matter(monkeypatch):
    data = {format: encode(Image.new("RGB", (30, 20)), format) for format in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM")}
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)  # would warn, and warnings are errors here
    for of_format in data.values():
        assert decode(of_format).shape == (20, 30, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # would raise
    for of_format in data.values():
        assert decode(of_format).shape == (20, 30, 3)


def test_importing_leaves_pillows_settings_alone():
    code = (
        "from PIL import Image, ImageFile; before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, ImageFile.MAXBLOCK\n"
        "import storage.images\n"
        "assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, ImageFile.MAXBLOCK)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


SEEDS = [encode(rgb(), format) for format in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM")]


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=200, deadline=None)
@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6))
def test_damage_gives_a_picture_or_a_sample_error(data, changes):
    damaged = bytearray(data)
    for offset, value in changes:
        damaged[offset % len(damaged)] = value
    with contextlib.suppress(SampleError):
        assert decode_image(bytes(damaged), max_pixels=10**6).mode == "RGB"


def test_threads_decode_alike():
    data = encode(rgb(), "JPEG")
    found = []
    threads = [threading.Thread(target=lambda: found.append(decode(data).tobytes())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
