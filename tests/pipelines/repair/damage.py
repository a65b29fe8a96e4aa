"""Ways to damage the cache of a labelled folder, and looks at what is left and what was mended."""

from __future__ import annotations

import json

import numpy as np

import decant
from pipelines.label import plan_run, run_label
from storage.cache import Cache
from storage.label_set import LabelSet
from storage.sources import open_source
from storage.streams.label_stream import LabelStream
from storage.verify import verify
from tests.pipelines.support import (
    config_of,
    experiment,
    folder_source,
    snapshot,
    timm_teacher,
    write_config,
)


def data_at(folder, **sections):
    return experiment(
        cache=folder / "cache",
        source=folder_source(folder / "pictures", unit_size=4),
        teacher=sections.pop("teacher", timm_teacher(folder / "teacher.safetensors")),
        **sections,
    )


def config_at(folder, **sections):
    return config_of(data_at(folder, **sections))


def label(config):
    return run_label(plan_run(config, progress=False), progress=False)


def find(folder, pattern, *, number=0):
    return sorted((folder / "cache").glob(pattern))[number]


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0x10
    path.write_bytes(bytes(data))


def swap(path):
    """Another file of its kind in its place."""
    other = next(file for file in sorted(path.parent.glob(f"*{path.suffix}")) if file not in (path, path.with_name("spec.json")))
    path.write_bytes(other.read_bytes())


DAMAGES = {
    "flip": flip,
    "truncate": lambda path: path.write_bytes(path.read_bytes()[:-700]),
    "empty": lambda path: path.write_bytes(b""),
    "delete": lambda path: path.unlink(),
    "append": lambda path: path.write_bytes(path.read_bytes() + b"more"),
    "swap": swap,
}
PARTS = {"tar": "requests/*/*.tar", "record": "requests/*/*.v*.json"}
OTHERS = {
    "manifest": "label_sets/*/manifest.json",
    "table": "label_sets/*/parts-*.parquet",
    "means": "label_sets/*/class_means-*.block",
    "spec": "requests/*/spec.json",
    "name": "names/tiny.json",
}


def check_whole(folder, before):
    """The cache holds the bytes it held, apart from what was set aside."""
    assert snapshot(folder / "cache") == before
    assert verify(LabelSet.open(Cache.at(str(folder / "cache")), name_or_id="tiny")).problems == ()


def check_quarantine(folder, found, damaged):
    """What was set aside is all there, with the reason."""
    if not damaged:
        assert found["quarantine"] is None
        return
    aside = folder / "cache" / found["quarantine"]
    assert set(json.loads((aside / "why.json").read_text())) == set(damaged)
    for name, data in damaged.items():
        assert (aside / name).read_bytes() == data


def damaged_bytes(folder, *paths):
    return {str(path.relative_to(folder / "cache")): path.read_bytes() for path in paths if path.exists()}


def rows_of(config):
    """Every row of both views as a student gets it."""
    opened = LabelSet.open(Cache.at(config.cache), name_or_id=config.name)
    stream = LabelStream(opened, source=open_source(config.source))
    found = []
    for view in range(opened.manifest.num_views):
        for block, count in enumerate(stream.block_rows(epoch=view).tolist()):
            rows = stream.read(epoch=view, block_ids=np.full(count, block), rows=np.arange(count))
            found += zip(rows.keys, rows.soft_labels.densify().tolist(), strict=True)
    return found


def repaired_by_command(folder):
    """Run `decant repair CONFIG` as the errors say."""
    return decant.main(["repair", write_config(folder / "config.json", data_at(folder))])
