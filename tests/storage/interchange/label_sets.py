"""Label sets of any keys, made without pictures, and TinyViT's way of reading its own files."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path

import numpy as np

from storage.cache import Cache
from storage.codecs import RankedLabels
from storage.interchange.rows import RowReader
from storage.label_set import UsedPart, commit_label_set, label_set_id
from storage.parts import DeadLetter, PartStatistics, PartWriter
from storage.samples import SampleTable
from storage.sources.base import NO_LABEL
from storage.specs import EvaluationView, ExactCodec, Normalization, PartSpec, RequestSpec, SoftLabelsSpec, TeacherSpec
from tests.storage.rows import dense_selection, make_rows


def make_request(*, num_classes=10, k=3, codec=None):
    return RequestSpec(
        teacher=TeacherSpec(
            kind="timm",
            architecture="tiny",
            weights_sha256="5e" * 32,
            num_classes=num_classes,
            normalization=Normalization(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
            precision="fp32",
        ),
        view=EvaluationView(size=(8, 8), resize_size=(8, 8)),
        target=SoftLabelsSpec(num_classes=num_classes, k=k, codec=codec or ExactCodec()),
    )


def make_label_set(url, *, units, request=None, num_views=2, dead=frozenset(), shape="peaked", seed=0, block=4, labelled=True):
    """A label set of units of keys; `dead` holds (key, view) without a row. A part for each unit and view."""
    cache, request = Cache.at(str(url)), request or make_request()
    identity, target, rng = cache.add_request(request), request.target, np.random.default_rng(seed)
    used, committed = [], []
    for number, keys in enumerate(units):
        labels = np.arange(len(keys)) % target.num_classes if labelled else np.full(len(keys), NO_LABEL)
        table = SampleTable(keys=tuple(keys), labels=labels.astype(np.int64))
        for view in range(num_views):
            part = PartSpec(
                request=identity, unit_digest=hashlib.sha256(f"{number}".encode()).hexdigest(), first_view=view, num_views=1
            )
            writer = PartWriter(part=part, target=target, samples=table)
            sums, num_rows = np.zeros(target.num_classes), 0
            for first in range(0, len(keys), block):
                present = np.array([(key, view) not in dead for key in keys[first : first + block]])
                rows = make_rows(
                    rng, num_rows=int(present.sum()), num_classes=target.num_classes, entries=target.max_entries, shape=shape
                )
                writer.add_rows(
                    rows, view=view, first_sample=first, present=present, view_digests=np.zeros(len(present), dtype=np.uint64)
                )
                sums += dense_selection(rows, num_classes=target.num_classes).sum(axis=0)
                num_rows += len(rows)
            letters = tuple(
                DeadLetter(key=key, position=position, view=view, stage="teacher", reason="made so")
                for position, key in enumerate(keys)
                if (key, view) in dead
            )
            data, record = writer.finish(
                unit_name=f"unit{number}",
                class_means=sums / max(num_rows, 1),
                dead_letters=letters,
                statistics=PartStatistics(num_rows=num_rows),
                provenance={},
            )
            committed.append(cache.commit_part(data, record=record))
            used.append(UsedPart(unit_name=f"unit{number}", part=part, first_view=view, num_views=1))
    return commit_label_set(
        cache,
        identity=label_set_id(request=identity, parts=used),
        name="tiny",
        request=request,
        parts=iter(zip(used, committed, strict=True)),
        num_views=num_views,
        classes=None,
        source={"kind": "image_folder", "path": "somewhere"},
    )


def rows_of(label_set):
    """Rows as stored, by (key, view): ids and probabilities of kept entries, most probable first, and the rest."""
    found = {}
    reader = RowReader.of(label_set, views=None)
    for rows in itertools.chain.from_iterable(map(reader.read, reader.views)):
        for row, key in enumerate(rows.keys):
            kept = rows.soft_labels.probs[row] > 0
            ids, probs = rows.soft_labels.class_ids[row][kept], rows.soft_labels.probs[row][kept]
            order = np.argsort(-probs, kind="stable")
            found[key, rows.view] = (ids[order], probs[order], float(rows.soft_labels.rest[row]), int(rows.labels[row]))
    return found


def records(ids, probs, *, seed=7):
    """Bytes of TinyViT's records, put together as it does: seed, ids, probabilities of one after the other."""
    return b"".join(
        np.int32(seed).tobytes() + np.asarray(i).astype(np.int16).tobytes() + np.asarray(p, dtype=np.float16).tobytes()
        for i, p in zip(ids, probs, strict=True)
    )


def write_epoch(folder, *, epoch, packages, k):
    """Write an epoch folder; `packages` is a list, by rank, of (keys, ids, probs)."""
    path = Path(folder) / f"logits_top{k}_epoch{epoch}"
    path.mkdir(parents=True)
    for rank, (keys, ids, probs) in enumerate(packages):
        (path / f"rank{rank}-keys.txt").write_text("".join(key + "\n" for key in keys), encoding="utf-8", newline="")
        (path / f"rank{rank}-values.bin").write_bytes(records(ids, probs))
    return path


def draw_records(rng, *, num, num_classes, k, shape="peaked"):
    """Ids and float16 probabilities as a teacher gives them."""
    rows: RankedLabels = make_rows(rng, num_rows=num, num_classes=num_classes, entries=k, shape=shape)
    return rows.class_ids.astype(np.int64), np.exp(rows.log_probs.astype(np.float64)).astype(np.float16)


def read_as_tinyvit(folder, *, k, epoch):
    """Records by key, with a seek and a read for each, from every package of an epoch; (seed, ids int16, probs float16)."""
    path, size, found = Path(folder) / f"logits_top{k}_epoch{epoch}", 4 + 4 * k, {}
    for keys_path in sorted(path.glob("rank*-keys.txt")):
        values = (path / keys_path.name.replace("keys.txt", "values.bin")).open("rb")
        with keys_path.open(encoding="utf-8") as keys, values:
            for line, key in enumerate(keys):
                values.seek(size * line)
                record = values.read(size)
                seed = int(np.frombuffer(record[:4], dtype=np.int32)[0])
                ids = np.frombuffer(record[4 : 4 + 2 * k], dtype=np.int16)
                found[key.strip()] = (seed, ids, np.frombuffer(record[4 + 2 * k :], dtype=np.float16))
    return found


def target_of_tinyvit(ids, probs, *, num_classes):
    """The dense target that TinyViT's student is trained on, float64 [classes]."""
    dense = np.full(num_classes, (1 - probs.astype(np.float64).sum()) / max(num_classes - len(ids), 1))
    dense[ids] = probs
    return dense
