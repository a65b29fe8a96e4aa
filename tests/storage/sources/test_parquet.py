from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from storage.config import ParquetConfig, WebDatasetConfig
from storage.errors import DuplicateKeyError, SampleError, SourceError
from storage.images import decode_image
from storage.sources import NO_LABEL, index_source, open_source
from storage.sources.parquet_reader import CACHED_ROW_GROUPS
from tests.contracts.source_contract import SourceContract, write_file
from tests.storage.sources.tars import tar_bytes

SHARED_DATA = Path(__file__).parents[3].parent / "shared" / "data"
ROWS_PER_FILE = 12
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def parquet_bytes(images, *, labels=None, group=2, classes=None, image_type=IMAGE, label_type=None, **columns):
    """A file as Hugging Face datasets writes it."""
    if image_type == IMAGE:
        images = [{"bytes": image, "path": "x.png"} if not isinstance(image, dict) else image for image in images]
    arrays = {"image": pa.array(images, type=image_type)}
    if labels is not None:
        arrays["label"] = pa.array(labels, type=label_type or pa.int64())
    table = pa.table({**arrays, **columns})
    if classes is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": classes, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=group, write_page_checksum=True)
    return file.getvalue()


class TestContract(SourceContract):
    def write(self, root, items):
        for number, start in enumerate(range(0, len(items), ROWS_PER_FILE)):
            of_file = items[start : start + ROWS_PER_FILE]
            data = parquet_bytes(
                [item.data for item in of_file], labels=[item.label for item in of_file], classes=["ant", "bee", "cat", "dog"]
            )
            write_file(f"{root}/train-{number:05d}.parquet", data)
        return ParquetConfig(kind="parquet", path=f"{root}/train-*.parquet", unit_size=5)

    def expected_key(self, item):
        number, row = divmod(int(item.name[1:]), ROWS_PER_FILE)
        return f"train-{number:05d}-{row:08d}"

    def spoil(self, root, items, *, position, config):
        images = [None if row == position else item.data for row, item in enumerate(items[:ROWS_PER_FILE])]
        data = parquet_bytes(images, labels=[item.label for item in items[:ROWS_PER_FILE]], classes=["ant", "bee", "cat", "dog"])
        write_file(f"{root}/train-00000.parquet", data)


def source(path, **kwargs):
    return open_source(ParquetConfig(kind="parquet", path=str(path), **kwargs))


def written(tmp_path, data, name="a.parquet", **kwargs):
    write_file(f"{tmp_path}/{name}", data)
    return source(tmp_path / name, **kwargs)


IMAGES = [b"%d" % index * 9 for index in range(10)]


def test_units_are_runs_of_whole_row_groups(tmp_path):
    opened = written(tmp_path, parquet_bytes(IMAGES, labels=range(10), group=3), unit_size=4)
    assert [unit.name for unit in opened.units()] == ["a.parquet:00000-00006", "a.parquet:00006-00010"]
    keys = [sample.key for unit in opened.units() for sample in opened.read(unit)]
    assert keys == [f"a-{row:08d}" for row in range(10)]


@pytest.mark.parametrize("image_type", [pa.binary(), pa.large_binary(), IMAGE])
@pytest.mark.parametrize("label_type", [pa.int8(), pa.uint16(), pa.int64()])
def test_column_types(tmp_path, image_type, label_type):
    data = parquet_bytes(IMAGES, labels=range(10), image_type=image_type, label_type=label_type)
    opened = written(tmp_path, data)
    [unit] = opened.units()
    assert [(sample.data, sample.label) for sample in opened.read(unit)] == list(zip(IMAGES, range(10), strict=True))
    reader = opened.open(unit)
    assert [reader.read(position) for position in range(10)] == IMAGES
    reader.close()


def test_without_labels(tmp_path):
    opened = written(tmp_path, parquet_bytes(IMAGES), label_column=None)
    assert opened.classes is None
    [unit] = opened.units()
    assert {sample.label for sample in opened.read(unit)} == {NO_LABEL}
    reader = opened.open(unit)
    assert reader.labels.tolist() == [NO_LABEL] * 10
    assert reader.keys[9] == "a-00000009"
    reader.close()


def test_class_names_come_from_the_metadata(tmp_path):
    classes = [f"c{index}" for index in range(10)]
    data = parquet_bytes(IMAGES, labels=range(10), classes=classes)
    assert written(tmp_path, data).classes == tuple(classes)
    assert written(tmp_path, data, classes=tuple(classes)).units()
    with pytest.raises(SourceError, match=r"config has 'x' for label 2, .*a.parquet has 'c2' for label 2"):
        written(tmp_path, data, classes=("c0", "c1", "x", *classes[3:])).units()
    write_file(f"{tmp_path}/b.parquet", parquet_bytes(IMAGES, labels=range(10), classes=classes[:-1]))
    with pytest.raises(SourceError, match=r"a.parquet has 10 classes, .*b.parquet has 9 classes"):
        source(tmp_path).units()


