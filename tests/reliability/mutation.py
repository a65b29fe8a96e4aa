"""Mutations of bytes and of JSON data, fast enough for millions: the ones of tests/storage/test_fuzz_decoders.py, drawn by `random`."""

from __future__ import annotations

import random
from typing import Any

_VALUES: tuple[Any, ...] = (
    *(None, True, False, -2, -1, 0, 1, 2, 5, 2**31 - 1, 2**31, 2**32, 2**63, -(2**63), 10**40),
    *(
        0.5,
        -0.0,
        1e300,
        "",
        "0",
        "exact",
        "compact",
        "\0",
        "../x",
        "ü",
        [],
        {},
        [[]],
        [0],
        {"kind": "exact"},
        {"k": 1},
        {"x": None},
    ),
)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Return bytes with a few of them changed, taken out, put in or said twice."""
    found = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(max(len(found), 1))
        match rng.randrange(5):
            case 0 if found:
                found[place] ^= 1 << rng.randrange(8)
            case 1 if found:
                found[place] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            case 2:
                del found[place : place + rng.randint(1, 20)]
            case 3:
                found[place:place] = rng.randbytes(rng.randint(1, 5))
            case _:
                found[place:place] = found[place : place + 9]
    return bytes(found)


def replaced(value: Any, rng: random.Random) -> Any:
    """Return JSON data with a value somewhere inside it replaced, dropped or added to."""
    if isinstance(value, dict) and value and rng.randrange(5):
        key = rng.choice(sorted(value))
        match rng.randrange(5):
            case 0:
                return {name: inner for name, inner in value.items() if name != key}
            case 1:
                return {**value, rng.choice(("x", "kind", "", "format", "ü")): rng.choice(_VALUES)}
        return {**value, key: replaced(value[key], rng)}
    if isinstance(value, list) and value and rng.randrange(5):
        place = rng.randrange(len(value))
        return [*value[:place], replaced(value[place], rng), *value[place + rng.randrange(2) :]]
    if isinstance(value, int) and rng.randrange(2):
        return value + rng.choice((-1, 1, -8, 8, 256, 2**31, 2**32))
    return rng.choice(_VALUES)
