"""Whatever bytes a decoder is given, also with every checksum put right: rows that keep their promises, or an error of ours."""

from __future__ import annotations

import io
import json
import struct
import tracemalloc
import uuid

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from storage.blocks import decode_block, encode_block
from storage.cache import Cache
from storage.errors import DecantError
from storage.hashing import canonical_json, digest, seal, unseal
from storage.heads import apply_head, decode_head, encode_head
from storage.label_blocks import decode_label_block
from storage.label_set import LabelSet
from storage.parts import PartRecord, decode_class_means, encode_class_means
from storage.parts_table import PARTS_SCHEMA, read_parts_table
from storage.samples import SampleTable, decode_samples, encode_samples
from storage.soft_labels import SoftLabels
from storage.sources import index_source
from storage.specs import CompactCodec, ExactCodec, RequestSpec, SoftLabelsSpec
from storage.streams.label_stream import LabelStream
from storage.target_blocks import decode_target_block
from storage.verify import verify
from tests.contracts.codec_contract import check_rows
from tests.storage.blocks import block_bytes, sealed
from tests.storage.caches import make_labeller, make_request, read_tree
from tests.storage.heads import HEADS, make_head
from tests.storage.streams.test_label_stream import read_all
from tests.storage.targets import OF_PICTURES, TARGETS
from tests.storage.test_label_blocks import make_block
from tests.storage.test_target_blocks import make_picture_block, make_text_block

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 5)
    | st.sampled_from(
        [2**31 - 1, 2**31, 2**32, 2**63, -(2**63), 10**40, 0.5, -0.0, 1e300, "", "0", "exact", "compact", "\0", "\ud800", "../x"]
    )
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["kind", "k", "codec", "x"]), inner, max_size=3),
    max_leaves=5,
)
SPECS = [
    SoftLabelsSpec(num_classes=10, k=3, codec=CompactCodec()),
    SoftLabelsSpec(num_classes=1000, k=5, codec=ExactCodec()),
    SoftLabelsSpec(num_classes=2**32, k=2, codec=CompactCodec(levels=9)),
    SoftLabelsSpec(num_classes=300, k=None, codec=CompactCodec(levels=31)),
    SoftLabelsSpec(num_classes=70_000, k=300, codec=CompactCodec()),
]
LABEL_BLOCKS = [make_block([True, False, True, True, True], spec=spec)[0] for spec in SPECS]
LABEL_BLOCKS.append(make_block([True] * 70)[0])
RENAMED = ["ids0", "steps0", "steps1", "steps3", "present", "rest", "x", "tokens0", "hidden.0/values", "hidden.2/0", "0.weight/0"]
TABLE = encode_samples(SampleTable(keys=("a/1", "b/ü", "c"), labels=np.array([3, -1, 2**32 - 2])))
MEANS = encode_class_means(np.array([0.5, 0.25, 0.0, 0.25]))


def decode_labels(data):
    block = decode_label_block(data, origin="here")
    check_rows(block.soft_labels, num_rows=len(block.positions), spec=_spec_of(data))
    assert len(block.view_digests) == len(block.positions) <= block.num_samples
    assert (np.diff(block.positions) > 0).all()
    assert ((block.positions >= block.first_sample) & (block.positions < block.first_sample + block.num_samples)).all()
    assert 0 <= block.key_hash < 2**64


def _spec_of(data):
    return SoftLabelsSpec.model_validate_json(json.dumps(header_of(data)["target"]))


def decode_table(data):
    table = decode_samples(data, origin="here")
    assert len(table.keys) == len(table.labels)
    assert (table.labels >= -1).all()


def decode_means(data):
    means = decode_class_means(data, num_classes=4, origin="here")
    assert ((means >= 0) & (means <= 1.001)).all()