def test_keys_from_a_column(tmp_path):
    names = [f"k{index}" for index in range(10)]
    data = parquet_bytes(IMAGES, labels=range(10), name=pa.array(names), number=pa.array(range(10)))
    for column, keys in (("name", names), ("number", [str(index) for index in range(10)])):
        opened = written(tmp_path, data, key_column=column)
        [unit] = opened.units()
        assert [sample.key for sample in opened.read(unit)] == keys
        reader = opened.open(unit)
        assert reader.keys == keys
        reader.close()


def test_equal_keys_in_a_column_are_refused_with_both_places(tmp_path):
    names = [*"abcdefghi", "b"]
    opened = written(tmp_path, parquet_bytes(IMAGES, labels=range(10), name=pa.array(names)), key_column="name", unit_size=4)
    with pytest.raises(DuplicateKeyError, match=r"'b' occurs twice: .*00000-00004', position 1, .*00008-00010', position 1"):
        index_source(opened)


def test_a_null_key_is_refused(tmp_path):
    opened = written(tmp_path, parquet_bytes(IMAGES, labels=range(10), name=pa.array([None, *"bcdefghij"])), key_column="name")
    with pytest.raises(SourceError, match="row 0 has '' in key column 'name'"):
        list(opened.read(opened.units()[0]))


def test_the_digest_does_not_depend_on_the_container(tmp_path):
    names = [f"k{index}" for index in range(10)]
    data = parquet_bytes(IMAGES, labels=range(10), name=pa.array(names))
    [parquet] = index_source(written(tmp_path, data, key_column="name")).units
    members = [
        (f"{name}.{field}", value)
        for index, name in enumerate(names)
        for field, value in (("jpg", IMAGES[index]), ("cls", b"%d" % index))
    ]
    write_file(f"{tmp_path}/a.tar", tar_bytes(members))
    [tar] = index_source(open_source(WebDatasetConfig(kind="webdataset", path=str(tmp_path / "a.tar")))).units
    assert (tar.digest, tar.key_hash, tar.num_samples) == (parquet.digest, parquet.key_hash, 10)


def test_bad_rows_are_bad_samples(tmp_path):
    images = [b"a", {"bytes": None, "path": "elsewhere.jpg"}, b"c", b"d", b"e", b"f"]
    opened = written(tmp_path, parquet_bytes(images, labels=[0, 1, None, -1, 2, -7], classes=["x", "y"]))
    [unit] = opened.units()
    samples = list(opened.read(unit))
    reader = opened.open(unit)
    assert [sample.label for sample in samples] == reader.labels.tolist() == [0, 1, NO_LABEL, NO_LABEL, NO_LABEL, NO_LABEL]
    for position, message in {1: "null", 2: "no label", 4: "beyond the 2 classes", 5: "negative"}.items():
        assert samples[position].data is None
        assert message in samples[position].error
        with pytest.raises(SampleError, match=message):
            reader.read(position)
    for position in (0, 3):
        assert samples[position].data == reader.read(position) == images[position]
    reader.close()


def test_a_null_struct_is_a_bad_sample(tmp_path):
    images = pa.array([{"bytes": b"a", "path": None}, None], type=IMAGE)
    file = io.BytesIO()
    pq.write_table(pa.table({"image": images}), file)
    opened = written(tmp_path, file.getvalue(), label_column=None)
    assert [sample.data for sample in opened.read(opened.units()[0])] == [b"a", None]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"image_column": "imagee"}, "no column 'imagee'.*source.image_column.*'image'"),
        ({"label_column": "labels"}, "no column 'labels'.*'label'"),
        ({"key_column": "id"}, "no column 'id'"),
        ({"image_column": "label"}, "is int64, not struct"),
        ({"label_column": "text"}, "is string, not an integer"),
        ({"key_column": "image"}, "not a string or integer"),
    ],
)
def test_columns_that_do_not_fit_are_refused(tmp_path, kwargs, message):
    data = parquet_bytes(IMAGES, labels=range(10), text=pa.array([str(index) for index in range(10)]))
    with pytest.raises(SourceError, match=message):
        written(tmp_path, data, **kwargs).units()


