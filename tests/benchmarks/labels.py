"""Labels to measure on: logits of real teachers where they lie beside the repository, made ones elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from pipelines.extraction import ExtractedBatch, extract
from storage.samples import SampleTable
from storage.specs import SoftLabelsSpec

_REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "real_labels"
_NOISE = 1.0
"""Deviation of what is added to the logits of a copy, a third of their own. With much less, rows of a block repeat each other and
compress to half their size; with this, blocks of copies are as large as blocks of as many real rows, within 1 %."""

_UNIT_PICTURES = 60_000

PEAKED_CLASSES = 151_936
PEAKED_ORIGIN = (
    "MADE logits over 151,936 classes, as peaked as a large language model's: word frequencies in two regimes (exponents 1 and 2, "
    "from rank 8,000 on), 2.5 nats of context, sharpened 1.8 times; token ids ascend with rank up to 0.7 nats, as merges do"
)
"""Ferrer i Cancho and Sole, Two regimes in the frequency of words, 2001. No such model's labels are here to measure on."""


@dataclass(frozen=True, kw_only=True)
class Logits:
    """A teacher's logits.

    Attributes:
        values: float16 [samples * num_views, classes]; the views of a sample are consecutive rows.
        origin: where they are from, for the report.
        is_real: whether a teacher gave them; sizes of made ones mislead.
    """

    values: npt.NDArray[np.float16]
    num_views: int
    origin: str
    is_real: bool

    @property
    def num_samples(self) -> int:
        """Samples."""
        return len(self.values) // self.num_views

    def view(self, index: int) -> npt.NDArray[np.float32]:
        """Return float32 [samples, classes], the logits of one view of every sample."""
        return self.values[index :: self.num_views].astype(np.float32)

    def first(self, num_samples: int) -> Logits:
        """Return the logits of the first samples only."""
        values = self.values[: num_samples * self.num_views]
        return Logits(values=values, num_views=self.num_views, origin=self.origin, is_real=self.is_real)


def image_logits() -> Logits:
    """Return those of an ImageNet classifier on 500 pictures, 8 views each."""
    origin = "a MobileNetV1-0.75 ImageNet classifier on 500 pictures x 8 random-resized-crop views (1,000 classes)"
    return _load("image_1000_classes.npz", num_views=8, origin=origin) or _make(num_samples=500, num_views=8, num_classes=1000)


def text_logits() -> Logits:
    """Return those of a small language model on 512 tokens: flat rows over a large vocabulary, a hard case."""
    origin = "a small causal language model on 512 tokens (8,192 classes)"
    return _load("text_8192_tokens.npz", num_views=1, origin=origin) or _make(num_samples=512, num_views=1, num_classes=8192)


def _load(name: str, *, num_views: int, origin: str) -> Logits | None:
    path = _REAL / name
    if not path.exists():
        return None
    with np.load(path) as file:
        return Logits(values=file["logits"], num_views=num_views, origin=f"real: {origin}", is_real=True)


def _make(*, num_samples: int, num_views: int, num_classes: int) -> Logits:
    """Return logits of a linear teacher on Gaussian features, about as sure of itself as a real one."""
    rng = np.random.default_rng(num_classes)
    embeddings = rng.standard_normal((64, num_classes), dtype=np.float32)
    features = np.repeat(rng.standard_normal((num_samples, 64), dtype=np.float32), num_views, axis=0)
    features += 0.5 * rng.standard_normal(features.shape, dtype=np.float32)
    values = (0.55 * features @ embeddings).astype(np.float16)
    return Logits(
        values=values, num_views=num_views, origin="MADE labels (the real ones are not here): Gaussian classes", is_real=False
    )


def peaked_logits(num_rows: int, *, step: int) -> Iterator[npt.NDArray[np.float32]]:
    """Yield float32 [at most `step`, PEAKED_CLASSES], logits as `PEAKED_ORIGIN` says."""
    rng = np.random.default_rng(151_936)
    ids = np.arange(PEAKED_CLASSES)
    ranks = np.argsort(np.argsort(np.log(ids + 3) + 0.7 * rng.standard_normal(PEAKED_CLASSES)))
    frequencies = -np.log(ranks + 3) - np.maximum(0, np.log((ranks + 1) / 8000))
    for start in range(0, num_rows, step):
        context = rng.standard_normal((min(step, num_rows - start), PEAKED_CLASSES), dtype=np.float32)
        yield (1.8 * (frequencies.astype(np.float32) + np.float32(2.5) * context)).astype(np.float32)


def rank(logits: npt.NDArray[np.float32], *, spec: SoftLabelsSpec) -> ExtractedBatch:
    """Return what a teacher step keeps of logits [rows, classes], by the pipeline's own code."""
    return extract(torch.from_numpy(logits), spec=spec, alive=np.ones(len(logits), dtype=np.bool_))


def copy_of(logits: Logits, *, index: int) -> Logits:
    """Return the logits with noise, other noise for every index."""
    rng = np.random.default_rng([2207, 10666, index])
    noise = rng.standard_normal(logits.values.shape, dtype=np.float32)
    noise *= _NOISE
    noise += logits.values
    return Logits(values=noise.astype(np.float16), num_views=logits.num_views, origin=logits.origin, is_real=False)


def copies(logits: Logits, *, num_copies: int, first: int = 0) -> Logits:
    """Return the copies from `first` on, one after the other, as more samples."""
    values = np.concatenate([copy_of(logits, index=first + index).values for index in range(num_copies)])
    return Logits(values=values, num_views=logits.num_views, origin=logits.origin, is_real=False)


def sample_table(logits: npt.NDArray[np.float32], *, unit: int = 0) -> SampleTable:
    """Return keys as ImageNet's training pictures have them, in shuffled order as in shards, and hard labels.

    Args:
        logits: [samples, classes]; the most probable class stands for the hard label.
        unit: which unit; the keys of others are others.
    """
    num_classes = logits.shape[1]
    # ImageNet's synset numbers are irregular, and a picture's number says nothing of the next one's.
    synsets = np.sort(np.random.default_rng(1440764).choice(np.arange(1440764, 15075142), size=num_classes, replace=False))
    pictures = np.random.default_rng([1440764, unit]).permutation(_UNIT_PICTURES)[: len(logits)]
    labels = logits.argmax(axis=1).astype(np.int64)
    keys = [
        f"n{synset:08d}/n{synset:08d}_{unit * _UNIT_PICTURES + picture}.JPEG"
        for synset, picture in zip(synsets[labels].tolist(), pictures.tolist(), strict=True)
    ]
    return SampleTable(keys=tuple(keys), labels=labels)
