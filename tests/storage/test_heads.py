"""A teacher's head as data: the same numbers, the same name, and no other bytes."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from storage.blocks import encode_block
from storage.cache import Cache
from storage.errors import CorruptError, FormatError
from storage.heads import (
    Activation,
    FrozenHead,
    HeadSpec,
    LayerNorm,
    Linear,
    RmsNorm,
    Scale,
    SoftCap,
    apply_head,
    decode_head,
    encode_head,
)
from tests.storage.heads import CAUSAL_LM, CLASSIFIER, HEADS, MASKED_LM, make_head
from tests.storage.test_label_blocks import reheaded, restreamed


def assert_same(found, head):
    assert found.spec == head.spec
    assert list(found.tensors) == list(head.spec.tensors)
    for name, values in head.tensors.items():
        assert found.tensors[name].dtype == np.float32
        assert np.array_equal(found.tensors[name].view(np.uint32), values.view(np.uint32))


operations = st.lists(
    st.sampled_from(
        [
            Linear(inputs=4, outputs=4, bias=True),
            Linear(inputs=4, outputs=4, bias=False),
            LayerNorm(width=4, eps=1e-12, bias=True),
            LayerNorm(width=4, eps=1e-5, bias=False),
            RmsNorm(width=4, eps=1e-6),
            Activation(name="silu"),
            Scale(factor=-0.5),
            SoftCap(cap=50.0),
        ]
    ),
    min_size=0,
    max_size=7,
)


@settings(max_examples=100)
@given(operations, st.integers(1, 300), st.sampled_from(["every", "first"]), st.integers(0, 99))
def test_heads_come_back_bit_by_bit(middle, num_outputs, reads, seed):
    spec = HeadSpec(
        reads=reads, operations=(RmsNorm(width=4, eps=1e-6), *middle, Linear(inputs=4, outputs=num_outputs, bias=True))
    )
    head = make_head(spec, seed=seed)
    data = encode_head(head)
    found = decode_head(data, origin="here")
    assert_same(found, head)
    assert (found.sha256(), found.spec.width, found.spec.num_outputs) == (head.sha256(), 4, num_outputs)
    assert encode_head(found) == data


def by_hand(head, hidden):
    """The logits of one hidden state, number by number, in float64."""
    x = [float(value) for value in hidden]
    for index, operation in enumerate(head.spec.operations):
        weight = head.tensors.get(f"{index}.weight")
        bias = head.tensors.get(f"{index}.bias")
        match operation:
            case Linear():
                x = [sum(float(w) * value for w, value in zip(row, x, strict=True)) for row in weight]
            case Activation():
                function = {
                    "gelu": lambda v: v * 0.5 * math.erfc(-v / math.sqrt(2)),
                    "gelu_tanh": lambda v: 0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))),
                    "relu": lambda v: max(v, 0.0),
                    "silu": lambda v: v / (1 + math.exp(-v)),
                    "tanh": math.tanh,
                }[operation.name]
                x = [function(value) for value in x]
            case LayerNorm():
                mean = sum(x) / len(x)
                variance = sum((value - mean) ** 2 for value in x) / len(x)
                x = [(value - mean) / math.sqrt(variance + operation.eps) * float(w) for value, w in zip(x, weight, strict=True)]
            case RmsNorm():
                mean = sum(value**2 for value in x) / len(x)
                x = [value / math.sqrt(mean + operation.eps) * float(w) for value, w in zip(x, weight, strict=True)]
            case Scale():
                x = [value * operation.factor for value in x]
            case SoftCap():
                x = [operation.cap * math.tanh(value / operation.cap) for value in x]
        if bias is not None:
            x = [value + float(b) for value, b in zip(x, bias, strict=True)]
    return x


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu", "silu", "tanh"])
@pytest.mark.parametrize("spec", [*HEADS, HeadSpec(reads="every", operations=(Linear(inputs=3, outputs=1, bias=False),))])
def test_operations_are_what_they_say(spec, activation):
    changed = [Activation(name=activation) if operation.kind == "activation" else operation for operation in spec.operations]
    head = make_head(HeadSpec(reads=spec.reads, operations=tuple(changed)))
    hidden = np.random.default_rng(1).normal(scale=3, size=(5, spec.width)).astype(np.float16)
    found = apply_head(head, hidden)
    assert (found.dtype, found.shape) == (np.float32, (5, spec.num_outputs))
    assert found == pytest.approx(np.array([by_hand(head, row) for row in hidden]), rel=2e-5, abs=2e-5)


@pytest.mark.parametrize(("dtype", "share"), [("bfloat16", 0.55), ("float16", 0.65)])
def test_what_was_narrower_takes_no_more_bytes(dtype, share):
    spec = HeadSpec(reads="every", operations=(Linear(inputs=64, outputs=512, bias=False),))
    values = make_head(spec).tensors["0.weight"]
    if dtype == "float16":
        values = values.astype(np.float16).astype(np.float32)
    else:
        values = (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    head = FrozenHead(spec=spec, tensors={"0.weight": values})
    data = encode_head(head)
    assert len(data) < share * values.nbytes
    assert_same(decode_head(data, origin="here"), head)


def test_the_digest_is_of_all_that_a_head_is():
    head = make_head()
    others = [
        make_head(seed=1),
        make_head(CLASSIFIER),
        make_head(CAUSAL_LM),
        replace(head, spec=head.spec.model_copy(update={"reads": "first"})),
    ]
    for name in head.tensors:
        tensors = {key: values.copy() for key, values in head.tensors.items()}
        tensors[name].reshape(-1)[-1] = np.nextafter(tensors[name].reshape(-1)[-1], np.float32(9))
        others.append(replace(head, tensors=tensors))
    assert len({other.sha256() for other in [head, *others]}) == len(others) + 1
    fortran = replace(head, tensors={name: np.asfortranarray(values) for name, values in head.tensors.items()})
    assert (fortran.sha256(), encode_head(fortran)) == (head.sha256(), encode_head(head))


@pytest.mark.parametrize(
    ("operations", "problem"),
    [
        ((), "at least 1 item"),
        ((Linear(inputs=1, outputs=1, bias=False),) * 17, "at most 16 items"),
        ((Linear(inputs=4, outputs=5, bias=True), Linear(inputs=4, outputs=2, bias=True)), "linear of 4 inputs behind 5 outputs"),
        ((Linear(inputs=4, outputs=5, bias=True), LayerNorm(width=4, eps=1e-5, bias=True)), "layer_norm of 4 inputs behind 5"),
        ((Activation(name="gelu"), Linear(inputs=4, outputs=5, bias=True)), "begins with a linear or a norm"),
        ((Linear(inputs=2**16, outputs=2**16, bias=False),), "4,294,967,296 numbers, more than 1,073,741,824"),
    ],
)
def test_operations_that_do_not_fit_are_refused(operations, problem):
    with pytest.raises(ValidationError, match=problem):
        HeadSpec(reads="every", operations=operations)


def test_tensors_that_do_not_fit_are_refused():
    head = make_head()
    tensors = dict(head.tensors)
    for wrong in (
        {},
        {**tensors, "9.weight": tensors["0.bias"]},
        {**tensors, "0.weight": tensors["0.weight"][:5]},
        {**tensors, "0.weight": tensors["0.weight"].reshape(-1)},
        {**tensors, "0.bias": tensors["0.bias"].astype(np.float64)},
        {**tensors, "0.bias": np.full(6, np.nan, dtype=np.float32)},
        {**tensors, "0.bias": np.full(6, -np.inf, dtype=np.float32)},
    ):
        with pytest.raises(FormatError, match="head"):
            encode_head(replace(head, tensors=wrong))


def test_every_flipped_bit_and_truncation_is_refused():
    data = encode_head(make_head())
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        with pytest.raises(FormatError, match="^here: "):
            decode_head(bytes(damaged), origin="here")
        with pytest.raises(FormatError, match="^here: "):
            decode_head(data[:place], origin="here")


SPEC = MASKED_LM.to_json()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"kind": "samples"}, "not a head but a block of 'samples'"),
        ({"kind": None}, "not a head but a block of None"),
        ({"head": None}, "a newer release may have written it"),
        ({"head": {**SPEC, "version": 2}}, "a newer release"),
        ({"head": {**SPEC, "reads": "last"}}, "a newer release"),
        ({"head": {**SPEC, "operations": [{"kind": "convolution"}]}}, "a newer release"),
        ({"head": {**SPEC, "operations": SPEC["operations"][1:]}}, "begins with a linear or a norm"),
        ({"head": {**SPEC, "operations": [{**SPEC["operations"][0], "bias": False}, *SPEC["operations"][1:]]}}, "0.bias/0' of"),
        ({"head": {**SPEC, "operations": [{**SPEC["operations"][0], "outputs": 2**40}]}}, "a newer release"),
        ({"head": {**SPEC, "operations": [{"kind": "linear", "inputs": 2**20, "outputs": 2**20, "bias": False}]}}, "numbers"),
        (
            {
                "head": {
                    **SPEC,
                    "operations": [*SPEC["operations"], {"kind": "linear", "inputs": 11, "outputs": 2, "bias": False}],
                }
            },
            "missing",
        ),
        ({"head": {**SPEC, "operations": [*SPEC["operations"][:3], {**SPEC["operations"][3], "outputs": 12}]}}, "planes of"),
    ],
)
def test_headers_that_cannot_be_are_refused(changes, problem):
    data = encode_head(make_head())
    assert reheaded(data) == data
    with pytest.raises(FormatError, match=f"(?s)^here: .*{problem}"):
        decode_head(reheaded(data, **changes), origin="here")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"0.weight/3": None}, "stream '0.weight/3' is missing"),
        ({"0.weight/3": np.zeros(35, dtype=np.uint8)}, "planes of"),
        ({"0.weight/3": np.zeros(37, dtype=np.uint8)}, "more than its rows allow"),
        ({"0.bias/3": np.full(6, 0x7F, dtype=np.uint8), "0.bias/2": np.full(6, 0x80, dtype=np.uint8)}, "NaN or an infinity"),
        ({"4.weight/0": np.zeros(1, dtype=np.uint8)}, "more than its rows allow"),
    ],
)
def test_streams_that_cannot_be_are_refused(changes, problem):
    data = encode_head(make_head())
    assert restreamed(data) == data
    with pytest.raises(FormatError, match=f"^here: .*{problem}"):
        decode_head(restreamed(data, **changes), origin="here")


def test_other_blocks_are_no_heads():
    with pytest.raises(FormatError, match="here: not a head but a block of 'samples'"):
        decode_head(encode_block({"kind": "samples", "num_samples": 0}, {}), origin="here")


@pytest.fixture
def cache(tmp_path):
    return Cache.at(str(tmp_path / "cache"))


def file_of(tmp_path, sha256):
    return tmp_path / "cache" / "heads" / f"{sha256}.head"


def test_a_cache_keeps_heads_by_what_they_are(cache, tmp_path):
    head = make_head()
    sha256 = cache.add_head(head)
    assert sha256 == head.sha256()
    assert_same(cache.head(sha256), head)
    written = file_of(tmp_path, sha256)
    first = written.stat()
    assert cache.add_head(make_head()) == sha256
    assert (written.stat().st_ino, written.stat().st_mtime_ns) == (first.st_ino, first.st_mtime_ns)
    assert cache.add_head(make_head(CLASSIFIER)) != sha256
    assert len(list((tmp_path / "cache" / "heads").iterdir())) == 2


def test_a_head_that_is_missing_damaged_or_another_is_refused_and_written_anew(cache, tmp_path):
    head, other = make_head(), make_head(seed=1)
    with pytest.raises(CorruptError, match=rf"heads/{head.sha256()}.head is missing; run decant label again"):
        cache.head(head.sha256())
    written = file_of(tmp_path, cache.add_head(head))
    data = written.read_bytes()
    for damaged, problem in (
        (data[:-1], "checksum differs"),
        (b"", "too few for a block"),
        (encode_head(other), "holds another head .its sha256 is not its name.; run decant label again"),
    ):
        written.write_bytes(damaged)
        with pytest.raises(CorruptError, match=problem):
            cache.head(head.sha256())
        assert cache.add_head(head) == head.sha256()
        assert written.read_bytes() == data
