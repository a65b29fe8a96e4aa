"""A label set, or some views of it, in the files of others; what they cannot hold is said, never dropped in silence."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any, Literal, assert_never

from storage.interchange.output import ExportFolder
from storage.interchange.parquet import ParquetExport, schema_of
from storage.interchange.rows import RowReader
from storage.interchange.tinyvit import TinyViTExport, TinyViTLosses
from storage.interchange.webdataset import WebDatasetExport
from storage.label_set import LabelSet
from storage.specs import CompactCodec, ImportedView

Layout = Literal["parquet", "webdataset", "tinyvit"]
_ALWAYS_LOST = (
    "digests of rendered views: nothing there can prove that a student sees the pixels the teacher saw",
    "reasons of samples without a label (decant cache show --dead-letters has them)",
    "checksums and provenance of the parts (the label set's id names them)",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportReport:
    """What was exported.

    Attributes:
        num_missing: samples of these views that have no label and so no row.
        files: bytes of every file by name.
        losses: of TinyViT's records; None for the other layouts.
        lost: what the layout could not hold, a sentence each.
    """

    url: str
    layout: Layout
    views: tuple[int, ...]
    num_rows: int
    num_missing: int
    files: dict[str, int]
    losses: TinyViTLosses | None
    lost: tuple[str, ...]


def export_labels(
    label_set: LabelSet,
    *,
    url: str,
    layout: Layout,
    views: Iterable[int] | None = None,
    force: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> ExportReport:
    """Write labels to a new folder, all of it or nothing. Holds a block of rows at a time, and a file where the store needs it.

    Args:
        url: local path or fsspec URL of the folder.
        views: views to export; None: all.
        force: replace an export that lies there.
        on_progress: called with rows written and rows in all.

    Raises:
        MismatchError: there is no such view, or the layout cannot hold these labels.
        CacheError: something else lies at `url`, or it cannot be written.
        CorruptError: stored labels are not what was committed.
    """
    reader = RowReader.of(label_set, views=views)
    total = reader.num_rows
    description = _describe(label_set, layout=layout, reader=reader)
    done = 0
    losses: TinyViTLosses | None = None
    with ExitStack() as stack:
        folder = ExportFolder(url, force=force)
        writer: ParquetExport | WebDatasetExport | TinyViTExport
        match layout:
            case "parquet":
                writer = ParquetExport(
                    folder=folder, schema=schema_of(description, num_classes=label_set.manifest.request.soft_labels.num_classes)
                )
            case "webdataset":
                writer = WebDatasetExport(folder=folder)
            case "tinyvit":
                writer = TinyViTExport(folder=folder, target=label_set.manifest.request.soft_labels)
                losses = writer.losses
            case _:
                assert_never(layout)
        stack.enter_context(folder)
        with writer:
            for view in reader.views:
                for num_rows in writer.write(reader, view=view):
                    done += num_rows
                    if on_progress is not None:
                        on_progress(done, total)
        lost = _lost(label_set, reader=reader, losses=losses)
        figures = {"num_rows": done, "num_missing": reader.num_missing, "lost": lost}
        if losses is not None:
            figures["losses"] = asdict(losses)
        files = folder.commit({**description, **figures})
    return ExportReport(
        url=folder.url,
        layout=layout,
        views=reader.views,
        num_rows=done,
        num_missing=reader.num_missing,
        files=files,
        losses=losses,
        lost=tuple(lost),
    )


def _describe(label_set: LabelSet, *, layout: Layout, reader: RowReader) -> dict[str, Any]:
    manifest = label_set.manifest
    return {
        "format": 1,
        "layout": layout,
        "label_set": manifest.id,
        "name": manifest.name,
        "views": list(reader.views),
        "num_classes": manifest.request.soft_labels.num_classes,
        "k": manifest.request.soft_labels.k,
        "classes": None if manifest.classes is None else list(manifest.classes),
        "request": manifest.request.to_json(),
    }


def _lost(label_set: LabelSet, *, reader: RowReader, losses: TinyViTLosses | None) -> list[str]:
    """Return what these labels lose, in sentences."""
    request = label_set.manifest.request
    lost = list(_ALWAYS_LOST)
    if reader.num_missing:
        what = "its reader stops with a KeyError at them" if losses is not None else "they are simply not there"
        lost.append(f"{reader.num_missing:,} samples of these views have no label, and so no row: {what}")
    if losses is None:
        return lost
    if isinstance(request.view, ImportedView):
        lost.append("augmentation seeds: the cache keeps only their digest, so every record says seed 0")
    else:
        lost.append(
            "views: TinyViT draws its own from a seed, which Decant's views do not have; every record says seed 0, so a student "
            "trained by TinyViT's code does not see the pixels that these labels are of"
        )
    lost += [
        "hard labels and class names: records hold none",
        f"the rest mass: TinyViT takes 1 - sum of float16 probabilities, here off by at most {losses.rest_error_max:.1e}",
        f"probabilities beyond float16: off by at most {losses.prob_error_max:.1e}, {losses.num_vanished_entries:,} became 0",
    ]
    if request.soft_labels.generation_temperature != 1:
        lost.append(
            f"the generation temperature, {request.soft_labels.generation_temperature:g}: TinyViT takes all labels to be at 1"
        )
    if losses.num_rows_above_one:
        lost.append(f"{losses.num_rows_above_one:,} rows sum to more than 1 in float16: TinyViT gives their rest a negative mass")
    if losses.num_filled_entries:
        why = "the compact codec keeps fewer" if isinstance(request.soft_labels.codec, CompactCodec) else "rows kept fewer"
        lost.append(
            f"which classes were kept: records always name {request.soft_labels.max_entries}; {why}, so "
            f"{losses.num_filled_entries:,} "
            "entries were added with their even share of the rest (the distribution is the same)"
        )
    return lost
