"""`decant cache export` and `decant cache import-tinyvit`: what they did, in figures and in words."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Any, Self

from tqdm import tqdm

from storage.cache import Cache
from storage.config import SourceConfig
from storage.errors import ConfigError
from storage.interchange.export import Layout, export_labels
from storage.interchange.rows import parse_views
from storage.interchange.tinyvit_import import import_tinyvit
from storage.interchange.tinyvit_units import KeyStyle
from storage.label_set import LabelSet
from storage.specs import Size
from storage.upkeep.reading import hold_label_set


def export_label_set(
    url: str,
    *,
    name: str,
    target: str,
    layout: Layout,
    views: str | None = None,
    force: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Export a label set.

    Args:
        url: the cache.
        name: name or id of the label set.
        target: local path or fsspec URL of the folder to make.
        views: such as "0-3,7"; None: all.
        force: replace an export that lies there.
    """
    label_set = LabelSet.open(Cache.at(url), name_or_id=name)
    with (
        hold_label_set(label_set),
        tqdm(unit="row", unit_scale=True, desc="export", file=sys.stderr, disable=not _shown(progress)) as bar,
    ):

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        report = export_labels(
            label_set,
            url=target,
            layout=layout,
            views=None if views is None else parse_views(views),
            force=force,
            on_progress=advance,
        )
    num_bytes = sum(report.files.values())
    lines = [
        (
            f"{report.url}: {layout}, {report.num_rows:,} rows of {len(report.views):,} views in {len(report.files):,} files, "
            f"{num_bytes:,} bytes, {num_bytes / max(report.num_rows, 1):.1f} a row"
        ),
        "what these files do not hold (also in export.json):",
        *(f"  {sentence}" for sentence in report.lost),
    ]
    return {**asdict(report), "label_set": label_set.manifest.id, "num_bytes": num_bytes, "text": "\n".join(lines)}


def import_tinyvit_folder(
    folder: str,
    cache: str,
    *,
    name: str,
    teacher: str,
    num_classes: int,
    image_size: str,
    epochs: str | None = None,
    source: SourceConfig | None = None,
    keys: KeyStyle = "name",
    unit_size: int = 4000,
    dead_letter_limit: float = 0.01,
    progress: bool = True,
) -> dict[str, Any]:
    """Import TinyViT's logits folder; arguments as in `import_tinyvit`.

    Args:
        image_size: such as "224", or height x width as in "224x192".
        epochs: such as "0-89"; None: all.

    Raises:
        ConfigError: an argument that cannot be meant.
    """
    if unit_size < 1 or not 0 <= dead_letter_limit <= 1:
        raise ConfigError(
            f"units of {unit_size} samples with a dead letter limit of {dead_letter_limit}: give at least 1 sample, and a limit "
            "in [0, 1]"
        )
    with _Bars(shown=_shown(progress)) as bars:
        label_set, report = import_tinyvit(
            folder,
            Cache.at(cache),
            name=name,
            teacher=teacher,
            num_classes=num_classes,
            image_size=parse_size(image_size),
            epochs=None if epochs is None else parse_views(epochs),
            source=source,
            keys=keys,
            unit_size=unit_size,
            dead_letter_limit=dead_letter_limit,
            on_progress=bars.advance,
        )
    manifest = label_set.manifest
    lines = [
        (
            f"label set {manifest.id}, name {name!r}: {report.num_rows:,} rows of {manifest.num_samples:,} samples, "
            f"{manifest.num_views:,} views"
        ),
        f"  parts          {report.num_parts:,}, of which {report.num_reused_parts:,} were there already",
        f"  dead letters   {report.num_dead_letters:,} (decant cache show --dead-letters says why)",
        f"  clipped        {report.num_clipped:,} rows sum to more than 1 by the rounding of float16; their rest is 0",
        f"  doubled        {report.num_doubled:,} records name a sample again; the first one counts",
        f"  unused         {report.num_unused:,} records are of samples that are not in the source",
        "  views          cannot be rendered here: TinyViT stores seeds of its own code. To train on these labels with one fixed",
        "                 view of each picture, name the label set and say views: {kind: evaluation} in the config",
    ]
    return {**asdict(report), "label_set": manifest.id, "name": name, "text": "\n".join(lines)}


def parse_size(text: str) -> Size:
    """Return height and width of a text such as "224" or "224x192".

    Raises:
        ConfigError: it is no such text.
    """
    height, cross, width = text.partition("x")
    edges = (height, width if cross else height)
    if not all(edge.isdecimal() and 1 <= int(edge) <= 16384 for edge in edges):
        raise ConfigError(f"image size {text!r} is not understood; give pixels such as 224, or height x width such as 224x192")
    return (int(edges[0]), int(edges[1]))


def _shown(progress: bool) -> bool:
    return progress and sys.stderr.isatty()


class _Bars:
    """One progress bar after the other, one for each kind of work."""

    def __init__(self, *, shown: bool) -> None:
        self._shown = shown
        self._bar: Any = None
        self._what = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, what: str, done: int, total: int) -> None:
        """Show how much of some work is done."""
        if what != self._what:
            self.__exit__()
            self._what, self._bar = what, tqdm(desc=what, file=sys.stderr, unit_scale=True, disable=not self._shown)
        self._bar.total = total
        self._bar.update(done - self._bar.n)