def decode_targets(data):
    block = decode_target_block(data, origin="here")
    assert (np.diff(block.positions) > 0).all()
    assert ((block.positions >= block.first_sample) & (block.positions < block.first_sample + block.num_samples)).all()
    assert 0 <= block.key_hash < 2**64
    assert len(block.row_offsets) == len(block) + 1
    assert (np.diff(block.row_offsets) >= 0).all()
    assert block.row_offsets[-1] == len(block.values)
    if block.tokens is None:
        assert len(block.view_digests) == len(block)
    else:
        assert len(block.tokens) == len(block)
        block.tokens.check(vocabulary_size=header_of(data)["vocabulary_size"])
        assert len(block.tokens.inputs()) == len(block.tokens.token_ids)
    if isinstance(block.values, SoftLabels):
        check_rows(block.values, num_rows=len(block.values), spec=block.target)
        return
    assert {name: values.shape for name, values in block.values.tensors.items()} == {
        name: (len(block.values), width) for name, width in block.target.tensors.items()
    }
    assert all(np.isfinite(values).all() for values in block.values.tensors.values())


def decode_frozen_head(data):
    head = decode_head(data, origin="here")
    head.check()
    with np.errstate(all="ignore"):
        logits = apply_head(head, np.ones((2, head.spec.width), dtype=np.float16))
    assert logits.shape == (2, head.spec.num_outputs)


DECODERS = (decode_labels, decode_table, decode_means, decode_targets, decode_frozen_head)
VALID = [
    *((decode_labels, data) for data in LABEL_BLOCKS),
    (decode_table, TABLE),
    (decode_means, MEANS),
    *((decode_targets, make_text_block(name, [True, False, True, True])[0]) for name in TARGETS),
    *((decode_targets, make_picture_block(name, [True, False, True])[0]) for name in OF_PICTURES),
    *((decode_frozen_head, encode_head(make_head(spec))) for spec in HEADS),
]


def outcome(action, *, origin):
    """What an action returns, or None where it refuses with an error of ours that says where; anything else fails the test."""
    try:
        return action()
    except DecantError as error:
        message = str(error)
    assert message.startswith(origin)
    return None


def survives(decode, data):
    """Whether bytes decode, to something that keeps its promises then."""
    return outcome(lambda: decode(data) or True, origin="here: ") is True


def header_of(data):
    (length,) = struct.unpack("<I", data[8:12])
    return json.loads(data[12 : 12 + length])


def streams_of(data):
    limits = {name: raw for name, raw, _ in header_of(data)["streams"]}
    return decode_block(data, origin="here", read_header=lambda header: (header, limits))


@st.composite
def mutated(draw, data):
    """Bytes with a few of them changed, taken out, put in or said twice."""
    found = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(len(found) - 1, 0)))
        match draw(st.sampled_from(["flip", "set", "cut", "insert", "repeat"])):
            case "flip":
                found[place : place + 1] = bytes([found[place] ^ 1 << draw(st.integers(0, 7))]) if found else b""
            case "set":
                found[place : place + 1] = bytes([draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255))])
            case "cut":
                del found[place : place + draw(st.integers(1, 20))]
            case "insert":
                found[place:place] = draw(st.binary(min_size=1, max_size=5))
            case _:
                found[place:place] = found[place : place + 9]
    return bytes(found)


@st.composite
def replaced(draw, value):
    """JSON data with a value somewhere inside it replaced, dropped or added to."""
    if isinstance(value, dict) and value and draw(st.integers(0, 4)):
        key = draw(st.sampled_from(sorted(value)))
        match draw(st.sampled_from(["inside", "inside", "inside", "drop", "add"])):
            case "drop":
                return {name: inner for name, inner in value.items() if name != key}
            case "add":
                return {**value, draw(st.text(max_size=4)): draw(JSON)}
        return {**value, key: draw(replaced(value[key]))}
    if isinstance(value, list) and value and draw(st.integers(0, 4)):
        place = draw(st.integers(0, len(value) - 1))
        return [*value[:place], draw(replaced(value[place])), *value[place + draw(st.integers(0, 1)) :]]
    if isinstance(value, int) and draw(st.booleans()):
        return value + draw(st.sampled_from([-1, 1, -8, 8, 256, 2**31, 2**32]))
    return draw(JSON)


