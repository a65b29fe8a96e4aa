"""TSV and CSV as documents."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.config import DelimitedConfig
from storage.errors import SourceError
from storage.sources.document_records import split_fields
from tests.storage.sources.texts import COMPRESS, samples_of, source, written

SHARED_DATA = Path(__file__).parents[3].parent / "shared" / "data"


def table(tmp_path, data, name="a.tsv", **kwargs):
    return written(tmp_path, name, data, "delimited", **kwargs)


def test_quotes_are_left_alone_by_default(tmp_path):
    samples = samples_of(table(tmp_path, b'text\tlabel\n"half a quote\t1\n""two"" and \'one\'\t0\n', label_column="label"))
    assert [(sample.key, sample.data, sample.label) for sample in samples] == [
        ("a.tsv:2", b'"half a quote', 1),
        ("a.tsv:3", b'""two"" and \'one\'', 0),
    ]


def test_standard_quoting(tmp_path):
    data = b'label,text\r\n1,"a ""b"", c\nsecond line"\r\n0,plain\xff\r\n\r\n2,"\xff"\r\n'
    opened = table(tmp_path, data, "a.csv", delimiter=",", quoting="standard", label_column="label", unit_size=1)
    assert [unit.locator["line"] for unit in opened.units()] == [2, 4, 5]
    samples = samples_of(opened)
    assert [(sample.key, sample.data, sample.label) for sample in samples] == [
        ("a.csv:2", b'a "b", c\nsecond line', 1),
        ("a.csv:4", b"plain\xff", 0),
        ("a.csv:6", b"\xff", 2),
    ]


@given(fields=st.lists(st.text(st.sampled_from('ab,"\n\r;'), max_size=8), min_size=1, max_size=5), all_quoted=st.booleans())
def test_fields_are_those_of_the_csv_module(fields, all_quoted):
    config = DelimitedConfig(kind="delimited", path="x", delimiter=",", quoting="standard")
    file = io.StringIO()
    csv.writer(file, quoting=csv.QUOTE_ALL if all_quoted else csv.QUOTE_MINIMAL).writerow(fields)
    assert split_fields(file.getvalue().removesuffix("\r\n").encode(), config=config) == [field.encode() for field in fields]


def test_quoted_fields_may_be_long(tmp_path):
    long = b"x, " * 100_000
    opened = table(tmp_path, b'text,label\n"' + long + b'",0\n', "a.csv", delimiter=",", quoting="standard")
    assert [sample.data for sample in samples_of(opened)] == [long]


def test_a_quote_that_never_closes_is_refused(tmp_path):
    data = b"text,label\na,0\n" + b'"b,1\n' + b"c,0\n" * 50
    with pytest.raises(SourceError, match=r"a.csv: a quote that opens behind line 2 never closes.*source.quoting: none"):
        table(tmp_path, data, "a.csv", delimiter=",", quoting="standard").units()
    opened = table(tmp_path, gzip.compress(data), "a.csv.gz", delimiter=",", quoting="standard")
    with pytest.raises(SourceError, match=r"in the record on line 3 never closes"):
        list(opened.read(opened.units()[0]))


def test_records_that_are_not_as_the_header_says_are_bad_samples(tmp_path):
    data = b'text,label\na,0\nb\nc,1,2\nd "quoted" late,0\n"e" x,0\nf,\n'
    samples = samples_of(table(tmp_path, data, "a.csv", delimiter=",", quoting="standard", label_column="label"))
    assert [sample.data for sample in samples] == [b"a", None, None, b'd "quoted" late', None, None]
    messages = ("1 fields in place of 2", "3 fields in place of 2", "not quoted as in CSV", '"" is no integer')
    for sample, message in zip([samples[1], samples[2], samples[4], samples[5]], messages, strict=True):
        assert message in sample.error


@pytest.mark.parametrize("suffix", COMPRESS)
def test_files_without_a_header(tmp_path, suffix):
    # AG News: class, title, description; classes are called 1 to 4.
    data = COMPRESS[suffix](b'"3","Title","Text, one"\n"1","Title","Two"\n')
    opened = table(
        tmp_path,
        data,
        f"a.csv{suffix}",
        delimiter=",",
        quoting="standard",
        columns=("class", "title", "text"),
        label_column="class",
        key_column="text",
        classes=("1", "2", "3", "4"),
    )
    assert [(sample.key, sample.label, sample.data) for sample in samples_of(opened)] == [
        ("Text, one", 2, b"Text, one"),
        ("Two", 0, b"Two"),
    ]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"text_column": "sentense"}, r"the header of .*a.tsv has no column 'sentense', only \[\"sentence\", .*'sentence'"),
        ({"text_column": "sentence", "label_column": "y"}, "no column 'y'.*source.label_column"),
        ({"text_column": "sentence", "key_column": "z"}, "no column 'z'.*source.key_column"),
        ({"text_column": "sentence", "label_column": "n"}, "more than one column 'n'"),
        ({"columns": ("a", "b"), "text_column": "sentence"}, "source.columns has no column 'sentence'"),
    ],
)
def test_columns_that_are_not_there(tmp_path, kwargs, message):
    with pytest.raises(SourceError, match=message):
        table(tmp_path, b"sentence\tn\tn\nx\t1\t2\n", **kwargs).units()


def test_an_empty_table_has_no_header(tmp_path):
    with pytest.raises(SourceError, match="is empty, but its first record should name the columns"):
        table(tmp_path, b"").units()
    with pytest.raises(SourceError, match="hold no document"):
        table(tmp_path, b"text\tlabel\n").units()


def test_the_header_may_hold_a_mark_and_line_ends(tmp_path):
    data = b'\xef\xbb\xbf"text","a\nb"\nx,1\ny,2\n'
    opened = table(tmp_path, data, "a.csv", delimiter=",", quoting="standard", label_column="a\nb", unit_size=1)
    assert [(sample.key, sample.label) for sample in samples_of(opened)] == [("a.csv:3", 1), ("a.csv:4", 2)]


@pytest.mark.skipif(not (SHARED_DATA / "sst2").is_dir(), reason="the shared data folder is not here, so SST-2 was not read")
def test_sst2_as_it_is():
    opened = source(
        SHARED_DATA / "sst2", "delimited", text_column="sentence", label_column="label", classes=("negative", "positive")
    )
    units = opened.units()
    assert [unit.name for unit in units] == ["dev.tsv.gz", "test.tsv.gz", "train.tsv.gz"]
    assert [index_source_of(opened, unit) for unit in units[:2]] == [(6735, 3741), (872, 444)]
    first = next(iter(opened.read(units[0])))
    assert (first.key, first.label, first.data) == ("dev.tsv:2", 1, b"the expressive power of the camera ")


def index_source_of(opened, unit):
    """(documents, positive ones), every one of them readable."""
    samples = list(opened.read(unit))
    assert all(sample.error is None and sample.data.decode().strip() for sample in samples)
    return len(samples), sum(sample.label for sample in samples)
