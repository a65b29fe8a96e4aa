"""Fingerprints and digests: the same for ever, and for nothing else."""

from __future__ import annotations

import hashlib
import json

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from storage.hashing import canonical_json, checksum, digest, fingerprint, key_hash, seal, unseal

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def reordered(value):
    if isinstance(value, dict):
        return {key: reordered(inner) for key, inner in reversed(value.items())}
    return [reordered(inner) for inner in value] if isinstance(value, list) else value


@given(JSON)
def test_equal_values_give_equal_bytes(value):
    data = canonical_json(value)
    assert canonical_json(reordered(value)) == data
    assert data.isascii()
    assert json.loads(data) == value
    assert fingerprint(value) == hashlib.sha256(data).hexdigest()


def test_canonical_json_is_sorted_and_tight():
    value = {"b": [1, 2.5, 1e-7, None, True], "a": "ä\n"}
    assert canonical_json(value) == b'{"a":"\\u00e4\\n","b":[1,2.5,1e-07,null,true]}'


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_json_cannot_carry_is_refused(value):
    with pytest.raises(ValueError, match="JSON compliant"):
        fingerprint({"value": [value]})


def test_values_never_change():
    assert fingerprint({"k": 10, "codec": "exact"}) == "62fb1b5038bc5dbc08ecaa873da54dc99c63a2db08ffe164867ba220a8f8b88b"
    assert digest(b"decant") == "e23b1aaf4f40fc60c004cfd9a23e5d6fafd5c58049dfeb9117b4b959b0ec908e"
    assert digest(memoryview(b"decant")) == digest(b"decant")
    assert checksum(b"decant") == 1360613251465283289
    assert checksum(b"") == 0x2D06800538D394C2
    assert key_hash(["a", "bc"]) == 12551379957512280480


@given(st.lists(st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"])), max_size=8))
def test_the_key_hash_is_of_keys_that_end_with_a_zero_byte(keys):
    assert key_hash(keys) == key_hash(iter(keys)) == xxhash.xxh3_64_intdigest("".join(key + "\0" for key in keys).encode())


def test_keys_that_run_into_each_other_differ():
    assert len({key_hash(keys) for keys in (["ab", "c"], ["a", "bc"], ["abc"], ["abc", ""], ["c", "ab"], [])}) == 6


@given(st.binary(max_size=80))
def test_a_seal_breaks_at_any_change(body):
    data = seal(body)
    assert data == body + b"\n" + hashlib.sha256(body).hexdigest().encode() + b"\n"
    assert unseal(data) == body
    for length in range(len(data)):
        assert unseal(data[:length]) is None
    for bit in range(8 * len(data)):
        assert unseal(data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]) is None
    assert unseal(data + b"\n") is None
