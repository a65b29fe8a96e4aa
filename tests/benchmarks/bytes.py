"""Bytes a row, everything included, and what they lose."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from storage import codecs
from storage.label_set import LabelSet
from storage.parts import PartRecord
from storage.soft_labels import SoftLabels, concatenate
from storage.specs import CodecSpec, CompactCodec, ExactCodec, SoftLabelsSpec
from storage.streams.label_stream import LabelStream
from tests.benchmarks.label_sets import LabelledNames, UnitLabels, folder_bytes, write_label_set
from tests.benchmarks.labels import Logits, copies, image_logits, rank, sample_table, text_logits
from tests.benchmarks.peers.base import Layout, LayoutRows, check
from tests.benchmarks.peers.parquet_lists import ParquetLists
from tests.benchmarks.peers.tinyvit import TinyViT
from tests.benchmarks.peers.webdataset_samples import WebDatasetPairs
from tests.benchmarks.report import Cell, Goal, Report, Table

_KS = (10, 100)
_PEERS: tuple[Layout, ...] = (TinyViT(), ParquetLists(), WebDatasetPairs())
_LIMITS = {("exact", 10): 33.0, ("exact", 100): 230.0, ("compact", 10): 20.0, ("compact", 100): 92.0}
_KL_LIMITS = {10: 1e-4, 100: 4e-4}
_KL_ROW_LIMIT = 1e-3
_QUALITY_LIMIT = 70.0
_QUICK_SAMPLES = 24
_NUM_COPIES = 8


_METHOD = """\
Every file of a cache that holds one label set, over its rows: tar with headers, keys as ImageNet has them, hard labels, view digests,
part record, request, manifest, parts table, class means. Labels: {origin}. Real rows: {num_rows:,} ({num_samples} samples x
{num_views} views, one unit), so what is stored once a unit or once a label set weighs more than in a large one. Unit of usual size:
the same logits {num_copies} times, with noise that keeps copies from compressing each other.

