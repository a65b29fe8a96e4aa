"""Damage as it happens to files: bits, sectors, truncation, loss, mixed-up copies, old copies, tools that mean well."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from storage.blocks import MAGIC
from tests.storage.blocks import sealed

TAR_BLOCK = 512


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What was done to which files.

    Attributes:
        after: bytes of every file that was touched, None where it was removed.
    """

    kind: str
    after: Mapping[str, bytes | None]


@dataclass(frozen=True, kw_only=True)
class Victims:
    """Files that can be damaged.

    Attributes:
        files: their bytes by name.
        peers: names of other files of the same kind, for each that has some.
        older: bytes that once lay under a name.
    """

    files: Mapping[str, bytes]
    peers: Mapping[str, tuple[str, ...]]
    older: Mapping[str, tuple[bytes, ...]]


def flip(data: bytes, rng: random.Random) -> bytes | None:
    """One bit is another."""
    if not data:
        return None
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]


def burst(data: bytes, rng: random.Random) -> bytes | None:
    """Up to 64 bytes in a row are noise."""
    place, count = rng.randrange(max(len(data), 1)), rng.randint(2, 64)
    return data[:place] + rng.randbytes(len(data[place : place + count])) + data[place + count :]


def zeros(data: bytes, rng: random.Random) -> bytes | None:
    """A sector, or what there is of one, reads as zeros."""
    place = rng.randrange(max(len(data), 1)) // TAR_BLOCK * TAR_BLOCK
    gone = data[place : place + TAR_BLOCK]
    return data[:place] + bytes(len(gone)) + data[place + TAR_BLOCK :]


def truncate(data: bytes, rng: random.Random) -> bytes | None:
    """The end is missing; sometimes everything is."""
    return data[: rng.choice([0, rng.randrange(max(len(data), 1)), max(len(data) - rng.randint(1, 64), 0)])]


def append(data: bytes, rng: random.Random) -> bytes | None:
    """There is more than was written: noise, zeros, or the file's own beginning once more."""
    count = rng.randint(1, 1024)
    return data + rng.choice([rng.randbytes(count), bytes(count), data[:count], b"\n"])


def repeat(data: bytes, rng: random.Random) -> bytes | None:
    """A run of bytes lies in place of another one: a sector written to the wrong place."""
    size = rng.choice([16, 64, TAR_BLOCK])
    if len(data) < 2 * size:
        return None
    source, target = (rng.randrange(len(data) // size) * size for _ in range(2))
    piece = data[source : source + size]
    return data[:target] + piece + data[target + len(piece) :]


def _members(data: bytes) -> list[tuple[int, int]]:
    """Return (offset of the header, bytes of the payload) of the members of a tar."""
    found, place = [], 0
    while place + TAR_BLOCK <= len(data) and data[place]:
        size = int(data[place + 124 : place + 135], 8)
        found.append((place, size))
        place += TAR_BLOCK + -(-size // TAR_BLOCK) * TAR_BLOCK
    return found


def duplicate_block(data: bytes, rng: random.Random) -> bytes | None:
    """A member of a tar lies there twice, or in place of another one."""
    members = _members(data)
    if len(members) < 2:
        return None
    (start, size), (other, other_size) = rng.sample(members, 2)
    whole = data[start : start + TAR_BLOCK + -(-size // TAR_BLOCK) * TAR_BLOCK]
    if rng.random() < 0.5:
        return data[:other] + whole + data[other:]
    return data[: other + TAR_BLOCK] + whole[TAR_BLOCK:] + data[other + TAR_BLOCK + -(-other_size // TAR_BLOCK) * TAR_BLOCK :]


def tar_header(data: bytes, rng: random.Random) -> bytes | None:
    """A tar header says another name, size or time; half of the times its checksum is put right."""
    members = _members(data)
    if not members:
        return None
    start, size = rng.choice(members)
    header = bytearray(data[start : start + TAR_BLOCK])
    match rng.choice(["name", "size", "time", "type"]):
        case "name":
            header[rng.randrange(20)] = rng.randrange(97, 123)
        case "size":
            header[124:135] = f"{max(0, size + rng.choice([-512, -1, 1, 512])):011o}".encode()
        case "time":
            header[136:147] = f"{rng.randrange(1 << 30):011o}".encode()
        case _:
            header[156] = rng.choice(b"125xgL")
    if rng.random() < 0.5:
        header[148:156] = b" " * 8
        header[148:156] = f"{sum(header):06o}\0 ".encode()
    return data[:start] + bytes(header) + data[start + TAR_BLOCK :]


def block_header(data: bytes, rng: random.Random) -> bytes | None:
    """A tool changes a number in the header of a block and puts the block's own checksum right."""
    places = []
    place = data.find(MAGIC)
    while place >= 0:
        places.append(place)
        place = data.find(MAGIC, place + 1)
    rng.shuffle(places)
    for start in places:
        (length,) = struct.unpack_from("<I", data, start + 8)
        header = json.loads(data[start + 12 : start + 12 + length])
        numbers = [name for name, value in header.items() if type(value) is int]
        if not numbers:
            continue
        name = rng.choice(numbers)
        header[name] = rng.choice([value for value in range(10) if value != header[name]])
        head = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
        if len(head) != length:
            continue
        end = start + 12 + length + sum(stored for _, _, stored in header["streams"])
        block = sealed(data[start : start + 12] + head + data[start + 12 + length : end])
        return data[:start] + block + data[end + 8 :]
    return None


BYTES: dict[str, Callable[[bytes, random.Random], bytes | None]] = {
    "bit flip": flip,
    "noise": burst,
    "zeroed sector": zeros,
    "truncation": truncate,
    "appended bytes": append,
    "misplaced sector": repeat,
}
TARS = {"duplicated member": duplicate_block, "tar header": tar_header}
BLOCKS = {"block header, checksum re-made": block_header}
WHOLE = ("deletion", "swap", "older copy")


def kinds_for(name: str, victims: Victims) -> list[str]:
    """Return the kinds of damage that a file can take."""
    kinds = [*BYTES, "deletion"]
    if name.endswith(".tar"):
        kinds += TARS
    if MAGIC in victims.files[name]:
        kinds += BLOCKS
    if victims.peers.get(name):
        kinds.append("swap")
    if victims.older.get(name):
        kinds.append("older copy")
    return kinds


def make_fault(name: str, *, kind: str, victims: Victims, rng: random.Random) -> Fault | None:
    """Return a fault of a kind; None where it would change nothing."""
    data = victims.files[name]
    if kind == "deletion":
        return Fault(kind=kind, after={name: None})
    if kind == "swap":
        other = rng.choice(victims.peers[name])
        if victims.files[other] == data:
            return None
        return Fault(kind=kind, after={name: victims.files[other], other: data})
    changed = rng.choice(victims.older[name]) if kind == "older copy" else {**BYTES, **TARS, **BLOCKS}[kind](data, rng)
    return None if changed is None or changed == data else Fault(kind=kind, after={name: changed})
