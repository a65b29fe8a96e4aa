"""WebDataset with one sample a label: the usual way to put arrays beside pictures. One tar a view."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import webdataset
from webdataset.tariterators import group_by_keys, tar_file_expander

from tests.benchmarks.peers.base import BATCH_ROWS, LabelTensors, LayoutRows, tensors


def _samples(folder: Path, *stages: Callable[[Iterator[Any]], Iterator[Any]]) -> Iterator[Any]:
    """Yield what webdataset's stages make of the samples of all tars: what `WebDataset` does, but with the files closed."""

    def opened() -> Iterator[dict[str, Any]]:
        for path in sorted(folder.glob("*.tar")):
            with path.open("rb") as stream:
                yield {"url": str(path), "stream": stream}

    return iter(webdataset.DataPipeline(opened, tar_file_expander, group_by_keys, *stages))


def _key(key: str) -> str:
    return key.removesuffix(".JPEG")


def _write(folder: Path, rows: LayoutRows, members: Callable[[npt.NDArray[Any], npt.NDArray[Any]], dict[str, bytes]]) -> None:
    """Write one tar a view; probabilities get the rest as their last value."""
    folder.mkdir(parents=True)
    for view in range(len(rows.views)):
        ids = rows.class_ids(view)
        probs = np.concatenate([rows.probs(view), rows.rest(view)[:, None]], axis=1)
        # mtime 0: other times need longer headers.
        with webdataset.TarWriter(str(folder / f"view-{view:05d}.tar"), mtime=0) as writer:
            for key, row_ids, row_probs in zip(rows.samples.keys, ids, probs, strict=True):
                writer.write({"__key__": _key(key), **members(row_ids, row_probs)})


def _npy(array: npt.NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


class WebDatasetPairs:
    """Two .npy members a sample."""

    name = "WebDataset, .npy pair a sample"
    stores_rest = True

    def write(self, folder: Path, *, rows: LayoutRows) -> None:
        """Write ids and probabilities as members of their own."""
        _write(folder, rows, lambda ids, probs: {"ids.npy": _npy(ids), "probs.npy": _npy(probs)})

    def read(self, folder: Path, *, k: int) -> Iterator[LabelTensors]:
        """Yield batches through webdataset's own pipeline."""
        batched = webdataset.batched(BATCH_ROWS, collation_fn=_stack)
        for ids, probs in _samples(folder, webdataset.decode(), webdataset.to_tuple("ids.npy", "probs.npy"), batched):
            yield tensors(ids, probs[:, :k], probs[:, k])


class WebDatasetRaw:
    """One member of raw bytes a sample: ids, then probabilities."""

    name = "WebDataset, raw member a sample"
    stores_rest = True

    def write(self, folder: Path, *, rows: LayoutRows) -> None:
        """Write one member a sample."""
        _write(folder, rows, lambda ids, probs: {"labels": ids.tobytes() + probs.tobytes()})

    def read(self, folder: Path, *, k: int) -> Iterator[LabelTensors]:
        """Yield batches; the bytes of a batch are joined before they become an array."""
        record = np.dtype([("class_ids", "<u2", (k,)), ("probs", "<f2", (k + 1,))])
        for joined in _samples(folder, webdataset.to_tuple("labels"), webdataset.batched(BATCH_ROWS, collation_fn=_join)):
            batch = np.frombuffer(joined, dtype=record)
            yield tensors(batch["class_ids"], batch["probs"][:, :k], batch["probs"][:, k])


def _stack(samples: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    ids, probs = zip(*samples, strict=True)
    return np.stack(ids), np.stack(probs)


def _join(samples: list[tuple[bytes]]) -> bytes:
    return b"".join(data for (data,) in samples)
