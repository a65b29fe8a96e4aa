"""The container of named streams: damage and lies are refused before they cost anything."""

from __future__ import annotations

import json
import struct
import threading
import tracemalloc

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.blocks import MAX_HEADER_BYTES, MAX_STREAM_BYTES, decode_block, encode_block
from storage.errors import FormatError
from tests.storage.blocks import block_bytes, sealed

STREAMS = {
    "flat": np.zeros(300, dtype=np.uint8),
    "noise": np.random.default_rng(0).integers(0, 256, size=40, dtype=np.uint8),
    "empty": np.zeros(0, dtype=np.uint8),
}
HEADER = {"kind": "test", "text": "ä", "number": 3}
LIMITS = {name: len(values) for name, values in STREAMS.items()}


def decode(data, *, limits=LIMITS):
    return decode_block(data, origin="here", read_header=lambda header: (header, limits))


def test_header_and_streams_come_back():
    data = encode_block(HEADER, STREAMS)
    for form in (data, memoryview(data)):
        header, streams = decode(form)
        assert header == HEADER
        assert list(streams) == list(STREAMS)
        for name, values in STREAMS.items():
            assert streams[name].dtype == np.uint8
            assert np.array_equal(streams[name], values)
    assert encode_block(dict(reversed(HEADER.items())), STREAMS) == data
    assert len(data) < 300


@given(
    st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text(), max_size=5),
    st.dictionaries(st.text(max_size=9), st.binary(max_size=200), max_size=5),
)
def test_any_header_and_any_bytes_come_back(header, streams):
    header.pop("streams", None)
    arrays = {name: np.frombuffer(data, dtype=np.uint8) for name, data in streams.items()}
    found_header, found = decode(encode_block(header, arrays), limits=dict.fromkeys(streams, 200))
    assert found_header == header
    assert {name: values.tobytes() for name, values in found.items()} == streams


def test_layout_is_magic_length_json_streams_checksum():
    data = encode_block({"kind": "x"}, {"a": np.uint8([1, 2, 3]), "b": np.zeros(1000, dtype=np.uint8)})
    (length,) = struct.unpack("<I", data[8:12])
    head = json.loads(data[12 : 12 + length])
    assert data[:8] == b"DECANT\0\1"
    assert head == {"kind": "x", "streams": [["a", 3, 3], ["b", 1000, head["streams"][1][2]]]}
    assert data[12 : 12 + length] == json.dumps(head, sort_keys=True, separators=(",", ":")).encode()
    body = data[12 + length : -8]
    assert body[:3] == b"\1\2\3"
    assert len(body[3:]) == head["streams"][1][2]
    assert zstandard.get_frame_parameters(body[3:]).has_checksum
    assert zstandard.decompress(body[3:]) == bytes(1000)
    assert sealed(data[:-8]) == data


def test_every_flipped_bit_is_refused():
    data = encode_block(HEADER, STREAMS)
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError, match="^here: "):
            decode(bytes(damaged))


