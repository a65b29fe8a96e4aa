"""Pictures to label and to train on: gradients and noise, as costly to decode as photographs of their size."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

_QUALITY = 90


def jpeg(number: int, *, width: int, height: int) -> bytes:
    """Return one picture; another number is another picture."""
    rng = np.random.default_rng([375, number])
    coarse = rng.integers(0, 256, size=(4, 5, 3), dtype=np.uint8)
    shapes = rng.integers(0, 256, size=(max(2, height // 12), max(2, width // 12), 3), dtype=np.uint8)
    size = (width, height)
    smooth = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
    edges = np.asarray(Image.fromarray(shapes).resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
    grain = rng.standard_normal((height, width, 1), dtype=np.float32) * 6
    pixels = np.clip(0.7 * smooth + 0.3 * edges + grain, 0, 255).astype(np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=_QUALITY)
    return buffer.getvalue()


def write_folder(folder: Path, *, num_pictures: int, num_classes: int, width: int = 500, height: int = 375) -> list[Path]:
    """Write pictures into class folders and return their paths in the order of their keys."""
    for number in range(num_pictures):
        place = folder / f"class{number % num_classes:04d}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:06d}.jpg").write_bytes(jpeg(number, width=width, height=height))
    return sorted(folder.glob("*/*.jpg"))


def write_tars(folder: Path, *, num_tars: int, pictures_per_tar: int, size: int) -> None:
    """Write WebDataset tars of small square pictures, one a source unit."""
    folder.mkdir(parents=True, exist_ok=True)
    few = [jpeg(number, width=size, height=size) for number in range(64)]
    for index in range(num_tars):
        with tarfile.open(folder / f"unit-{index:06d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for name, data in _members(index, few=few, count=pictures_per_tar):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, BytesIO(data))


def _members(index: int, *, few: list[bytes], count: int) -> Iterator[tuple[str, bytes]]:
    for number in range(count):
        yield f"{index:06d}_{number:05d}.jpg", few[(index + number) % len(few)]
        yield f"{index:06d}_{number:05d}.cls", str(number % 10).encode()
