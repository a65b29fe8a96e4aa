"""Small caches over real pictures' bytes, whose every row is known: a function of request, key and view."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import fsspec
import numpy as np
import xxhash

from storage import codecs
from storage.block_fields import DIGEST_STRIDE
from storage.cache import Cache
from storage.codecs import RankedLabels
from storage.config import ImageFolderConfig
from storage.label_set import LabelSet, UsedPart, commit_label_set, label_set_id
from storage.parts import DeadLetter, PartRecord, PartStatistics, PartWriter
from storage.samples import SampleTable
from storage.sources import IndexedUnit, index_source, open_source
from storage.sources.base import Source
from storage.specs import (
    CompactCodec,
    EvaluationView,
    Normalization,
    PartSpec,
    RandomResizedCropView,
    RequestSpec,
    SoftLabelsSpec,
    TeacherSpec,
)
from tests.storage.rows import dense_selection, make_rows

NUM_CLASSES = 10
CLASSES = ("ant", "bee", "cat")


def write_pictures(folder, *, num=17, prefix=""):
    """Files in class folders, named and filled by their number; returns the config of their source, units of 7."""
    for number in range(num):
        path = folder / CLASSES[number * len(CLASSES) // num] / f"{prefix}{number:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"picture %d" % number)
    return ImageFolderConfig(kind="image_folder", path=str(folder), unit_size=7)


def make_request(*, codec=None, k=3, num_views=2, seed=0, **target):
    """The request of a random view (an evaluation view where there is one view) and some target."""
    return RequestSpec(
        teacher=TeacherSpec(
            kind="timm",
            architecture="tiny",
            weights_sha256="5e" * 32,
            num_classes=NUM_CLASSES,
            normalization=Normalization(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
            precision="fp32",
        ),
        view=RandomResizedCropView(size=(8, 8), seed=seed) if num_views > 1 else EvaluationView(size=(8, 8), resize_size=(9, 9)),
        target=SoftLabelsSpec(num_classes=NUM_CLASSES, k=k, codec=codec or CompactCodec(), **target),
    )


def row_seed(request, key, view):
    return xxhash.xxh3_64_intdigest(f"{request.fingerprint()} {key} {view}".encode())


@functools.lru_cache(maxsize=4096)
def teacher_row(request, key, view):
    """What the teacher says of a view: one row."""
    rng = np.random.default_rng(row_seed(request, key, view))
    return make_rows(rng, num_rows=1, num_classes=NUM_CLASSES, entries=request.soft_labels.max_entries, shape="peaked")


@functools.lru_cache(maxsize=4096)
def stored_row(request, key, view):
    """What a reader must get of it, as a tuple of NUM_CLASSES probabilities with the rest spread evenly."""
    spec = request.soft_labels
    decoded = codecs.decode(codecs.encode(teacher_row(request, key, view), spec=spec), num_rows=1, spec=spec)
    return tuple(decoded.densify()[0].tolist())


def stored_digest(request, key, view, *, offset):
    """The view digest of a sample at an offset in its block."""
    return (row_seed(request, key, view) | 1) if offset % DIGEST_STRIDE == 0 else 0


def stack(rows):
    return RankedLabels(
        class_ids=np.concatenate([row.class_ids for row in rows]),
        log_probs=np.concatenate([row.log_probs for row in rows]),
        log_rest=np.concatenate([row.log_rest for row in rows]),
    )


@dataclass(frozen=True, kw_only=True)
class Labeller:
    """Makes parts by hand.

    Attributes:
        dead: (key, view) of dead letters; view None: the sample could not be read.
        rows_per_block: samples of one block.
        seen_as: request whose rows have the same digests of views; None: no other.
    """

    cache: Cache
    source: Source
    request: RequestSpec
    dead: frozenset = frozenset()
    rows_per_block: int = 4
    seen_as: RequestSpec | None = None
    provenance: dict = field(default_factory=lambda: {"made": "by hand"})

    def make_part(self, indexed: IndexedUnit, *, first_view: int, num_views: int) -> tuple[bytes, PartRecord]:
        samples = list(self.source.read(indexed.unit))
        table = SampleTable(keys=tuple(s.key for s in samples), labels=np.array([s.label for s in samples], dtype=np.int64))
        part = PartSpec(
            request=self.request.fingerprint(), unit_digest=indexed.digest, first_view=first_view, num_views=num_views
        )
        writer = PartWriter(part=part, target=self.request.soft_labels, samples=table)
        sums, num_rows = np.zeros(NUM_CLASSES), 0
        for view in range(first_view, first_view + num_views):
            for first in range(0, len(samples), self.rows_per_block):
                keys = table.keys[first : first + self.rows_per_block]
                alive = [key for key in keys if not self.dead & {(key, view), (key, None)}]
                rows = [teacher_row(self.request, key, view) for key in alive]
                empty = teacher_row(self.request, "", 0)
                stacked = (
                    stack(rows)
                    if rows
                    else RankedLabels(class_ids=empty.class_ids[:0], log_probs=empty.log_probs[:0], log_rest=empty.log_rest[:0])
                )
                writer.add_rows(
                    stacked,
                    view=view,
                    first_sample=first,
                    present=np.array([key in alive for key in keys]),
                    view_digests=np.array(
                        [row_seed(self.seen_as or self.request, key, view) | 1 for key in keys], dtype=np.uint64
                    ),
                )
                sums += dense_selection(stacked, num_classes=NUM_CLASSES).sum(axis=0)
                num_rows += len(rows)
        views = range(first_view, first_view + num_views)
        letters = [
            DeadLetter(key=key, position=position, view=view, stage="read" if view is None else "teacher", reason="made so")
            for position, key in enumerate(table.keys)
            for view in (None, *views)
            if (key, view) in self.dead
        ]
        return writer.finish(
            unit_name=indexed.unit.name,
            class_means=sums / max(num_rows, 1),
            dead_letters=tuple(letters),
            statistics=PartStatistics(num_rows=num_rows, mass_kept_sum=0.5 * num_rows, entries_sum=3 * num_rows),
            provenance=self.provenance,
        )

    def label(self, *, name="tiny", num_views=2, views_per_part=2) -> LabelSet:
        """Commit the parts that are missing, and a label set over all units."""
        self.cache.add_request(self.request)
        used: list[tuple[UsedPart, PartRecord]] = []
        for indexed in index_source(self.source).units:
            for first in range(0, num_views, views_per_part):
                views = min(views_per_part, num_views - first)
                part = PartSpec(request=self.request.fingerprint(), unit_digest=indexed.digest, first_view=first, num_views=views)
                record = self.cache.find_part(part)
                if record is None:
                    data, made = self.make_part(indexed, first_view=first, num_views=views)
                    record = self.cache.commit_part(data, record=made)
                used.append((UsedPart(unit_name=indexed.unit.name, part=part, first_view=first, num_views=views), record))
        return self.commit(used, name=name, num_views=num_views)

    def commit(self, used, *, name, num_views) -> LabelSet:
        return commit_label_set(
            self.cache,
            identity=label_set_id(request=self.request.fingerprint(), parts=[part for part, _ in used]),
            name=name,
            request=self.request,
            parts=iter(used),
            num_views=num_views,
            classes=CLASSES,
            source={"kind": "image_folder", "path": "somewhere"},
        )


def make_labeller(folder, *, url=None, num=17, request=None, **options) -> Labeller:
    """A labeller over new pictures below a folder, with its cache beside them or at a URL."""
    return Labeller(
        cache=Cache.at(url or str(folder / "cache")),
        source=open_source(write_pictures(folder / "pictures", num=num)),
        request=request or make_request(),
        **options,
    )


def read_tree(url):
    """Bytes of every file below a URL, by path relative to it."""
    fs, root = fsspec.core.url_to_fs(url)
    fs.invalidate_cache()  # the store writes through an instance of its own
    return {path[len(root.rstrip("/")) + 1 :]: fs.cat_file(path) for path in fs.find(root)}