def test_what_is_mutated_is_valid():
    for decode, data in VALID:
        assert survives(decode, data)


@settings(max_examples=250)
@given(st.data(), st.sampled_from(VALID))
def test_mutated_blocks(data, valid):
    decode, whole = valid
    changed = data.draw(mutated(whole))
    assert survives(decode, changed) == (changed == whole)


@settings(max_examples=300)
@given(st.data(), st.sampled_from(VALID))
def test_mutated_blocks_with_the_right_checksum(data, valid):
    decode, whole = valid
    survives(decode, sealed(data.draw(mutated(whole[:-8]))))


@settings(max_examples=300)
@given(st.data(), st.sampled_from(VALID))
def test_blocks_with_another_header(data, valid):
    decode, whole = valid
    (length,) = struct.unpack("<I", whole[8:12])
    survives(decode, block_bytes(data.draw(replaced(header_of(whole))), whole[12 + length : -8]))


@settings(max_examples=300)
@given(st.data(), st.sampled_from(VALID))
def test_blocks_with_other_streams(data, valid):
    # Below the compression, where the values are.
    decode, whole = valid
    header, streams = streams_of(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(sorted(streams)))
        match data.draw(st.sampled_from(["mutate", "mutate", "mutate", "fill", "drop", "rename", "swap"])):
            case "mutate":
                streams[name] = np.frombuffer(data.draw(mutated(streams[name].tobytes())), dtype=np.uint8)
            case "fill":
                streams[name] = np.full(
                    len(streams[name]), data.draw(st.sampled_from([0, 1, 0x7C, 0x7F, 0x80, 0xFF])), dtype=np.uint8
                )
            case "drop":
                streams.pop(name)
            case "rename":
                streams[data.draw(st.sampled_from(RENAMED))] = streams.pop(name)
            case _:
                other = data.draw(st.sampled_from(sorted(streams)))
                streams[name], streams[other] = streams[other], streams[name]
        if not streams:
            break
    survives(decode, encode_block(header, streams))


@settings(max_examples=200)
@given(st.binary(max_size=300), st.sampled_from(DECODERS))
def test_any_bytes(data, decode):
    for form in (data, b"DECANT\0\1" + data, sealed(b"DECANT\0\1" + data)):
        assert not survives(decode, form)


def test_refusing_costs_little_memory():
    rng = np.random.default_rng(0)
    headers = []
    for decode, whole in VALID:
        header = header_of(whole)
        for name in ("num_rows", "num_samples", "num_classes", "num_present", "num_tokens", "num_masked", "vocabulary_size"):
            for value in (4096, 2**24, 2**32, 2**40):
                if name in header:
                    headers.append((decode, whole, {**header, name: value}))
        if decode is not decode_labels:
            continue
        for k in (65535, None):
            target = {
                "kind": "soft_labels",
                "num_classes": 2**32,
                "k": k,
                "codec": {"kind": "compact"},
                "generation_temperature": 1.0,
            }
            for size in (1, 2**20, 2**30, 2**40):
                streams = [[name, size, min(stored, size)] for name, _, stored in header["streams"]]
                counts = {"num_rows": 4096, "num_samples": 4096, "num_classes": 2**32}
                headers.append((decode, whole, {**header, **counts, "target": target, "streams": streams}))
    tracemalloc.start()
    try:
        for decode, whole, header in headers:
            (length,) = struct.unpack("<I", whole[8:12])
            survives(decode, block_bytes(header, whole[12 + length : -8], rng.bytes(100)))
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def labeller(tmp_path_factory):
    dead = frozenset({("ant/001.jpg", None), ("bee/007.jpg", 1)})
    return make_labeller(tmp_path_factory.mktemp("fuzz"), url=f"memory://{uuid.uuid4().hex}", dead=dead)


@pytest.fixture(scope="module")
def record(labeller):
    return labeller.make_part(index_source(labeller.source).units[0], first_view=0, num_views=2)[1].to_bytes()