def test_equal_stems_are_refused(tmp_path):
    for name in ("x/0.parquet", "y/0.parquet"):
        write_file(
            f"{tmp_path}/{name}", parquet_bytes(IMAGES, labels=range(10), name=pa.array([f"{name}{row}" for row in range(10)]))
        )
    with pytest.raises(DuplicateKeyError, match=r"x/0.parquet and .*y/0.parquet have the same stem '0'"):
        source(tmp_path).units()
    assert [unit.name for unit in source(tmp_path, key_column="name").units()] == [
        "x/0.parquet:00000-00010",
        "y/0.parquet:00000-00010",
    ]


def test_a_flipped_byte_in_a_page_is_refused(tmp_path):
    images = [np.random.default_rng(index).bytes(1000) for index in range(10)]
    data = parquet_bytes(images, labels=range(10), image_type=pa.binary(), group=10)
    damaged = bytearray(data)
    damaged[data.index(images[5][100:200])] ^= 1
    opened = written(tmp_path, bytes(damaged))
    [unit] = opened.units()
    with pytest.raises(SourceError, match="row group 0 cannot be read"):
        list(opened.read(unit))
    reader = opened.open(unit)
    with pytest.raises(SourceError, match="row group 0 cannot be read"):
        reader.read(0)
    reader.close()


def test_a_truncated_file_is_refused(tmp_path):
    data = parquet_bytes(IMAGES, labels=range(10))
    for length in (0, 3, 100, len(data) // 2, len(data) - 1):
        with pytest.raises(SourceError, match="a.parquet"):
            written(tmp_path, data[:length]).units()


def test_a_file_that_changed_after_it_was_listed_is_refused(tmp_path):
    opened = written(tmp_path, parquet_bytes(IMAGES, labels=range(10)))
    [unit] = opened.units()
    write_file(f"{tmp_path}/a.parquet", parquet_bytes(IMAGES[:9], labels=range(9)))
    with pytest.raises(SourceError, match="changed since it was listed"):
        list(opened.read(unit))
    with pytest.raises(SourceError, match="changed since it was listed"):
        opened.open(unit)


def test_reading_holds_a_row_group_not_the_file(tmp_path):
    images = [np.random.default_rng(index).bytes(1 << 20) for index in range(24)]
    opened = written(tmp_path, parquet_bytes(images, labels=range(24), group=1))
    [unit] = opened.units()
    before = pa.total_allocated_bytes()
    assert max(pa.total_allocated_bytes() - before for _ in opened.read(unit)) < 6 << 20
    reader = opened.open(unit)
    for position in range(24):
        assert reader.read(position) == images[position]
        assert pa.total_allocated_bytes() - before < (CACHED_ROW_GROUPS + 4) << 20
    reader.close()


@pytest.mark.skipif(not (SHARED_DATA / "fashion_mnist").is_dir(), reason="the shared data folder is not here")
def test_real_pictures_come_back_pixel_by_pixel(tmp_path):
    folder = SHARED_DATA / "fashion_mnist"
    with gzip.open(folder / "t10k-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(16 + 500 * 784)[16:], dtype=np.uint8).reshape(500, 28, 28)
    with gzip.open(folder / "t10k-labels-idx1-ubyte.gz") as file:
        labels = list(file.read(8 + 500)[8:])
    images = []
    for picture in pixels:
        png = io.BytesIO()
        Image.fromarray(picture).save(png, "PNG")
        images.append(png.getvalue())
    opened = written(tmp_path, parquet_bytes(images, labels=labels, group=100), unit_size=150)
    assert len(opened.units()) == 3
    samples = [sample for unit in opened.units() for sample in opened.read(unit)]
    decoded = np.stack([np.asarray(decode_image(sample.data, max_pixels=784)) for sample in samples])
    assert np.array_equal(decoded, np.repeat(pixels[..., None], 3, axis=3))
    assert [sample.label for sample in samples] == labels


def test_readers_of_one_file_share_its_footer_until_the_file_changes():
    url, fs = "memory://footers/train.parquet", fsspec.filesystem("memory")
    data = parquet_bytes([bytes([number]) * 9 for number in range(8)], labels=[0] * 8)
    fs.pipe_file(url, data)
    source = open_source(ParquetConfig(kind="parquet", path=url, unit_size=2))
    first, second, third, _ = source.units()
    reader = source.open(first)
    # Damage that the store does not tell of shows that nobody reads the footer again.
    fs.store["/footers/train.parquet"].getbuffer()[-20:-12] = b"\xff" * 8
    assert source.open(second).read(1) == bytes([3]) * 9
    fs.pipe_file(url, data[:-20] + b"\xff" * 8 + data[-12:])
    with pytest.raises(SourceError, match="damaged or no Parquet file"):
        source.open(third)
    reader.close()
