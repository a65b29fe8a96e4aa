"""The golden files: a tiny cache whose rows are written out below, and what a reader must find in it.

Every kind of thing that version 1 of the format can say is in there once. Here: both codecs of ranked classes and a quality level, ids
of one to three bytes, several views and blocks, dead letters of all views and of one, rows that keep nothing, rows without rest. In
`texts`: token sequences and masks, labels of tokens, drawn and dense labels, vectors of every kind, a teacher's head.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from storage.cache import Cache
from storage.codecs import RankedLabels
from storage.hashing import digest
from storage.label_blocks import decode_label_block
from storage.label_set import LabelSet, UsedPart, commit_label_set, label_set_id
from storage.parts import DeadLetter, PartRecord, PartStatistics, PartWriter
from storage.samples import SampleTable, decode_samples
from storage.specs import (
    CompactCodec,
    EvaluationView,
    ExactCodec,
    Normalization,
    PartSpec,
    RandomResizedCropView,
    RequestSpec,
    SoftLabelsSpec,
    TeacherSpec,
    ViewSpec,
)
from tests.golden.texts import CASES, HEAD, UNIT, decode_golden_head, decode_text_block, make_part, request_of

VERSION = "v1"
KEYS = ("ant/1.jpg", "ant/2.jpg", "bee/ü.jpg", "cat/x/4.jpg", "cat/5.jpg")
LABELS = (0, 0, 1, 2, -1)
BLOCK_SAMPLES = 3
ROTATION = (0, 3, 1, 4, 2)

Row = dict[int, float]
"""Probabilities by class, most probable first; what they leave is the rest."""

EVALUATION = EvaluationView(size=(8, 6), resize_size=(9, 9))
RANDOM = RandomResizedCropView(size=(8, 8), scale=(0.25, 1.0), seed=2**63 - 1, interpolation="lanczos")
TARGETS: dict[str, tuple[ViewSpec, SoftLabelsSpec, tuple[Row, ...]]] = {
    "exact": (
        RANDOM,
        SoftLabelsSpec(num_classes=300, k=3, codec=ExactCodec(), generation_temperature=2.0),
        (
            {299: 0.9, 0: 0.05, 17: 0.01},
            {255: 0.5, 256: 0.5, 1: 0.0},
            {3: 1.0, 2: 0.0, 1: 0.0},
            {8: 1 / 300, 7: 1 / 300, 9: 1 / 300},
            {100: 0.4, 200: 0.4, 0: 1e-30},
        ),
    ),
    "compact": (
        RANDOM,
        SoftLabelsSpec(num_classes=70_000, k=4, codec=CompactCodec()),
        (
            {69_999: 0.7, 0: 0.2, 65_536: 0.05, 5: 1e-7},
            {2: 0.25, 1: 0.25, 300: 0.25, 0: 0.25},
            {12_345: 1.0, 1: 0.0, 2: 0.0, 3: 0.0},
            {1: 1e-6, 2: 1e-6, 3: 1e-6, 4: 1e-6},
            {40_000: 0.999, 40_001: 0.0009, 40_256: 1e-5, 39_999: 1e-5},
        ),
    ),
    "quality": (
        EVALUATION,
        SoftLabelsSpec(num_classes=6, k=None, codec=CompactCodec(levels=10)),
        (
            {5: 0.5, 4: 0.3, 3: 0.15, 2: 0.04, 1: 0.009, 0: 0.001},
            {0: 1.0, 1: 0.0, 2: 0.0, 3: 0.0, 4: 0.0, 5: 0.0},
            {3: 1 / 6, 1: 1 / 6, 2: 1 / 6, 0: 1 / 6, 5: 1 / 6, 4: 1 / 6},
            {2: 0.9976, 0: 0.002, 1: 0.0001, 3: 0.0001, 4: 0.0001, 5: 0.0001},
            {4: 0.6, 0: 0.4, 1: 0.0, 2: 0.0, 3: 0.0, 5: 0.0},
        ),
    ),
}
NAMES = (*TARGETS, *CASES)


def write_golden(folder: Path) -> None:
    """Write the cache and, beside it, what it holds as `decoded.json`."""
    cache = Cache.at(str(folder / "cache"))
    for name in TARGETS:
        _write_label_set(cache, name)
    cache.add_head(HEAD)
    for name in CASES:
        _write_text_label_set(cache, name)
    decoded = {
        "zstd": list(zstandard.ZSTD_VERSION),
        "label_sets": {name: decode(cache, name) for name in NAMES},
        "head": decode_golden_head(cache),
    }
    text = json.dumps(decoded, indent=1, sort_keys=True, ensure_ascii=False)
    (folder / "decoded.json").write_text(text + "\n", encoding="utf-8")


def _dead(name: str) -> dict[tuple[int, int | None], DeadLetter]:
    letters = [DeadLetter(key=KEYS[1], position=1, view=None, stage="decode", reason="not a picture")]
    if name != "quality":
        letters.append(
            DeadLetter(key=KEYS[3], position=3, view=1, stage="teacher", reason="the teacher's logits hold NaN or infinity")
        )
    return {(letter.position, letter.view): letter for letter in letters}


def _ranked(rows: list[Row], *, entries: int) -> RankedLabels:
    probs = np.array([list(row.values()) for row in rows]).reshape(len(rows), entries)
    rest = np.maximum(1 - probs.sum(axis=1), 0)
    rest[rest < 1e-12] = 0
    with np.errstate(divide="ignore"):
        return RankedLabels(
            class_ids=np.array([list(row) for row in rows], dtype=np.uint32).reshape(len(rows), entries),
            log_probs=np.log(probs).astype(np.float32),
            log_rest=np.log(rest).astype(np.float32),
        )


def _write_label_set(cache: Cache, name: str) -> None:
    view, target, rows = TARGETS[name]
    num_views = 1 if view is EVALUATION else 2
    request = RequestSpec(
        teacher=TeacherSpec(
            kind="timm",
            architecture="resnet18(num_classes=6)",
            weights_sha256=digest(b"weights"),
            num_classes=target.num_classes,
            normalization=Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
            precision="bf16",
        ),
        view=view,
        target=target,
    )
    dead = _dead(name)
    part = PartSpec(request=cache.add_request(request), unit_digest=digest(b"unit"), first_view=0, num_views=num_views)
    writer = PartWriter(part=part, target=target, samples=SampleTable(keys=KEYS, labels=np.array(LABELS)))
    num_rows = 0
    for view_index in range(num_views):
        for first in range(0, len(KEYS), BLOCK_SAMPLES):
            positions = range(first, min(first + BLOCK_SAMPLES, len(KEYS)))
            alive = [p for p in positions if not {(p, None), (p, view_index)} & dead.keys()]
            # The second view says of each sample what the first one says of another.
            said = [rows[ROTATION[position] if view_index else position] for position in alive]
            writer.add_rows(
                _ranked(said, entries=target.max_entries),
                view=view_index,
                first_sample=first,
                present=np.array([position in alive for position in positions]),
                view_digests=np.array([2**64 - 1 - position - 16 * view_index for position in positions], dtype=np.uint64),
            )
            num_rows += len(alive)
    means = np.zeros(target.num_classes)
    means[list(rows[0])] = list(rows[0].values())
    data, record = writer.finish(
        unit_name="00000-00005",
        class_means=means,
        dead_letters=tuple(dead.values()),
        statistics=PartStatistics(num_rows=num_rows, codec_kl_sum=0.25, codec_kl_max=0.125, mass_kept_sum=0.1),
        provenance={"decant": "0.1.0", "device": "by hand"},
    )
    record = cache.commit_part(data, record=record)
    used = UsedPart(unit_name="00000-00005", part=part, first_view=0, num_views=num_views)
    commit_label_set(
        cache,
        identity=label_set_id(request=request.fingerprint(), parts=[used]),
        name=name,
        request=request,
        parts=[(used, record)],
        num_views=num_views,
        classes=("ant", "bee", "cat", "dog", "eel", "fox") if name == "quality" else None,
        source={"kind": "image_folder", "path": "/data/pictures"},
    )


def _write_text_label_set(cache: Cache, name: str) -> None:
    case = CASES[name]
    data, record = make_part(cache, case)
    record = cache.commit_part(data, record=record)
    used = UsedPart(unit_name=UNIT, part=record.part, first_view=0, num_views=case.num_views)
    commit_label_set(
        cache,
        identity=label_set_id(request=request_of(case).fingerprint(), parts=[used]),
        name=name,
        request=request_of(case),
        parts=[(used, record)],
        num_views=case.num_views,
        classes=("one", "two", "three", "four") if name == "text_dense" else None,
        source={"kind": "text", "path": "/data/texts"},
    )


def decode(cache: Cache, name: str) -> dict[str, Any]:
    """Return all that a label set holds as JSON data; probabilities are those of kept classes only."""
    label_set = LabelSet.open(cache, name_or_id=name)
    folder = cache.request_folder(label_set.manifest.request.fingerprint())
    parts = []
    for row in label_set.parts.to_pylist():
        path = f"{folder}/{row['tar_name']}"
        tar = cache.store.read(path)
        stem = f"{folder}/{row['tar_name'].rsplit('.', 2)[0]}"
        record = PartRecord.from_bytes(cache.store.read(f"{stem}.json"), origin=stem)
        table = decode_samples(tar[record.samples.offset :][: record.samples.num_bytes], origin=path)
        decode_one = _decode_block if name in TARGETS else decode_text_block
        blocks = [decode_one(tar[block.offset :][: block.num_bytes], origin=path) for block in record.blocks]
        parts.append(
            {
                "tar_sha256": digest(tar),
                "record": record.model_dump(mode="json"),
                "row": row,
                "keys": list(table.keys),
                "labels": table.labels.tolist(),
                "blocks": blocks,
            }
        )
    manifest = label_set.manifest.model_dump(mode="json")
    means = _nonzero(label_set.class_means()) if label_set.manifest.class_means_file is not None else None
    # What all classes have alike is said once.
    if means is not None and len(means) > 4 and len(set(means.values())) == 1:
        means = {"all": next(iter(means.values()))}
    return {"manifest": manifest, "parts": parts, "class_means": means}


def _nonzero(values: np.ndarray) -> dict[str, float]:
    return {str(index): values[index].item() for index in np.flatnonzero(values).tolist()}


def _decode_block(data: bytes, *, origin: str) -> dict[str, Any]:
    block = decode_label_block(data, origin=origin)
    labels = block.soft_labels
    return {
        "view": block.view,
        "first_sample": block.first_sample,
        "num_samples": block.num_samples,
        "positions": block.positions.tolist(),
        "key_hash": f"{block.key_hash:016x}",
        "view_digests": [f"{value:016x}" for value in block.view_digests.tolist()],
        "rows": [
            [
                [class_id, prob]
                for class_id, prob in zip(labels.class_ids[row].tolist(), labels.probs[row].tolist(), strict=True)
                if prob > 0
            ]
            for row in range(len(labels))
        ],
        "rest": labels.rest.tolist(),
        "num_classes": labels.num_classes,
    }
