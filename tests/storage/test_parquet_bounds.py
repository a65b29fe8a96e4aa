"""What a Parquet file decodes to is reckoned from the headers of its pages, before Arrow believes them."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import parquet_bounds
from storage.parquet_bounds import check_size


def parquet(table, **options):
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    return file.getvalue()


def check(data, **said):
    with pq.ParquetFile(pa.BufferReader(data)) as file:
        check_size(file, data, **said)


def table(number=5000):
    rng = np.random.default_rng(0)
    return pa.table(
        {
            "name": [f"some/folder/of/units/{index:06d}.tar" for index in range(number)],
            "sha256": [rng.bytes(32).hex() for _ in range(number)],
            "same": ["0" * 64] * number,
            "ragged": [f"{index}" * (index % 7) for index in range(number)],
            "number": np.arange(number),
            "lists": pa.array([list(range(index % 4)) for index in range(number)], type=pa.list_(pa.int32())),
            "structs": pa.array([{"a": index, "b": None if index % 3 else "b"} for index in range(number)]),
        }
    )


@pytest.mark.parametrize("compression", ["zstd", "snappy", "gzip", "none"])
@pytest.mark.parametrize("dictionary", [True, False, ["same"]])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_every_page_of_a_file_is_found(compression, dictionary, version):
    data = parquet(table(), compression=compression, use_dictionary=dictionary, data_page_version=version, row_group_size=2000)
    with pq.ParquetFile(pa.BufferReader(data)) as file:
        check_size(file, data, num_rows=5000, row_bytes=32)
        for group, (num_rows, columns) in enumerate(parquet_bounds._columns(memoryview(data))):
            assert num_rows == file.metadata.row_group(group).num_rows
            assert len(columns) == file.metadata.num_columns
            for index, found in enumerate(columns):
                column = file.metadata.row_group(group).column(index)
                assert (found.name, found.num_values) == (column.path_in_schema, column.num_values)
                pages = list(parquet_bounds._pages(parquet_bounds._stored(found, memoryview(data)), name="x"))
                assert sum(page.num_values for page in pages if page.kind != 2) == column.num_values
                has_dictionary = [page.kind for page in pages].count(2)
                assert has_dictionary == column.has_dictionary_page
                if has_dictionary and column.path_in_schema in ("name", "same", "sha256", "ragged"):
                    longest = {"name": 31, "same": 64, "sha256": 64, "ragged": 24}[column.path_in_schema]
                    assert parquet_bounds._longest(pages[0], found) == longest


def test_a_table_without_rows_is_taken():
    check(parquet(table(10).slice(0, 0)), num_rows=0, row_bytes=32)


def test_rows_are_those_that_were_announced_and_fit_in_the_file():
    data = parquet(table(100))
    check(data, num_rows=100)
    with pytest.raises(ValueError, match="100 rows, 99 were announced"):
        check(data, num_rows=99)
    with pytest.raises(ValueError, match="100 rows in .* bytes, each of which takes 1000 or more"):
        check(data, row_bytes=1000)


def test_what_decodes_to_much_more_than_its_file_is_refused():
    data = parquet(pa.table({"a": pa.array(np.zeros(10_000_000, dtype=np.int64)), "b": np.zeros(10_000_000, dtype=np.int8)}))
    with pytest.raises(ValueError, match="column a decodes to more than"):
        check(data)
    # What is not read costs nothing.
    with pytest.raises(ValueError, match="column b decodes to more than"):
        check(data, columns=["b"])


def test_row_groups_that_are_read_one_by_one_count_alone():
    data = parquet(pa.table({"a": np.zeros(10_000_000, dtype=np.int64)}), row_group_size=1_000_000)
    check(data, group_by_group=True)
    with pytest.raises(ValueError, match="decodes to more than"):
        check(data)


def test_a_long_string_that_many_rows_name_is_reckoned_for_each():
    names = pa.DictionaryArray.from_arrays(np.zeros(5000, dtype=np.int32), pa.array(["x" * 50_000]))
    data = parquet(pa.table({"a": names}), store_schema=False)
    assert len(data) < 10_000
    with pytest.raises(ValueError, match="column a decodes to more than"):
        check(data)
    check(parquet(pa.table({"a": names.take(pa.array([0] * 10))}), store_schema=False))


def test_the_header_of_a_page_is_not_believed_to_be_the_footer():
    """A page may say more values than its column: Arrow goes by the page."""
    number = 1_000_000
    data = parquet(pa.table({"a": np.zeros(number, dtype=np.int64)}), use_dictionary=False, write_statistics=False)
    # 20,000 values a page, and a million, as Thrift writes them.
    assert data.count(b"\x2c\x15\xc0\xb8\x02") == 50
    changed = data.replace(b"\x2c\x15\xc0\xb8\x02", b"\x2c\x15\xc0\xff\x7f")
    with pq.ParquetFile(pa.BufferReader(changed)) as file:
        assert file.metadata.row_group(0).column(0).num_values == number
    check(data)
    with pytest.raises(ValueError, match="column a decodes to more than"):
        check(changed)


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        (b"\x15\x00\x15\x00", "IndexError"),
        (b"\x15\x00\x15\x00\x15\x00\x00", "field 5 is missing"),
        (b"\x15\x0c\x15\x00\x15\x00\x00", "KeyError"),
        (b"\x15\x00\x16\x00\x15\x00\x2c\x15\x00\x15\x00\x00\x00", "field 2 is of type 6, not 5"),
        (b"\x15\x00\x15\x00\x15\x01\x2c\x15\x00\x15\x00\x00\x00", "0 values of encoding 0"),
        (b"\x15\x00\x15\x00\x15\x00\x2c\x15\x00\x15\x0a\x00\x00", "encoding 5"),
        (b"\x15\x00\x15\x00\x15\x08\x2c\x15\x00\x15\x00\x00\x00", "its last page runs past its end"),
        (b"\x15\x00\x05\x02\x00", "do not ascend"),
        (b"\x15\x00\x1b\x00", "a field of type 11"),
        (b"\x19\xf5\xff\xff\xff\xff\x0f\x02\x02", "IndexError"),
        (b"\x19\x19" * 6, "lists inside each other"),
        (b"\x15" + b"\xff" * 5 + b"\x0f", "in 32 bits"),
        (b"\x15" + b"\xff" * 11, "more than ten bytes"),
        (b"\x1c" * 12, "structs inside each other"),
    ],
)
def test_headers_that_no_release_writes_are_refused(header, problem):
    with pytest.raises(ValueError, match=problem):
        list(parquet_bounds._pages(memoryview(header), name="x"))


@settings(max_examples=200)
@given(st.binary(max_size=60))
def test_any_bytes_are_pages_or_refused(data):
    with contextlib.suppress(ValueError):
        list(parquet_bounds._pages(memoryview(data), name="x"))


def test_what_arrow_reads_beyond_its_columns_is_refused():
    data = parquet(table(10))
    changed = data.replace(b"parquet-cpp-arrow", b"parquet-mr versio")
    with pytest.raises(ValueError, match="which no release uses"):
        check(changed)


_DAMAGED_FOOTERS = """
import sys
import pyarrow as pa
import pyarrow.parquet as pq
from storage.parquet_bounds import check_size

data = bytearray(sys.stdin.buffer.read())
footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
whole = 0
for at in range(footer, len(data) - 8):
    for value in (1, 2, 16):
        data[at] ^= value
        try:
            with pq.ParquetFile(pa.BufferReader(bytes(data))) as file:
                check_size(file, bytes(data))
                file.read(use_threads=False)
                whole += 1
        except (ValueError, OSError, pa.ArrowException):
            pass
        data[at] ^= value
print(whole)
"""


def test_no_damage_of_a_footer_ends_the_process():
    """pyarrow's own look at the columns of a footer does, where histograms of lists are of other lengths."""
    data = parquet(pa.table({"lists": pa.array([[1], [], [2, 3]]), "name": ["a", "b", "c"]}))
    found = subprocess.run([sys.executable, "-c", _DAMAGED_FOOTERS], input=data, capture_output=True, check=False)
    assert found.returncode == 0, found.stderr.decode()
    assert int(found.stdout) > 100