def test_every_truncation_and_extension_is_refused():
    data = encode_block(HEADER, STREAMS)
    for length in range(len(data)):
        with pytest.raises(FormatError, match="^here: "):
            decode(data[:length])
        with pytest.raises(FormatError, match="^here: "):
            decode(data[length + 1 :])
    for more in (b"\0", data):
        with pytest.raises(FormatError, match="^here: "):
            decode(data + more)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "0 bytes are too few"),
        (b"PK\3\4 something else that is long enough", "not a block; it starts with b'PK"),
        (block_bytes({"streams": []}, magic=b"DECANT\1\1"), "not a block"),
        (block_bytes({"streams": []}, magic=b"DECANT\0\2"), "container version 2, this release reads 1; upgrade decant"),
        (sealed(b"DECANT\0\1" + struct.pack("<I", 2**32 - 1)), "header of 4294967295 bytes"),
        (sealed(b"DECANT\0\1" + struct.pack("<I", 100) + b"{}"), "header of 100 bytes in a block of 22"),
        (block_bytes(b" " * MAX_HEADER_BYTES + b"{}"), "header of 65538 bytes"),
        (block_bytes(b"{"), "not JSON"),
        (block_bytes(b"\xff\xfe\xfd"), "not JSON"),
        (block_bytes(b'{"streams": [], "x": ' + b"9" * 5000 + b"}"), "not JSON"),
        (block_bytes(b'{"streams": [' + b"[" * 900 + b"]" * 900 + b"]}"), "902 brackets"),
        (block_bytes([]), "names no streams"),
        (block_bytes({"kind": "x"}), "names no streams"),
        (block_bytes({"streams": {}}), "names no streams"),
        (block_bytes({"streams": [7]}), "stream entry 7"),
        (block_bytes({"streams": [["flat", 3]]}), "stream entry"),
        (block_bytes({"streams": [[3, 3, 3]]}), "stream entry"),
        (block_bytes({"streams": [["flat", 1, 1], ["flat", 1, 1]]}, b"ab"), "stream entry"),
        (block_bytes({"streams": [["flat", True, 1]]}, b"a"), "announces True bytes in 1"),
        (block_bytes({"streams": [["flat", 1.0, 1]]}, b"a"), "announces 1.0 bytes in 1"),
        (block_bytes({"streams": [["flat", -1, -1]]}), "announces -1 bytes in -1"),
        (block_bytes({"streams": [["flat", 1, 2]]}, b"ab"), "announces 1 bytes in 2"),
        (block_bytes({"streams": [["flat", 2**40, 2**40]]}), "of 1099511627776 bytes is more than its rows allow"),
        (block_bytes({"streams": [["flat", 2**40, 5]]}, b"abcde"), "of 1099511627776 bytes is more than its rows allow"),
        (block_bytes({"streams": [["flat", 301, 301]]}, bytes(301)), "of 301 bytes is more than its rows allow"),
        (block_bytes({"streams": [["other", 1, 1]]}, b"a"), "'other' of 1 bytes is more than its rows allow"),
        (block_bytes({"streams": [["flat", 9, 9]]}, b"a"), "runs past the end"),
        (block_bytes({"streams": [["flat", 1, 1]]}, b"abc"), "2 bytes belong to no stream"),
        (block_bytes({"streams": [["flat", 9, 4]]}, b"abcd"), "zstd"),
    ],
)
def test_what_no_release_writes_is_refused(data, problem):
    with pytest.raises(FormatError, match=problem):
        decode(data)


def frame(raw, *, size=True, checksum=True):
    return zstandard.ZstdCompressor(write_content_size=size, write_checksum=checksum).compress(raw)


def test_frames_that_disagree_with_the_header_are_refused():
    whole = frame(bytes(300))
    damaged = bytes([*whole[:-4], whole[-4] ^ 1, *whole[-3:]])
    for body, problem in [
        (frame(bytes(299)), "other than 300 bytes"),
        (frame(bytes(300), size=False), "other than 300 bytes"),
        (damaged, "zstd"),
        (whole[:-1], "zstd"),
        (whole + b"\0", "zstd"),
        (whole + frame(b"more"), "zstd"),
    ]:
        with pytest.raises(FormatError, match=problem):
            decode(block_bytes({"streams": [["flat", 300, len(body)]]}, body))
    assert decode(block_bytes({"streams": [["flat", 300, len(whole)]]}, whole))[1]["flat"].tolist() == [0] * 300


def test_a_bomb_costs_no_memory():
    bomb = frame(bytes(1 << 26))
    assert len(bomb) < 1 << 13
    lies = [
        block_bytes({"streams": [["flat", 1 << 26, len(bomb)]]}, bomb),
        block_bytes({"streams": [["flat", 300, 299]]}, bomb[:299]),
        block_bytes({"streams": [["flat", 2**40, len(bomb)]]}, bomb),
    ]
    tracemalloc.start()
    try:
        for data in lies:
            with pytest.raises(FormatError):
                decode(data)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_no_stream_exceeds_what_one_allocation_may_take():
    data = block_bytes({"streams": [["flat", MAX_STREAM_BYTES + 1, 1]]}, b"a")
    with pytest.raises(FormatError, match="more than its rows allow"):
        decode(data, limits={"flat": 2**40})


def test_headers_that_no_reader_takes_are_not_written():
    for header in ({"text": "x" * MAX_HEADER_BYTES}, {"list": [[]] * 300}):
        with pytest.raises(FormatError, match="a block header of"):
            encode_block(header, {})


@settings(max_examples=300)
@given(st.binary(max_size=400), st.booleans(), st.booleans())
def test_any_bytes_are_refused(data, with_magic, with_checksum):
    data = b"DECANT\0\1" + data if with_magic else data
    data = sealed(data) if with_checksum else data
    with pytest.raises(FormatError):
        decode(data)


def test_threads_encode_and_decode_alike():
    found = []

    def work():
        for _ in range(20):
            data = encode_block(HEADER, STREAMS)
            decode(data)
            found.append(data)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 160
    assert set(found) == {encode_block(HEADER, STREAMS)}
