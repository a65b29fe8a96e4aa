"""Real pictures, real streams and tiny networks for tests of the trainer."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from pydantic import TypeAdapter

from storage.config import ExperimentConfig, SourceConfig
from storage.images import decode_image
from storage.soft_labels import SoftLabels
from storage.sources import open_source
from storage.specs import RandomResizedCropView
from storage.streams.source_stream import SourceStream
from storage.views import draw_view_params, render, view_digest

CLASSES = ("blue", "green", "red")
MAX_PIXELS = 10**7
VIEW = RandomResizedCropView(size=(16, 16), scale=(0.3, 1.0), seed=7)
STUDENT = {
    "name": "test_vit",
    "kwargs": {"img_size": 16, "patch_size": 8, "depth": 2, "drop_path_rate": 0.2, "proj_drop_rate": 0.1},
}


def write_pictures(folder: Path, *, per_class: int = 16, size: int = 20) -> Path:
    """Write noisy pictures, each mostly of its class's colour."""
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            rng = np.random.default_rng([label, number])
            pixels = rng.integers(0, 160, size=(size, size + number % 3, 3))
            pixels[..., 2 - label] += 95
            buffer = io.BytesIO()
            Image.fromarray(pixels.astype(np.uint8)).save(buffer, format="PNG")
            (folder / name / f"{number:03d}.png").write_bytes(buffer.getvalue())
    return folder


def source_config(folder: Path, *, unit_size: int = 10) -> dict:
    return {"kind": "image_folder", "path": str(folder), "unit_size": unit_size}


def make_config(pictures: Path, folder: Path, *, evaluation: bool = False, **training) -> ExperimentConfig:
    """Return a config that trains a tiny network on pictures, every key of the training section open to change."""
    section = {
        "output": str(folder),
        "student": STUDENT,
        "targets": {"kind": "hard"},
        "epochs": 2,
        "batch_size": 8,
        "torch_threads": 1,
        "device": "cpu",
        "log_every_steps": 1,
        "shuffle_window_blocks": 3,
        **({"evaluation": {"source": source_config(pictures), "batch_size": 10}} if evaluation else {}),
        **training,
    }
    data = {"name": "test", "cache": str(folder / "no-cache"), "source": source_config(pictures), "training": section}
    if section["targets"]["kind"] == "live":
        data["teacher"] = {"kind": "timm", "name": "test_vit"}
    return ExperimentConfig.model_validate_json(json.dumps(data))


def source_stream(pictures: Path, **options) -> SourceStream:
    config = TypeAdapter(SourceConfig).validate_json(json.dumps(source_config(pictures)))
    return SourceStream(open_source(config), **{"block_rows": 4, **options})


class TeachingStream:
    """A source with soft labels made from its hard labels, and the digests of its views: what a label stream yields."""

    def __init__(self, source: SourceStream, *, num_classes: int = 3, num_views: int = 2, digests: bool = True) -> None:
        self.source = source
        self.num_classes = num_classes
        self.num_views = num_views
        self.digests = digests

    def block_rows(self, *, epoch):
        return self.source.block_rows(epoch=epoch)

    def identity(self):
        return hashlib.sha256(f"teaching {self.source.identity()} {self.num_classes}".encode()).hexdigest()

    def read(self, *, epoch, block_ids, rows):
        found = self.source.read(epoch=epoch % self.num_views, block_ids=block_ids, rows=rows)
        return replace(found, soft_labels=self.soft_labels(found.labels), view_digests=self._digests(found))

    def soft_labels(self, labels):
        """0.7 on the label, 0.2 on the next class, 0.1 left; two unused entries."""
        class_ids = np.stack([labels, (labels + 1) % self.num_classes, labels, labels], axis=1).astype(np.int32)
        probs = np.tile(np.array([0.7, 0.2, 0, 0], dtype=np.float32), (len(labels), 1))
        return SoftLabels(
            class_ids=class_ids, probs=probs, rest=np.full(len(labels), 0.1, dtype=np.float32), num_classes=self.num_classes
        )

    def _digests(self, rows):
        if not self.digests:
            return rows.view_digests
        digests = []
        for key, data, view_index in zip(rows.keys, rows.images, rows.view_indices.tolist(), strict=True):
            image = decode_image(data, max_pixels=MAX_PIXELS)
            params = draw_view_params(VIEW, key=key, view_index=view_index, width=image.width, height=image.height)
            digests.append(view_digest(render(image, params, interpolation=VIEW.interpolation)))
        return np.array(digests, dtype=np.uint64)
