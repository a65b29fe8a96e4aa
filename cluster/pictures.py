"""Real pictures of Fashion-MNIST's size, as WebDataset tars."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import webdataset
from PIL import Image

from tests.trials.fashion_mnist import DATA, read_idx

PIXELS = 28
_UNITS = 12
"""Tars, so that hosts have several each whatever the number of pictures."""


def _read() -> tuple[str, npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Return what the pictures are, the pictures and their classes."""
    if DATA.exists():
        images, labels = (read_idx(DATA / f"train-{name}-ubyte.gz") for name in ("images-idx3", "labels-idx1"))
        return "Fashion-MNIST", images, labels
    from sklearn.datasets import load_digits

    digits = load_digits()
    small = np.round(digits.images * (255 / 16)).astype(np.uint8)
    images = np.stack([np.asarray(Image.fromarray(one).resize((PIXELS, PIXELS), Image.Resampling.BICUBIC)) for one in small])
    return "scikit-learn's digits, enlarged", images, digits.target.astype(np.uint8)


def write_pictures(folder: Path, *, num_pictures: int) -> str:
    """Write the first pictures, or all there are, as tars of PNG and class, and return what they are; written once."""
    what, images, labels = _read()
    num_pictures = min(num_pictures, len(images))
    done = folder / f"complete-{num_pictures}"
    if done.exists():
        return what
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for unit, indices in enumerate(np.array_split(np.arange(num_pictures), min(_UNITS, num_pictures))):
        with (folder / f"pictures-{unit:03d}.tar").open("wb") as file:
            writer = webdataset.TarWriter(file, mtime=0)
            for index in indices:
                buffer = io.BytesIO()
                Image.fromarray(images[index]).save(buffer, format="PNG")
                writer.write({"__key__": f"{index:05d}", "png": buffer.getvalue(), "cls": str(labels[index]).encode()})
            writer.close()
    done.touch()
    return what
