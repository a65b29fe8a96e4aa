"""Rows of a source alone."""

from __future__ import annotations

import io
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from storage.config import ImageFolderConfig, WebDatasetConfig
from storage.errors import SourceError
from storage.sources import NO_LABEL, open_source
from storage.streams.base import NO_DIGEST
from storage.streams.source_stream import SourceStream


def picture(number):
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), number, dtype=np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("source")
    for label, name in enumerate(("a", "b")):
        (root / name).mkdir()
        for number in range(13):
            (root / name / f"{number:02d}.png").write_bytes(picture(100 * label + number))
    return root


@pytest.fixture(scope="module")
def source(folder):
    return open_source(ImageFolderConfig(kind="image_folder", path=str(folder), unit_size=10))


def read_all(stream, *, epoch=0):
    blocks = stream.block_rows(epoch=epoch)
    block_ids = np.repeat(np.arange(len(blocks)), blocks)
    rows = np.concatenate([np.arange(count) for count in blocks])
    return stream.read(epoch=epoch, block_ids=block_ids, rows=rows)


def test_blocks_are_runs_of_a_unit(source):
    stream = SourceStream(source, block_rows=4)
    assert stream.block_rows(epoch=3).tolist() == [4, 4, 2, 4, 4, 2, 4, 2]
    assert (stream.num_labelled, stream.max_label) == (26, 1)
    rows = read_all(stream)
    assert rows.keys == sorted(rows.keys)
    assert rows.labels.tolist() == [0] * 13 + [1] * 13
    assert [Image.open(io.BytesIO(data)).getpixel((0, 0))[0] for data in rows.images] == [*range(13), *range(100, 113)]
    assert rows.soft_labels is None
    assert (rows.view_digests == NO_DIGEST).all()


def test_rows_come_in_the_order_asked_for(source):
    stream = SourceStream(source, block_rows=4)
    every = read_all(stream)
    order = np.random.default_rng(0).permutation(26)
    starts = np.cumsum([0, 4, 4, 2, 4, 4, 2, 4])
    block_ids = np.searchsorted(starts, order, side="right") - 1
    rows = stream.read(epoch=0, block_ids=block_ids, rows=order - starts[block_ids])
    assert rows.keys == [every.keys[row] for row in order]
    assert rows.images == [every.images[row] for row in order]
    assert rows.labels.tolist() == every.labels[order].tolist()
    nothing = stream.read(epoch=0, block_ids=np.zeros(0, dtype=np.int64), rows=np.zeros(0, dtype=np.int64))
    assert (nothing.keys, nothing.labels.shape) == ([], (0,))


def test_views_follow_the_epoch(source):
    assert set(read_all(SourceStream(source), epoch=7).view_indices.tolist()) == {7}
    assert set(read_all(SourceStream(source, num_views=3), epoch=7).view_indices.tolist()) == {1}


def test_a_share_is_chosen_by_key_and_nested(source):
    shares = [set(read_all(SourceStream(source, sample_fraction=fraction)).keys) for fraction in (0.3, 0.6, 1.0)]
    assert shares[0] < shares[1] < shares[2]
    assert len(shares[2]) == 26
    again = SourceStream(source, sample_fraction=0.3, block_rows=3)
    assert set(read_all(again).keys) == shares[0]
    with pytest.raises(SourceError, match="26 samples and sample_fraction is 1e-09"):
        SourceStream(source, sample_fraction=1e-9).block_rows(epoch=0)


def test_few_units_stay_open(source, monkeypatch):
    opened, closed = [], []
    original = type(source).open

    def counting_open(self, unit):
        reader = original(self, unit)
        opened.append(unit.name)
        close = reader.close

        def counting_close():
            closed.append(unit.name)
            close()

        reader.close = counting_close
        return reader

    monkeypatch.setattr(type(source), "open", counting_open)
    stream = SourceStream(source, block_rows=4, max_open_units=2)
    stream.block_rows(epoch=0)
    assert len(opened) == len(closed) == 3
    read_all(stream)
    assert len(opened) - len(closed) == 2
    stream.close()
    assert len(opened) == len(closed)
    assert read_all(stream).keys


def test_a_pickled_copy_reads_the_same_without_looking_again(source, monkeypatch):
    stream = SourceStream(source, block_rows=4)
    before = read_all(stream)
    copy = pickle.loads(pickle.dumps(stream))
    monkeypatch.setattr(SourceStream, "_look", None)
    assert read_all(copy).keys == before.keys
    assert copy.identity() == stream.identity()


def test_identity_is_of_content_and_order(source, folder, tmp_path):
    base = SourceStream(source).identity()
    assert SourceStream(source).identity() == base
    changed = [SourceStream(source, **options) for options in ({"block_rows": 5}, {"num_views": 2}, {"sample_fraction": 0.5})]
    assert len({base, *(stream.identity() for stream in changed)}) == 4
    moved = tmp_path / "moved"
    folder.rename(moved)
    try:
        copy = open_source(ImageFolderConfig(kind="image_folder", path=str(moved), unit_size=10))
        assert SourceStream(copy).identity() == base
        (moved / "a" / "00.png").rename(moved / "b" / "00x.png")
        other = open_source(ImageFolderConfig(kind="image_folder", path=str(moved), unit_size=10))
        assert SourceStream(other).identity() != base
        (moved / "b" / "00x.png").rename(moved / "a" / "00.png")
    finally:
        moved.rename(folder)


def test_a_source_without_labels_and_a_missing_picture(folder, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number in range(3):
            data = picture(number)
            info = tarfile.TarInfo(f"{number:03d}.png")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    stream = SourceStream(open_source(WebDatasetConfig(kind="webdataset", path=str(tmp_path / "a.tar"), label_field=None)))
    assert (stream.num_labelled, stream.max_label) == (0, NO_LABEL)
    assert read_all(stream).labels.tolist() == [NO_LABEL] * 3
    gone = tmp_path / "gone"
    (gone / "a").mkdir(parents=True)
    (gone / "a" / "0.png").write_bytes(picture(0))
    stream = SourceStream(open_source(ImageFolderConfig(kind="image_folder", path=str(gone))))
    stream.block_rows(epoch=0)
    (gone / "a" / "0.png").unlink()
    rows = read_all(stream)
    assert (rows.keys, rows.images) == (["a/0.png"], [b""])
    assert rows.unreadable[0].startswith("a/0.png: the file cannot be read: FileNotFoundError")
