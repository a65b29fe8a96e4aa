"""TinyViT's label files: fixed-width records and their keys as text, one folder an epoch of views.

A record is a seed (int32), K class ids (int16) and K probabilities (float16): 4 + 4K bytes; line i of the key file names record i.
A sample is read by a seek and a read, its place found in a dictionary of all keys that each epoch loads anew.

Wu et al., TinyViT: Fast Pretraining Distillation for Small Vision Transformers, https://arxiv.org/abs/2207.10666
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.benchmarks.peers.base import BATCH_ROWS, LabelTensors, LayoutRows, tensors


def _epoch(folder: Path, view: int, *, k: int) -> Path:
    return folder / f"logits_top{k}_epoch{view}"


def _record(k: int) -> np.dtype[np.void]:
    return np.dtype([("seed", "<i4"), ("class_ids", "<i2", (k,)), ("probs", "<f2", (k,))])


class TinyViT:
    """The record, read as TinyViT reads it: one sample after the other."""

    name = "TinyViT record, seek and read"
    stores_rest = False

    def write(self, folder: Path, *, rows: LayoutRows) -> None:
        """Write one values file and one key file a view."""
        for view in range(len(rows.views)):
            ids = rows.class_ids(view)
            epoch = _epoch(folder, view, k=ids.shape[1])
            epoch.mkdir(parents=True)
            records = np.zeros(len(ids), dtype=_record(ids.shape[1]))
            records["seed"] = np.random.default_rng(view).integers(0, 2**31, size=len(ids))
            records["class_ids"] = ids.view(np.int16)
            records["probs"] = rows.probs(view)
            (epoch / "rank0-values.bin").write_bytes(records.tobytes())
            (epoch / "rank0-keys.txt").write_text("".join(f"{key}\n" for key in rows.samples.keys))

    def read(self, folder: Path, *, k: int) -> Iterator[LabelTensors]:
        """Yield batches; a sample's bytes become its own arrays, which are then stacked."""
        item_bytes = 4 + 4 * k
        for epoch in sorted(folder.glob(f"logits_top{k}_epoch*"), key=lambda path: int(path.name.rpartition("epoch")[2])):
            places = {key: line for line, key in enumerate((epoch / "rank0-keys.txt").read_text().splitlines())}
            keys = list(places)
            with (epoch / "rank0-values.bin").open("rb") as file:
                for first in range(0, len(keys), BATCH_ROWS):
                    ids, probs = [], []
                    for key in keys[first : first + BATCH_ROWS]:
                        file.seek(item_bytes * places[key])
                        item = file.read(item_bytes)
                        ids.append(np.frombuffer(item, dtype=np.int16, count=k, offset=4))
                        probs.append(np.frombuffer(item, dtype=np.float16, count=k, offset=4 + 2 * k))
                    yield tensors(np.stack(ids), np.stack(probs), None)


class TinyViTMapped(TinyViT):
    """The same files through a memory map, a batch at a time: not how TinyViT reads, but the fastest way to."""

    name = "TinyViT record, memory map"

    def read(self, folder: Path, *, k: int) -> Iterator[LabelTensors]:
        """Yield batches; the keys are not looked at."""
        for epoch in sorted(folder.glob(f"logits_top{k}_epoch*"), key=lambda path: int(path.name.rpartition("epoch")[2])):
            records = np.memmap(epoch / "rank0-values.bin", dtype=_record(k), mode="r")
            for first in range(0, len(records), BATCH_ROWS):
                batch = records[first : first + BATCH_ROWS]
                yield tensors(batch["class_ids"], batch["probs"], None)
