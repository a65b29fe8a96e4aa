"""The same labels in Decant and in other layouts, each damaged in the same ways and read by its own reader."""

from __future__ import annotations

import logging
import random
import resource
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from storage.cache import Cache
from storage.label_set import LabelSet
from storage.specs import ExactCodec, SoftLabelsSpec
from storage.streams.label_stream import LabelStream
from tests.benchmarks.label_sets import LabelledNames, UnitLabels, write_label_set
from tests.benchmarks.labels import image_logits, rank, sample_table
from tests.benchmarks.peers.base import LabelTensors, Layout, LayoutRows, tensors
from tests.benchmarks.peers.parquet_lists import ParquetLists
from tests.benchmarks.peers.tinyvit import TinyViT
from tests.benchmarks.peers.webdataset_samples import WebDatasetPairs
from tests.reliability.damage import BYTES, TARS, Victims, make_fault

K = 10
_MEMORY_BYTES = 16 << 30
"""Of address space: a reader that believes a damaged length fails instead of taking the machine."""

KINDS = (*BYTES, *TARS, "deletion", "swap")


class ParquetChecked(ParquetLists):
    """The same with a CRC32 a page, checked when read; off by default in every library."""

    name = "Parquet, zstd list columns, page checksums"

    def write(self, folder: Path, *, rows: LayoutRows) -> None:
        """Write as always, then once more with checksums."""
        super().write(folder, rows=rows)
        path = folder / "labels.parquet"
        with pq.ParquetFile(path) as file:
            groups = [file.read_row_group(group) for group in range(file.num_row_groups)]
        with pq.ParquetWriter(path, groups[0].schema, compression="zstd", write_page_checksum=True) as writer:
            for group in groups:
                writer.write_table(group)

    def read(self, folder: Path, *, k: int) -> Iterator[LabelTensors]:
        """Yield a batch a row group."""
        columns = ["class_ids", "probs", "rest"]
        with pq.ParquetFile(folder / "labels.parquet", page_checksum_verification=True) as file:
            for group in range(file.num_row_groups):
                ids, probs, rest = (
                    file.read_row_group(group, columns=columns, use_threads=False).column(name).combine_chunks()
                    for name in columns
                )
                yield tensors(
                    ids.flatten().to_numpy().reshape(-1, k),
                    probs.flatten().to_numpy().reshape(-1, k),
                    rest.to_numpy(zero_copy_only=False),
                )


