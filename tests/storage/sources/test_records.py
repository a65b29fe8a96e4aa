"""Bytes are cut into records wherever they come apart."""

from __future__ import annotations

import contextlib
import csv
import io
import tracemalloc

from hypothesis import example, given, settings
from hypothesis import strategies as st

from storage.config import DelimitedConfig
from storage.errors import SampleError, SourceError
from storage.sources.document_records import split_fields
from storage.sources.records import Record, RecordStyle, find_runs, iter_records


def records_of(data, *, sizes=(7,), **style):
    """Records of data that comes in pieces of these sizes, over and over."""
    pieces, position, turn = [], 0, 0
    while position < len(data):
        pieces.append(data[position : position + sizes[turn % len(sizes)]])
        position += len(pieces[-1])
        turn += 1
    return pieces, list(iter_records(pieces, style=RecordStyle(**style), max_record_bytes=10**6, url="x"))


@given(
    lines=st.lists(st.text(st.sampled_from('ab ,\t"\r猫'), max_size=9), max_size=12),
    ends_open=st.booleans(),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    run_records=st.integers(1, 5),
    skip_blank=st.booleans(),
)
@settings(max_examples=200)
def test_lines_and_runs_are_those_of_split(lines, ends_open, sizes, run_records, skip_blank):
    data = "\n".join(lines).encode() + (b"" if ends_open else b"\n")
    expected = [
        (number, line[:-1] if line.endswith(b"\r") else line)
        for number, line in enumerate(data.split(b"\n"), start=1)
        if not (skip_blank and not line.strip(b" \t\r"))
    ]
    if expected and expected[-1] == (data.count(b"\n") + 1, b"") and not data.split(b"\n")[-1]:
        expected.pop()
    pieces, found = records_of(data, sizes=sizes, skip_blank=skip_blank)
    assert [(record.line, record.data) for record in found] == expected
    for record in found:
        assert data[record.start : record.start + record.size_bytes].removesuffix(b"\r") == record.data
    runs = find_runs(pieces, style=RecordStyle(skip_blank=skip_blank), run_records=run_records, url="x")
    assert [run.num_records for run in runs] == [len(found[i : i + run_records]) for i in range(0, len(found), run_records)]
    again = []
    for run in runs:
        of_run = iter_records(
            [data[run.start : run.end]],
            style=RecordStyle(skip_blank=skip_blank),
            max_record_bytes=10**6,
            url="x",
            start=run.start,
            line=run.line,
        )
        again += list(of_run)
    assert again == found


@given(
    rows=st.lists(st.lists(st.text(st.sampled_from('ab,"\n\r '), max_size=6), min_size=2, max_size=3), min_size=1, max_size=8),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    run_records=st.integers(1, 4),
)
@settings(max_examples=200)
def test_quoted_records_are_cut_where_their_quotes_close(rows, sizes, run_records):
    quoted = [",".join('"' + field.replace('"', '""') + '"' for field in row) for row in rows]
    data = ("\n".join(quoted) + "\n").encode()
    pieces, found = records_of(data, sizes=sizes, quoted_by=b",", skip_blank=True)
    assert [record.data.decode() for record in found] == quoted
    assert [record.line for record in found] == [1 + sum(line.count("\n") + 1 for line in quoted[:i]) for i in range(len(rows))]
    runs = find_runs(pieces, style=RecordStyle(quoted_by=b",", skip_blank=True), run_records=run_records, url="x")
    assert [run.start for run in runs] == [record.start for record in found[::run_records]]
    assert [run.line for run in runs] == [record.line for record in found[::run_records]]


@given(
    text=st.text(st.sampled_from('ab,"\n '), max_size=60),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    with_mark=st.booleans(),
)
@settings(max_examples=1000)
@example(text='a 5" pipe,1\nb,0\nc 6" pipe,0\n"d\nd",1\n', sizes=[50], with_mark=False)
@example(text='"a\n""b",1\n', sizes=[1], with_mark=True)
def test_a_quote_opens_only_where_a_field_starts(text, sizes, with_mark):
    """As Python's csv module reads the same text, whatever stands in it."""
    rows = csv.reader(io.StringIO(text, newline=""))
    expected = [(row, rows.line_num) for row in rows if row]
    data = (b"\xef\xbb\xbf" if with_mark else b"") + text.encode()
    try:
        _, found = records_of(data, sizes=sizes, quoted_by=b",", skip_blank=False)
    except SourceError:
        # The csv module takes what stands behind a quote that never closes for one field.
        assert expected[-1][1] == len(text.splitlines())
        return
    found = [record for record in found if record.data]
    assert [record.line + record.data.count(b"\n") for record in found] == [last for _, last in expected]
    config = DelimitedConfig(kind="delimited", path="x", delimiter=",", quoting="standard")
    for record, (row, _) in zip(found, expected, strict=True):
        with contextlib.suppress(SampleError):
            assert [field.decode() for field in split_fields(record.data, config=config)] == row


def test_a_record_that_is_too_long_is_never_held():
    def chunks():
        yield b"short\n"
        for _ in range(64):
            yield bytes(1 << 20)
        yield b"\nend"

    tracemalloc.start()
    found = list(iter_records(chunks(), style=RecordStyle(), max_record_bytes=2 << 20, url="x"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found[0].data == b"short"
    assert found[1] == Record(line=2, start=6, size_bytes=64 << 20, data=None)
    assert found[2].data == b"end"
    assert peak < 24 << 20
