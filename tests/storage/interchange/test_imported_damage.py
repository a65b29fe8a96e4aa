"""Where imported labels are damaged, every message says to import them again, never to label; and that mends them."""

from __future__ import annotations

import json

import numpy as np
import pytest

import decant
from storage.cache import Cache
from storage.errors import CacheError
from storage.label_set import LabelSet
from storage.streams.label_stream import LabelStream
from storage.verify import verify
from tests.storage.interchange.label_sets import draw_records, write_epoch
from tests.student_training.support import CLASSES, source_config, write_pictures

AGAIN = "import these labels again (decant cache import-tinyvit, with the same options)"


@pytest.fixture
def labels(tmp_path):
    """Imports labels of two epochs for the pictures of a folder; may be called again."""
    pictures = write_pictures(tmp_path / "pictures", per_class=2)
    keys = [f"{name}/{number:03d}.png" for name in CLASSES for number in range(2)]
    rng = np.random.default_rng(0)
    for epoch in range(2):
        ids, probs = draw_records(rng, num=len(keys), num_classes=5, k=2)
        write_epoch(tmp_path / "logits", epoch=epoch, packages=[(keys, ids, probs)], k=2)
    data = {"name": "published", "cache": str(tmp_path / "cache"), "source": source_config(pictures, unit_size=3)}
    (tmp_path / "config.json").write_text(json.dumps(data))

    def again():
        words = ["--name", "published", "--teacher", "clip", "--num-classes", "5", "--image-size", "16"]
        folders = [str(tmp_path / "logits"), str(tmp_path / "cache")]
        assert decant.main(["cache", "import-tinyvit", *folders, *words, "--source", str(tmp_path / "config.json")]) == 0
        return LabelSet.open(Cache.at(str(tmp_path / "cache")), name_or_id="published")

    return again


def spoil(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(bytes(data))


def read_all(label_set, tmp_path):
    from storage.config import load_config
    from storage.sources import open_source

    stream = LabelStream(label_set, source=open_source(load_config(str(tmp_path / "config.json")).source))
    for view in range(2):
        for block in range(len(stream.block_rows(epoch=view))):
            stream.read(epoch=view, block_ids=np.array([block]), rows=np.array([0]))
    label_set.class_means()


@pytest.mark.parametrize(
    "pattern",
    ["requests/*/*.tar", "label_sets/*/manifest.json", "label_sets/*/parts-*.parquet", "label_sets/*/class_means-*.block"],
)
@pytest.mark.parametrize("damage", ["spoilt", "missing"])
def test_readers_say_to_import_again_and_that_mends(labels, tmp_path, capsys, pattern, damage):
    before = labels().manifest
    path = sorted((tmp_path / "cache").glob(pattern))[0]
    spoil(path) if damage == "spoilt" else path.unlink()
    with pytest.raises(CacheError) as error:
        read_all(LabelSet.open_id(Cache.at(str(tmp_path / "cache")), label_set=before.id), tmp_path)
    message = str(error.value)
    assert path.name in message
    if "manifest" in pattern:
        # Nothing is left that says who made the labels.
        assert "run decant label again, or, where labels were imported, the import" in message
    else:
        assert AGAIN in message
        assert "decant label" not in message
    if damage == "spoilt" and "tar" in pattern:
        assert f"; remove this tar and {AGAIN}: only its part is imported anew" in message
        path.unlink()
    mended = labels()
    assert mended.manifest == before
    assert verify(mended).problems == ()
    read_all(mended, tmp_path)


def test_pictures_that_are_not_the_labelled_ones_are_refused_with_the_right_remedy(labels, tmp_path):
    label_set = labels()
    (tmp_path / "pictures" / "red" / "001.png").rename(tmp_path / "pictures" / "red" / "002.png")
    with pytest.raises(CacheError, match=r"restore the source or import these labels again"):
        read_all(label_set, tmp_path)


def test_verify_and_repair_say_to_import_again_and_move_nothing(labels, tmp_path, capsys):
    labels()
    cache, config = tmp_path / "cache", str(tmp_path / "config.json")
    assert decant.main(["repair", config]) == 0
    tar = sorted(cache.glob("requests/*/*.tar"))[0]
    spoil(tar)
    capsys.readouterr()
    assert decant.main(["cache", "verify", str(cache)]) == 1
    shown = capsys.readouterr().out
    assert f"remove what is damaged and {AGAIN}: only that is computed anew" in shown
    assert "decant label" not in shown
    assert "decant repair" not in shown
    assert decant.main(["repair", config, "--dry-run"]) == 1
    assert decant.main(["repair", config]) == 1
    said = capsys.readouterr().err
    assert "were imported, and nothing here can compute them; nothing was moved" in said
    assert f"Remove what is damaged and {AGAIN}" in said
    assert tar.name in said
    assert tar.exists()
    assert not (cache / "quarantine").exists()
    next(cache.glob("label_sets/*/manifest.json")).unlink()
    assert decant.main(["repair", config]) == 2
    assert f"remove what decant cache verify names and {AGAIN}" in capsys.readouterr().err
    tar.unlink()
    assert verify(labels()).problems == ()
