"""Small files of a stranger that ask for much, all checksums right. `python -m tests.storage.hostile FOLDER` reads them in little memory."""

from __future__ import annotations

import functools
import io
import os
import resource
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from storage import standing
from storage.cache import Cache
from storage.errors import FormatError
from storage.filesystem import Store
from storage.hashing import digest
from storage.label_blocks import decode_label_block
from storage.label_runs.folder import RunFolder, RunInfo
from storage.label_set import Manifest
from storage.parts import decode_class_means
from storage.parts_table import PARTS_SCHEMA, read_parts_table
from storage.samples import decode_samples
from storage.sources import SourceMemo
from storage.specs import (
    CompactCodec,
    DenseCodec,
    ExactCodec,
    Float16Codec,
    HiddenStatesSpec,
    Int8Codec,
    SoftLabelsSpec,
    ThresholdCodec,
)
from storage.target_blocks import decode_target_block
from storage.upkeep import references
from tests.storage.blocks import block_bytes

SPACE_BYTES = 1 << 30
"""What reading may map, beyond what the process starts with."""
NUM_SAMPLES, TOKENS = 8000, 2000
NUM_ROWS = NUM_SAMPLES * TOKENS
MANY = 4_000_000
REQUEST = "0" * 64
PART = "0" * 32 + ".v00000-00001"
TEXTS = {
    "unit_name": "a",
    "unit_digest": REQUEST,
    "request": REQUEST,
    "tar_name": f"{PART}.{'0' * 16}.tar",
    "tar_sha256": REQUEST,
    "checksum": "0" * 16,
    "name": "a",
    "stat_token": "a",
    "digest": REQUEST,
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A file and what reads it; taken: it is whole, and needs little."""

    make: Callable
    read: Callable
    taken: bool = False


def runs(*pairs):
    """A zstd frame of so many equal bytes, one run after the other, and how many bytes it holds."""
    size = sum(count for _, count in pairs)
    packer = zstandard.ZstdCompressor(write_checksum=True).compressobj(size=size)
    frame = b""
    for value, count in pairs:
        piece = bytes([value]) * min(count, 1 << 22)
        for start in range(0, count, 1 << 22):
            frame += packer.compress(piece[: count - start])
    frame += packer.flush()
    # No stream is longer than what it stores.
    return (frame, size) if len(frame) < size else (b"".join(bytes([value]) * count for value, count in pairs), size)


def block(header, streams):
    table = [[name, size, len(frame)] for name, (frame, size) in streams.items()]
    return block_bytes({**header, "streams": table}, *(frame for frame, _ in streams.values()))


def samples(num_samples, keys):
    labels = dict.fromkeys((f"labels{plane}" for plane in range(4)), runs((0, num_samples)))
    return block({"kind": "samples", "num_samples": num_samples}, {"keys": keys, **labels})


def means(num_classes):
    logs = dict.fromkeys(("logs0", "logs1"), runs((0, num_classes)))
    return block({"kind": "class_means", "num_classes": num_classes}, logs)


def read_means(num_classes):
    return lambda data: decode_class_means(data, num_classes=num_classes, origin="here")


def labels(spec, streams, *, num_rows):
    header = {"kind": "soft_labels", "target": spec.to_json(), "view": 0, "first_sample": 0, "key_hash": "0" * 16}
    streams = {**streams, "view_digests": runs((0, 8 * -(-num_rows // 64)))}
    return block({**header, "num_samples": num_rows, "num_rows": num_rows}, streams)


def targets(target, streams):
    """A block of pictures with a row for each of many tokens."""
    header = {"kind": "targets", "target": target.to_json(), "view": 0, "first_sample": 0, "key_hash": "0" * 16}
    counts = {"num_samples": NUM_SAMPLES, "num_present": NUM_SAMPLES, "num_rows": NUM_ROWS, "tokens_per_picture": TOKENS}
    return block({**header, **counts}, {**streams, "view_digests": runs((0, NUM_SAMPLES // 8))})


def one_full_row(name, entries):
    """Planes of the numbers of entries: one in every row, and in the last one all there can be."""
    return {f"{name}0": runs((1, NUM_ROWS - 1), (entries & 255, 1)), f"{name}1": runs((0, NUM_ROWS - 1), (entries >> 8, 1))}


def compact():
    k = 65_535
    spec = SoftLabelsSpec(num_classes=2**20, k=k, codec=CompactCodec(), positions="all")
    entries = dict.fromkeys(("steps0", "levels"), runs((1, NUM_ROWS - 1 + k)))
    return targets(spec, {**one_full_row("counts", k), **entries, "rest": runs((0, NUM_ROWS))})


def threshold():
    shares = 255**2
    spec = SoftLabelsSpec(num_classes=2**20, k=None, codec=ThresholdCodec(levels=255), positions="all")
    counts = {f"counts{plane}": runs((shares >> 8 * plane & 255, NUM_ROWS - 1), (1 - plane, shares)) for plane in range(2)}
    steps = {"step_lengths": runs((0, NUM_ROWS - 1 + shares)), "step_bits": (b"", 0)}
    return targets(spec, {**one_full_row("entries", shares), **steps, **counts})


def exact():
    k = 65_535
    num_rows = 8000
    spec = SoftLabelsSpec(num_classes=2**16, k=k, codec=ExactCodec())
    entries = dict.fromkeys(("ids0", "ids1", "deltas0", "deltas1"), runs((0, num_rows * k)))
    return labels(spec, {**entries, **dict.fromkeys(("rest0", "rest1"), runs((0, num_rows)))}, num_rows=num_rows)


def vectors():
    target = HiddenStatesSpec(layers=(1, 2), tokens="all", width=32, codec=Float16Codec())
    plane = runs((0, 32 * NUM_ROWS))
    return targets(target, {f"{name}/{index}": plane for name in target.tensors for index in range(2)})


def groups_wider_than_rows():
    target = HiddenStatesSpec(layers=(1,), tokens="all", width=1, codec=Int8Codec(group=4096))
    return targets(target, {"hidden.1/values": runs((0, NUM_ROWS)), "hidden.1/scales": runs((0, 2 * NUM_ROWS))})


def classes_without_rows():
    spec = SoftLabelsSpec(num_classes=2**32, k=None, codec=DenseCodec())
    return labels(spec, {"logs0": (b"", 0), "logs1": (b"", 0)}, num_rows=0)


def repeated(name, kind, number):
    """A column of one value."""
    if pa.types.is_integer(kind):
        return pa.array(np.zeros(number, dtype=f"i{kind.bit_width // 8}")).cast(kind)
    if pa.types.is_struct(kind):
        return pa.StructArray.from_arrays(
            [repeated(one.name, one.type, number) for one in kind], names=[one.name for one in kind]
        )
    # Held as it will be written: a dictionary and run lengths.
    return pa.DictionaryArray.from_arrays(np.zeros(number, dtype=np.int32), pa.array([TEXTS[name]], type=kind))


def parquet(columns):
    """The file of a table, without a word of how it was held."""
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, compression="zstd", store_schema=False, write_statistics=False)
    return file.getvalue()


@functools.cache
def parts(*, num_parts, num_blocks):
    """A table of equal parts, all blocks in the last one."""
    *others, blocks = PARTS_SCHEMA
    columns = {field.name: repeated(field.name, field.type, num_parts) for field in others}
    offsets = np.append(np.zeros(num_parts, dtype=np.int32), np.int32(num_blocks))
    return parquet(
        {**columns, "blocks": pa.ListArray.from_arrays(offsets, repeated("blocks", blocks.type.value_type, num_blocks))}
    )


def read_parts(num_parts):
    return lambda data: read_parts_table(data, num_parts=num_parts, num_views=1, origin="here")


def run(number, *, part=PART):
    """A table of a run that makes one part again and again."""
    request, name, replaces = (
        pa.DictionaryArray.from_arrays(np.zeros(number, dtype=np.int32), pa.array([text])) for text in (REQUEST, part, "")
    )
    return parquet(
        {"request": request, "part": name, "num_rows": pa.array(np.zeros(number, dtype=np.int64)), "replaces": replaces}
    )


def read_run(number):
    def read(data):
        folder = RunFolder(store=Store("memory://hostile"), name="run")
        folder.store.write(f"{folder.path}/parts.parquet", data)
        return folder.parts(RunInfo.model_construct(num_parts=number, parts_sha256=digest(data)))

    return read


def read_standing(data):
    manifest = Manifest.model_construct(id="x", parts_file="parts", parts_sha256=digest(data), num_parts=MANY)
    cache = Cache.at("memory://hostile")
    cache.store.write("label_sets/x/parts", data)
    if standing._read_table(cache, manifest, columns=["unit_name", "request", "tar_name"]) is None:
        raise FormatError("here: no label set that stands")


def read_references(data):
    cache = Cache.at("memory://hostile")
    cache.store.write("table", data)
    return references._table_references(cache, "table", sha256=digest(data))


def memo(number, *, num_samples):
    """A memo of one entry again and again."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "memo"
        SourceMemo(str(path)).save([])
        schema = pq.read_schema(path)
    texts = {**TEXTS, "key_hashes": bytes(8 * num_samples)}
    columns = [
        repeated(field.name, field.type, number)
        if pa.types.is_integer(field.type)
        else pa.array([texts[field.name]] * number, type=field.type)
        for field in schema
    ]
    file = io.BytesIO()
    pq.write_table(pa.table(columns, schema=schema), file, compression="zstd", write_statistics=False)
    return file.getvalue()


def read_memo(data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "memo"
        path.write_bytes(data)
        if not list(SourceMemo(str(path)).entries()):
            raise FormatError("here: a memo that counts as empty")


def with_origin(decode):
    return lambda data: decode(data, origin="here")


CASES = {
    "keys of one sample": Case(make=lambda: samples(1, runs((0, 1 << 30))), read=with_origin(decode_samples)),
    "keys of some samples": Case(make=lambda: samples(1 << 14, runs((0, 1 << 28))), read=with_origin(decode_samples)),
    "samples without keys": Case(make=lambda: samples(1 << 24, runs((0, (1 << 24) - 1))), read=with_origin(decode_samples)),
    "class means": Case(make=lambda: means(1 << 30), read=read_means(10)),
    "announced class means": Case(make=lambda: means(1 << 30), read=read_means(1 << 30)),
    "a full row, compact": Case(make=compact, read=with_origin(decode_target_block)),
    "a full row, threshold": Case(make=threshold, read=with_origin(decode_target_block)),
    "entries of zeros": Case(make=exact, read=with_origin(decode_label_block)),
    "vectors of zeros": Case(make=vectors, read=with_origin(decode_target_block)),
    "groups wider than rows": Case(make=groups_wider_than_rows, read=with_origin(decode_target_block), taken=True),
    "classes without rows": Case(make=classes_without_rows, read=with_origin(decode_label_block), taken=True),
    "parts": Case(make=lambda: parts(num_parts=MANY, num_blocks=0), read=read_parts(MANY)),
    "blocks of a part": Case(make=lambda: parts(num_parts=1, num_blocks=8_000_000), read=read_parts(1)),
    "parts of a run": Case(make=lambda: run(20_000_000), read=read_run(20_000_000)),
    "names of a run's parts": Case(make=lambda: run(20_000, part="0" * 100_000), read=read_run(20_000)),
    "a label set that stands": Case(make=lambda: parts(num_parts=MANY, num_blocks=0), read=read_standing),
    "what a label set names": Case(make=lambda: parts(num_parts=MANY, num_blocks=0), read=read_references),
    "a memo": Case(make=lambda: memo(16, num_samples=1 << 22), read=read_memo),
}


def read_in_little_memory(name, data):
    """Say what came of a case, in a process of its own, since what was freed is not always given back."""
    sys.stdout.flush()
    if (child := os.fork()) != 0:
        os.waitpid(child, 0)
        return
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + SPACE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        CASES[name].read(data)
        found = "taken"
    except FormatError as error:
        found = f"refused: {error}"
    except Exception as error:  # what a reader does not declare
        found = f"{type(error).__name__}: {error}"
    sys.stdout.write(f"{name}\t{found[:200]}\n")
    sys.stdout.flush()
    os._exit(0)


def main(folder):
    """Read what lies in a folder, each file by the case of its name."""
    for file in sorted(folder.iterdir()):
        read_in_little_memory(file.name, file.read_bytes())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