KL is KL(teacher || stored) over all classes with the rest spread evenly, mean over rows, in nats: truncation and codec together. Rows
whose rest was rounded away (or, in TinyViT's 1 - sum, below 0) have an infinite KL: they are counted, and left out of the mean. Codec
KL is what the codec adds to the exact top-K. Peers hold keys too, Parquet also the hard labels; each is read back by its own reader
and compared bit for bit before it counts.

Quality level: no K, compact codec with {levels} levels, the fewest at which the KL ({kl:.5f}) is no larger than that of top-100
float16 ({target_kl:.5f}).
"""


@dataclass(frozen=True, kw_only=True)
class _Stored:
    """One layout's bytes and losses.

    Attributes:
        kl: KL(teacher || stored, the rest spread evenly), mean over rows, nats.
        codec_kl: likewise of the exact top-k to what is stored; None where not measured.
        num_infinite: rows whose rest was rounded to 0 or below: their KL is infinite, and left out of the mean.
    """

    name: str
    bytes_per_row: float
    kl: float
    codec_kl: float | None = None
    codec_kl_max: float | None = None
    num_infinite: int = 0
    split: dict[str, float] | None = None


def run(*, quick: bool, folder: Path, say: Callable[[str], None]) -> Report:
    """Measure the sizes of all layouts on the same rows."""
    images, text = image_logits(), text_logits()
    if quick:
        images, text = images.first(_QUICK_SAMPLES), text.first(_QUICK_SAMPLES)
    measured = _measure_all(images, folder=folder / "images", say=say)
    by_name = {stored.name: stored for stored in measured}
    say("quality level")
    quality, levels = _quality(images, folder=folder / "quality", target_kl=by_name["decant exact, K=100"].kl)
    on_text = _measure_all(text, folder=folder / "text", say=say)
    large = copies(images, num_copies=_NUM_COPIES)
    in_large_unit = [stored for k in _KS for stored in _measure_ours(large, k=k, folder=folder / "large", say=say)]
    what = f"quality level {levels} in place of top-100 float16, at equal KL: bytes a row"
    goals = (
        *_goals(measured, where="real rows"),
        Goal(what=what, measured=quality.bytes_per_row, limit=_QUALITY_LIMIT, unit="B"),
        *_goals(in_large_unit, where="unit of usual size"),
    )
    return Report(
        name="bytes",
        title="Bytes a row",
        method=_METHOD.format(
            origin=images.origin,
            num_rows=len(images.values),
            num_samples=images.num_samples,
            num_views=images.num_views,
            num_copies=_NUM_COPIES,
            levels=levels,
            kl=quality.kl,
            target_kl=by_name["decant exact, K=100"].kl,
        ),
        tables=(
            _table("Images", [*measured, quality]),
            _split_table("What the bytes are for", [*measured, quality]),
            _split_table(
                f"The same in a unit of usual size: {large.num_samples:,} samples x {large.num_views} views", in_large_unit
            ),
            _table(f"A hard case without goals: {text.origin}", on_text),
            _split_table("What its bytes are for", on_text),
        ),
        goals=goals,
        quick=quick,
    )


def _goals(measured: list[_Stored], *, where: str) -> list[Goal]:
    by_name = {stored.name: stored for stored in measured}
    goals = []
    for (codec, k), limit in _LIMITS.items():
        stored = by_name[f"decant {codec}, K={k}"]
        what = f"{codec}, K={k}, {where}"
        goals.append(Goal(what=f"{what}: bytes a row", measured=stored.bytes_per_row, limit=limit, unit="B"))
        if codec == "compact" and stored.codec_kl is not None and stored.codec_kl_max is not None:
            goals.append(Goal(what=f"{what}: codec KL, mean", measured=stored.codec_kl, limit=_KL_LIMITS[k], unit="nat"))
            goals.append(Goal(what=f"{what}: codec KL, worst row", measured=stored.codec_kl_max, limit=_KL_ROW_LIMIT, unit="nat"))
    return goals


def _targets(*, num_classes: int, k: int) -> dict[str, SoftLabelsSpec]:
    choice: tuple[CodecSpec, ...] = (ExactCodec(), CompactCodec())
    return {f"decant {codec.kind}, K={k}": SoftLabelsSpec(num_classes=num_classes, k=k, codec=codec) for codec in choice}


def _measure_ours(logits: Logits, *, k: int, folder: Path, say: Callable[[str], None]) -> list[_Stored]:
    found = []
    for name, target in _targets(num_classes=logits.values.shape[1], k=k).items():
        say(f"{name}, {len(logits.values):,} rows over {logits.values.shape[1]:,} classes")
        found.append(_measure(logits, target=target, name=name, folder=folder / name))
    return found


def _measure_all(logits: Logits, *, folder: Path, say: Callable[[str], None]) -> list[_Stored]:
    found = []
    for k in _KS:
        found += _measure_ours(logits, k=k, folder=folder, say=say)
        rows = _layout_rows(logits, k=k)
        for layout in _PEERS:
            say(f"{layout.name}, K={k}")
            found.append(_measure_peer(layout, logits=logits, rows=rows, folder=folder / f"{type(layout).__name__}-{k}"))
    return found


def _measure(logits: Logits, *, target: SoftLabelsSpec, name: str, folder: Path) -> _Stored:
    """Write a label set of one unit and measure it."""
    views = [rank(logits.view(view), spec=target) for view in range(logits.num_views)]
    unit = UnitLabels(samples=sample_table(logits.view(0)), views=views)
    label_set = write_label_set(folder, target=target, units=[unit])
    files = folder_bytes(folder)
    stream = LabelStream(label_set, source=LabelledNames(label_set))
    kl: list[npt.NDArray[np.float64]] = []
    for view in range(logits.num_views):
        num_blocks = len(stream.block_rows(epoch=view))
        stored = concatenate([stream.labels_of(view=view, block_id=block_id).soft_labels for block_id in range(num_blocks)])
        kl.append(_kl_of_soft_labels(logits.view(view), stored))
    statistics = label_set.manifest.statistics
    num_rows = statistics.num_rows
    return _Stored(
        name=name,
        bytes_per_row=sum(files.values()) / num_rows,
        kl=float(np.concatenate(kl).mean()),
        codec_kl=statistics.codec_kl_sum / num_rows,
        codec_kl_max=statistics.codec_kl_max,
        split={purpose: count / num_rows for purpose, count in _split(label_set, files=files).items()},
    )


def _layout_rows(logits: Logits, *, k: int) -> LayoutRows:
    target = SoftLabelsSpec(num_classes=logits.values.shape[1], k=k, codec=ExactCodec())
    views = [rank(logits.view(view), spec=target).rows for view in range(logits.num_views)]
    return LayoutRows(samples=sample_table(logits.view(0)), views=views)


def _measure_peer(layout: Layout, *, logits: Logits, rows: LayoutRows, folder: Path) -> _Stored:
    k = rows.views[0].class_ids.shape[1]
    layout.write(folder, rows=rows)
    check(layout, folder=folder, rows=rows)
    columns = [torch.cat(column).numpy() for column in zip(*layout.read(folder, k=k), strict=True)]
    full = np.concatenate([logits.view(view) for view in range(logits.num_views)])
    kl = _kl(full, class_ids=columns[0], probs=columns[1], rest=columns[2])
    return _Stored(
        name=f"{layout.name}, K={k}",
        bytes_per_row=sum(folder_bytes(folder).values()) / rows.num_rows,
        kl=float(np.nanmean(kl)),
        num_infinite=int(np.isnan(kl).sum()),
    )


def _kl_of_soft_labels(logits: npt.NDArray[np.float32], stored: SoftLabels) -> npt.NDArray[np.float64]:
    return _kl(logits, class_ids=stored.class_ids, probs=stored.probs, rest=stored.rest)


def _kl(
    logits: npt.NDArray[np.float32],
    *,
    class_ids: npt.NDArray[np.integer],
    probs: npt.NDArray[np.float32],
    rest: npt.NDArray[np.float32],
) -> npt.NDArray[np.float64]:
    """Return float64 [rows], KL(softmax(logits) || stored) in nats, the rest spread evenly; NaN where no rest is left."""
    log_p = torch.log_softmax(torch.from_numpy(logits).double(), dim=1).numpy()
    kept = probs > 0
    num_others = logits.shape[1] - kept.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = rest.astype(np.float64) / np.maximum(num_others, 1)
        stored = np.repeat(spread[:, None], logits.shape[1], axis=1)
        rows = np.broadcast_to(np.arange(len(probs))[:, None], kept.shape)
        stored[rows[kept], class_ids[kept]] = probs[kept]
        stored /= stored.sum(axis=1, keepdims=True)
        kl = (np.exp(log_p) * (log_p - np.log(stored))).sum(axis=1)
    return np.where(spread > 0, kl, np.nan)


def _quality(logits: Logits, *, folder: Path, target_kl: float) -> tuple[_Stored, int]:
    """Return the label set of the fewest levels that lose no more than `target_kl`, and the levels."""

    def spec_of(levels: int) -> SoftLabelsSpec:
        return SoftLabelsSpec(num_classes=logits.values.shape[1], k=None, codec=CompactCodec(levels=levels))

    ranked = [rank(logits.view(view), spec=spec_of(255)).rows for view in range(logits.num_views)]

    def kl_of(levels: int) -> float:
        spec = spec_of(levels)
        kl = [
            _kl_of_soft_labels(logits.view(view), codecs.decode(codecs.encode(rows, spec=spec), num_rows=len(rows), spec=spec))
            for view, rows in enumerate(ranked)
        ]
        return float(np.concatenate(kl).mean())

    low, high = 1, 255
    while low < high:
        middle = (low + high) // 2
        if kl_of(middle) <= target_kl:
            high = middle
        else:
            low = middle + 1
    name = f"decant quality level {low}, no K"
    return _measure(logits, target=spec_of(low), name=name, folder=folder), low


def _split(label_set: LabelSet, *, files: dict[str, int]) -> dict[str, int]:
    """Return bytes by purpose; they add up to all files."""
    record_name = next(
        name for name in files if name.startswith("requests/") and name.endswith(".json") and "spec.json" not in name
    )
    record = PartRecord.from_bytes(label_set.cache.store.read(record_name), origin=record_name)
    payload = digests = headers = 0
    for extent in record.blocks:
        data = label_set.cache.read_extent(label_set.cache.tar_name(record), extent)
        header_bytes = int.from_bytes(data[8:12], "little")
        streams = {name: stored for name, _, stored in json.loads(data[12 : 12 + header_bytes])["streams"]}
        digests += streams["view_digests"]
        payload += sum(streams.values()) - streams["view_digests"]
        headers += len(data) - sum(streams.values())
    in_tar = payload + digests + headers + record.samples.num_bytes + record.class_means.num_bytes
    means_file = f"{label_set.folder}/{label_set.manifest.class_means_file}"
    once = {
        "ids, values, rest": payload,
        "view digests": digests,
        "block headers": headers,
        "keys, hard labels": record.samples.num_bytes,
        "tar": record.tar_bytes - in_tar,
        "part record": files[record_name],
        "class means": record.class_means.num_bytes + files[means_file],
    }
    return once | {"request, manifest, parts table": sum(files.values()) - sum(once.values())}


def _table(title: str, measured: list[_Stored]) -> Table:
    rows: list[tuple[Cell, ...]] = [(s.name, s.bytes_per_row, s.kl, s.codec_kl, s.codec_kl_max, s.num_infinite) for s in measured]
    return Table(
        title=title,
        columns=("layout", "bytes a row", "KL", "codec KL, mean", "codec KL, worst row", "rows of infinite KL"),
        rows=tuple(rows),
    )


def _split_table(title: str, measured: list[_Stored]) -> Table:
    ours = [stored for stored in measured if stored.split is not None]
    purposes = list(ours[0].split or {})
    rows = [(stored.name, *((stored.split or {})[purpose] for purpose in purposes), stored.bytes_per_row) for stored in ours]
    return Table(title=title, columns=("bytes a row", *purposes, "all"), rows=tuple(rows))