class Decant:
    """A cache of one label set, opened by name and read block by block; pictures play no part here."""

    name = "Decant"
    stores_rest = True

    def write(self, folder: Path, *, rows: LayoutRows) -> None:
        """Write the rows as two units, so that there are files to be mixed up."""
        num_samples = len(rows.samples.keys)
        target = SoftLabelsSpec(num_classes=1000, k=rows.views[0].class_ids.shape[1], codec=ExactCodec())
        logits = image_logits()
        halves = [slice(0, num_samples // 2), slice(num_samples // 2, num_samples)]
        units = []
        for number, half in enumerate(halves):
            part = [logits.view(view)[half] for view in range(len(rows.views))]
            views = [rank(values, spec=target) for values in part]
            units.append(UnitLabels(samples=sample_table(part[0], unit=number), views=views))
        write_label_set(folder, target=target, units=units)

    def read(self, folder: Path, *, k: int) -> Iterator[LabelTensors]:
        """Yield a batch a block."""
        label_set = LabelSet.open(Cache.at(str(folder)), name_or_id="benchmark")
        label_set.class_means()
        stream = LabelStream(label_set, source=LabelledNames(label_set))
        for view in range(label_set.manifest.num_views):
            for block_id in range(len(stream.block_rows(epoch=view))):
                rows = stream.labels_of(view=view, block_id=block_id).soft_labels
                yield tensors(rows.class_ids, rows.probs, rows.rest)


LAYOUTS: dict[str, Layout] = {
    layout.name: layout for layout in (Decant(), WebDatasetPairs(), ParquetLists(), ParquetChecked(), TinyViT())
}


def some_rows(*, num_samples: int) -> LayoutRows:
    """Return the labels of two views of some pictures."""
    logits = image_logits()
    target = SoftLabelsSpec(num_classes=logits.values.shape[1], k=K, codec=ExactCodec())
    views = [rank(logits.view(view)[:num_samples], spec=target).rows for view in range(2)]
    return LayoutRows(samples=sample_table(logits.view(0)[:num_samples]), views=views)


def _read_all(layout: Layout, folder: Path) -> bytes:
    """Return all rows as bytes, however they were cut into batches."""
    columns = zip(*layout.read(folder, k=K), strict=True)
    return b"".join(np.concatenate([np.ascontiguousarray(batch.numpy()) for batch in column]).tobytes() for column in columns)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """One layout's files, as they were written, and what its reader says of them."""

    layout: str
    folder: str
    files: dict[str, bytes]
    truth: bytes

    @classmethod
    def make(cls, layout: str, *, folder: Path, rows: LayoutRows) -> Bench:
        """Write a layout and read it."""
        LAYOUTS[layout].write(folder, rows=rows)
        files = {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
        return cls(layout=layout, folder=str(folder), files=files, truth=_read_all(LAYOUTS[layout], folder))

    def read_faulty(self, seed: int) -> tuple[str, str] | None:
        """Return (kind of fault, "silent", "detected" or "harmless") of the fault of a seed; None where it changes nothing."""
        rng = random.Random(seed)
        kinds = {name: [other for other in self.files if other != name and _alike(name, other)] for name in self.files}
        victims = Victims(files=self.files, peers={name: tuple(peers) for name, peers in kinds.items()}, older={})
        # By bytes: what is larger is hit more often.
        name = rng.choices(list(self.files), weights=[len(data) for data in self.files.values()])[0]
        possible = [kind for kind in KINDS if (kind not in TARS or name.endswith(".tar")) and (kind != "swap" or kinds[name])]
        fault = make_fault(name, kind=rng.choice(possible), victims=victims, rng=rng)
        if fault is None:
            return None
        folder = Path(self.folder)
        try:
            for touched, data in fault.after.items():
                if data is None:
                    (folder / touched).unlink()
                else:
                    (folder / touched).write_bytes(data)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    state = "harmless" if _read_all(LAYOUTS[self.layout], folder) == self.truth else "silent"
            except Exception:  # whatever a reader raises is what a user sees
                state = "detected"
        finally:
            for touched in fault.after:
                (folder / touched).write_bytes(self.files[touched])
        return fault.kind, state


def _alike(name: str, other: str) -> bool:
    return name.rsplit(".", 1)[-1] == other.rsplit(".", 1)[-1] and name.count("/") == other.count("/")


_bench: Bench | None = None


def _start(bench: Bench) -> None:
    global _bench
    _bench = bench
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))


def _one(seed: int) -> tuple[str, str] | None:
    assert _bench is not None
    return _bench.read_faulty(seed)


def count_outcomes(bench: Bench, *, num_faults: int) -> Counter[tuple[str, str]]:
    """Return how many faults of which kind came to what; in a process of its own, since readers written in C may die of them."""
    found: Counter[tuple[str, str]] = Counter()
    seed = 0
    while found.total() < num_faults:
        with ProcessPoolExecutor(1, get_context("spawn"), _start, (bench,)) as pool:
            while found.total() < num_faults:
                seed += 1
                try:
                    outcome = pool.submit(_one, seed).result(timeout=300)
                except BrokenProcessPool:
                    found["crash of the reader", "detected"] += 1
                    break
                if outcome is not None:
                    found[outcome] += 1
        for name, data in bench.files.items():
            (Path(bench.folder) / name).write_bytes(data)
    return found
