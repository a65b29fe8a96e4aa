"""Sources that change while labels are imported for them."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest

from storage.cache import Cache
from storage.config import WebDatasetConfig
from storage.errors import SourceError
from storage.interchange import import_tinyvit
from storage.sources import open_source
from storage.streams.label_stream import LabelStream
from tests.storage.interchange.label_sets import draw_records, write_epoch

NUM_CLASSES, K = 20, 4


def write_shard(path, keys):
    with tarfile.open(path, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for key in keys:
            for name, data in ((f"{key}.jpg", f"picture {key}".encode()), (f"{key}.cls", b"3")):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))


def test_a_unit_that_grows_while_the_source_is_read_shifts_no_labels(tmp_path):
    keys = [f"a{number}" for number in range(5)] + [f"b{number}" for number in range(4)]
    ids, probs = draw_records(np.random.default_rng(0), num=len(keys), num_classes=NUM_CLASSES, k=K)
    write_epoch(tmp_path / "logits", epoch=0, packages=[(keys, ids, probs)], k=K)
    write_shard(tmp_path / "0.tar", keys[1:5])
    write_shard(tmp_path / "1.tar", keys[5:])
    source = WebDatasetConfig(kind="webdataset", path=str(tmp_path / "{0..1}.tar"))

    def run(on_progress=None):
        return import_tinyvit(
            str(tmp_path / "logits"),
            Cache.at(str(tmp_path / "cache")),
            name="in",
            teacher="clip",
            num_classes=NUM_CLASSES,
            image_size=(8, 8),
            source=source,
            on_progress=on_progress,
        )

    def grow(what, done, total):
        if what == "units of the source" and done == total:
            write_shard(tmp_path / "0.tar", keys[:5])

    with pytest.raises(SourceError, match="unit '0.tar' changed while the source was read.*nothing was imported"):
        run(grow)
    label_set, report = run()
    assert (report.num_rows, report.num_dead_letters) == (9, 0)
    stream = LabelStream(label_set, source=open_source(source))
    sizes = stream.block_rows(epoch=0)
    blocks, rows = np.repeat(np.arange(len(sizes)), sizes), np.concatenate([np.arange(size) for size in sizes])
    read = stream.read(epoch=0, block_ids=blocks, rows=rows)
    assert read.keys == keys
    assert np.array_equal(read.soft_labels.class_ids, ids)