@settings(max_examples=200)
@given(st.data())
def test_mutated_records(record, data):
    changed = data.draw(mutated(record))
    for form in (changed, seal(changed)):
        found = outcome(lambda form=form: PartRecord.from_bytes(form, origin="here"), origin="here: ")
        assert found is None or found.to_bytes() == record


@settings(max_examples=300)
@given(st.data())
def test_records_with_other_fields_and_the_right_seal(record, data):
    changed = data.draw(replaced(json.loads(unseal(record))))
    found = outcome(lambda: PartRecord.from_bytes(seal(canonical_json(changed)), origin="here"), origin="here: ")
    if found is not None:
        assert PartRecord.from_bytes(found.to_bytes(), origin="here") == found


@settings(max_examples=200)
@given(st.data())
def test_requests_with_other_fields(data):
    changed = canonical_json(data.draw(replaced(make_request().to_json())))
    cache = Cache.at("memory://fuzz-requests")
    cache.store.write(f"requests/{digest(changed)}/spec.json", changed)
    found = outcome(lambda: cache.request(digest(changed)), origin="memory://fuzz-requests/requests/")
    assert found is None or isinstance(found, RequestSpec)


@settings(max_examples=150)
@given(data=st.data())
def test_names_with_other_bytes(data):
    cache = Cache.at("memory://fuzz-names")
    body = b'{"label_set":"0123456789abcdef0123456789abcdef","name":"x"}'
    cache.store.write("names/x.json", data.draw(mutated(seal(body)) | mutated(body).map(seal)))
    assert outcome(lambda: LabelSet.open(cache, name_or_id="x"), origin="memory://fuzz-names") is None


def use(cache, source):
    """Do all that a person does with a label set."""
    label_set = LabelSet.open(cache, name_or_id="tiny")
    label_set.class_means()
    verify(label_set)
    stream = LabelStream(label_set, source=source)
    for epoch in range(min(label_set.manifest.num_views, 3)):
        read_all(stream, epoch=epoch)


@pytest.fixture(scope="module")
def pristine(labeller):
    labeller.label()
    return read_tree(labeller.cache.store.url)


def is_used_or_refused(labeller, pristine, *, name, data):
    store = labeller.cache.store
    store.write(name, data)
    try:
        outcome(lambda: use(labeller.cache, labeller.source), origin="")
    finally:
        store.write(name, pristine[name])


@settings(max_examples=150)
@given(data=st.data())
def test_manifests_with_other_fields_and_the_right_seal(labeller, pristine, data):
    name = next(name for name in pristine if name.endswith("manifest.json"))
    changed = data.draw(replaced(json.loads(unseal(pristine[name]))))
    is_used_or_refused(labeller, pristine, name=name, data=seal(canonical_json(changed)))


@settings(max_examples=150)
@given(data=st.data())
def test_tables_of_parts_with_other_values_and_the_right_digest(labeller, pristine, data):
    manifest_name = next(name for name in pristine if name.endswith("manifest.json"))
    manifest = json.loads(unseal(pristine[manifest_name]))
    rows = read_parts_table(
        pristine[f"{manifest_name.rpartition('/')[0]}/{manifest['parts_file']}"], num_parts=3, num_views=2, origin="here"
    ).to_pylist()
    place = data.draw(st.integers(0, len(rows) - 1))
    changed = data.draw(replaced(rows[place]))
    try:
        table = pa.Table.from_pylist([*rows[:place], changed, *rows[place + 1 :]], schema=PARTS_SCHEMA)
    except (pa.ArrowException, ValueError, TypeError, AttributeError, OverflowError):
        reject()  # no table of these columns can say this
    file = io.BytesIO()
    pq.write_table(table, file)
    name = f"{manifest_name.rpartition('/')[0]}/parts-fuzz.parquet"
    labeller.cache.store.write(name, file.getvalue())
    body = canonical_json({**manifest, "parts_file": "parts-fuzz.parquet", "parts_sha256": digest(file.getvalue())})
    is_used_or_refused(labeller, pristine, name=manifest_name, data=seal(body))
