"""A second reader of version 1, written from docs/format.md alone: one number at a time, and nothing of `storage`."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from typing import Any

import xxhash
import zstandard


def read_block(data: bytes) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return header and streams of a block."""
    assert data[:8] == b"DECANT\0\x01"
    assert struct.unpack("<Q", data[-8:])[0] == xxhash.xxh3_64_intdigest(data[:-8])
    (length,) = struct.unpack("<I", data[8:12])
    header = json.loads(data[12 : 12 + length])
    streams, offset = {}, 12 + length
    for name, raw, stored in header["streams"]:
        body = data[offset : offset + stored]
        streams[name] = body if stored == raw else zstandard.ZstdDecompressor().decompress(body)
        assert len(streams[name]) == raw
        offset += stored
    assert offset == len(data) - 8
    return header, streams


def integers(streams: dict[str, bytes], name: str, *, count: int, bits: int) -> list[int]:
    """Return unsigned integers from their planes."""
    values = [0] * count
    for plane in range(bits // 8):
        for index, byte in enumerate(streams[f"{name}{plane}"]):
            values[index] |= byte << 8 * plane
    if bits % 8:
        packed, over = streams[f"{name}{bits // 8}"], bits % 8
        for index in range(count):
            place = index * over
            values[index] |= (packed[place // 8] >> place % 8 & (1 << over) - 1) << 8 * (bits // 8)
    return values


def half(pattern: int) -> float:
    """Return the number of a float16 pattern."""
    value: float = struct.unpack("<e", struct.pack("<H", pattern))[0]
    return value


def bits_needed(largest: int) -> int:
    """Return the bits that values up to the largest take."""
    length = max(largest.bit_length(), 1)
    over = length % 8
    return length if over == 0 else length - over + next(bits for bits in (1, 2, 4, 8) if over <= bits)


def whole_bytes(most: int) -> int:
    """Return 8 bits, or 16 for numbers above 255."""
    return 8 if most <= 255 else 16


def rows_of_sample(target: dict[str, Any], *, length: int, masked: int | None) -> int | None:
    """Return the rows that a sample has."""
    match target["kind"]:
        case "soft_labels":
            return {"view": 1, "masked": masked, "all": length, "next": length - 1}[target.get("positions", "view")]
        case "relations":
            return length * (length + 1) // 2
        case "hidden_states":
            return length if target["tokens"] == "all" else 1
        case "attention":
            return length
        case _:
            return 1


def tensors_of(target: dict[str, Any]) -> dict[str, int]:
    """Return names and widths of the tensors of a vector target."""
    match target["kind"]:
        case "hidden_states":
            return {f"hidden.{layer}": target["width"] for layer in target["layers"]}
        case "attention":
            heads = {"query": target["num_heads"], "key": target["num_key_value_heads"], "value": target["num_key_value_heads"]}
            return {
                f"{vector}.{layer}": heads[vector] * target["head_width"]
                for layer in target["layers"]
                for vector in target["vectors"]
            }
        case "relations":
            return {f"{vector}_relations.{target['layer']}": target["num_relation_heads"] for vector in target["vectors"]}
        case _:
            return {"embedding": target["width"]}


def read_tensor(streams: dict[str, bytes], name: str, *, codec: dict[str, Any], num_rows: int, width: int) -> list[list[float]]:
    """Return the rows of a tensor."""
    if codec["kind"] == "float16":
        flat = [half(pattern) for pattern in integers(streams, f"{name}/", count=num_rows * width, bits=16)]
        return [flat[row * width : (row + 1) * width] for row in range(num_rows)]
    values, scales, group = streams[f"{name}/values"], streams[f"{name}/scales"], codec["group"]
    per_row = width if group is None else -(-width // group)
    rows = []
    for row in range(num_rows):
        found = []
        for channel in range(width):
            place = row // 256 * width + channel if group is None else row * per_row + channel // group
            (signed,) = struct.unpack_from("<b", values, row * width + channel)
            (scale,) = struct.unpack_from("<e", scales, 2 * place)
            found.append(signed * scale)
        rows.append(found)
    return rows


def read_labels(
    streams: dict[str, bytes], *, target: dict[str, Any], num_rows: int
) -> tuple[list[dict[int, float]], list[float]]:
    """Return probabilities by class, and the rest, of every row."""
    codec, num_classes, k = target["codec"], target["num_classes"], target["k"]
    kind = codec["kind"]
    if kind == "dense":
        logs = [-half(pattern) for pattern in integers(streams, "logs", count=num_rows * num_classes, bits=16)]
        rows = [[math.exp(log) for log in logs[row * num_classes : (row + 1) * num_classes]] for row in range(num_rows)]
        return [{index: p / sum(row) for index, p in enumerate(row) if p} for row in rows], [0.0] * num_rows
    default = {"compact": 255, "sampled": codec.get("draws", 0), "threshold": codec.get("levels", 0) ** 2}.get(kind, 0)
    most = min(k if k is not None else default, num_classes)
    if kind == "exact":
        ids = integers(streams, "ids", count=num_rows * most, bits=bits_needed(num_classes - 1))
        deltas = integers(streams, "deltas", count=num_rows * most, bits=16)
        rests = [math.exp(-half(pattern)) for pattern in integers(streams, "rest", count=num_rows, bits=16)]
        found = []
        for row in range(num_rows):
            probs, pattern = {}, 0
            for rank in range(most):
                pattern = (pattern + deltas[rank * num_rows + row]) % 2**16
                probs[ids[row * most + rank]] = math.exp(-half(pattern))
            total = sum(probs.values()) + rests[row]
            found.append({class_id: p / total for class_id, p in probs.items() if p})
            rests[row] /= total
        return found, rests
    if kind in ("sampled", "threshold"):
        return read_drawn(
            streams, shares=codec["draws"] if kind == "sampled" else codec["levels"] ** 2, most=most, num_rows=num_rows
        )
    return read_compact(streams, most=most, num_rows=num_rows)


def read_drawn(streams: dict[str, bytes], *, shares: int, most: int, num_rows: int) -> tuple[list[dict[int, float]], list[float]]:
    entries = integers(streams, "entries", count=num_rows, bits=whole_bytes(most))
    counts = iter(integers(streams, "counts", count=sum(entries), bits=whole_bytes(shares)))
    lengths, below, place = iter(streams["step_lengths"]), int.from_bytes(streams["step_bits"], "little"), 0
    found = []
    for num in entries:
        row, class_id = {}, -1
        for _ in range(num):
            length = next(lengths)
            class_id += (below >> place & (1 << length) - 1) | 1 << length
            place += length
            row[class_id] = next(counts) / shares
        found.append(row)
    return found, [0.0] * num_rows


def read_compact(streams: dict[str, bytes], *, most: int, num_rows: int) -> tuple[list[dict[int, float]], list[float]]:
    wide = streams.get("wide_levels")
    levels = streams["levels"] if wide is None else wide
    if wide is None:
        counts = integers(streams, "counts", count=num_rows, bits=whole_bytes(most))
    else:
        counts = [len(wide) // num_rows] * num_rows if num_rows else []
    num_planes = sum(name.startswith("steps") for name in streams)
    steps = integers(streams, "steps", count=len(levels), bits=8 * num_planes)
    found, rests, place = [], [], 0
    for row, count in enumerate(counts):
        squares, class_id = {}, 0
        for index in range(place, place + count):
            class_id += steps[index]
            if levels[index]:
                squares[class_id] = levels[index] ** 2
        place += count
        rest = streams["rest"][row] ** 2
        total = sum(squares.values()) + rest
        found.append({class_id: square / total for class_id, square in squares.items()})
        rests.append(rest / total)
    return found, rests


def read_targets(data: bytes) -> dict[str, Any]:
    """Return what a block of kind `targets` holds, as `decoded.json` says it."""
    header, streams = read_block(data)
    assert header["kind"] == "targets"
    target, num_present = header["target"], header["num_present"]
    present = [True] * header["num_samples"]
    if "present" in streams:
        present = [bool(streams["present"][index // 8] >> index % 8 & 1) for index in range(header["num_samples"])]
    positions = [header["first_sample"] + index for index, alive in enumerate(present) if alive]
    found: dict[str, Any] = {name: header[name] for name in ("view", "first_sample", "num_samples", "key_hash")}
    found["positions"] = positions
    masked: list[Any] = [None] * num_present
    if "vocabulary_size" in header:
        bits = next(bits for bits in (16, 24, 32) if header["vocabulary_size"] <= 2**bits)
        lengths = integers(streams, "lengths", count=num_present, bits=16)
        ids = integers(streams, "tokens", count=header["num_tokens"], bits=bits)
        found |= {"token_offsets": ends(lengths), "token_ids": ids}
        if "num_masked" in header:
            masked = integers(streams, "mask_counts", count=num_present, bits=16)
            places = integers(streams, "mask_positions", count=header["num_masked"], bits=16)
            inputs = integers(streams, "mask_inputs", count=header["num_masked"], bits=bits)
            found |= {"mask_offsets": ends(masked), "mask_positions": places, "mask_inputs": inputs}
        check_tokens(found, checksums=integers(streams, "token_checksums", count=num_present, bits=32))
    else:
        lengths = [header["tokens_per_picture"]] * num_present
        digests = struct.unpack(f"<{len(streams['view_digests']) // 8}Q", streams["view_digests"])
        offsets = [position - header["first_sample"] for position in positions]
        found["view_digests"] = [f"{0 if offset % 64 else digests[offset // 64]:016x}" for offset in offsets]
    counts = [rows_of_sample(target, length=n, masked=m) for n, m in zip(lengths, masked, strict=True)]
    found["row_offsets"] = ends(counts)
    num_rows = header["num_rows"]
    assert found["row_offsets"][-1] == num_rows
    if target["kind"] == "soft_labels":
        rows, rest = read_labels(streams, target=target, num_rows=num_rows)
        return {**found, "rows": [[[class_id, prob] for class_id, prob in row.items()] for row in rows], "rest": rest}
    tensors = tensors_of(target)
    return {
        **found,
        "tensors": {
            name: read_tensor(streams, name, codec=target["codec"], num_rows=num_rows, width=width)
            for name, width in tensors.items()
        },
    }


def ends(counts: list[Any]) -> list[int]:
    """Return where runs begin, and where the last one ends."""
    offsets = [0]
    for count in counts:
        offsets.append(offsets[-1] + count)
    return offsets


def check_tokens(found: dict[str, Any], *, checksums: list[int]) -> None:
    """Fail unless every sequence has its checksum."""
    for index, checksum in enumerate(checksums):
        numbers = found["token_ids"][slice(*found["token_offsets"][index : index + 2])]
        if "mask_offsets" in found:
            bounds = slice(*found["mask_offsets"][index : index + 2])
            for pair in zip(found["mask_positions"][bounds], found["mask_inputs"][bounds], strict=True):
                numbers = [*numbers, *pair]
        assert checksum == xxhash.xxh3_64_intdigest(struct.pack(f"<{len(numbers)}I", *numbers)) % 2**32


def read_head(data: bytes) -> dict[str, Any]:
    """Return what a head holds, as `decoded.json` says it."""
    header, streams = read_block(data)
    assert header["kind"] == "head"
    spec = header["head"]
    hasher = hashlib.sha256(json.dumps(spec, sort_keys=True, separators=(",", ":")).encode())
    tensors: dict[str, Any] = {}
    for index, operation in enumerate(spec["operations"]):
        width = operation.get("outputs", operation.get("width"))
        if operation["kind"] in ("linear", "layer_norm", "rms_norm"):
            rows = operation["outputs"] if operation["kind"] == "linear" else 1
            columns = operation["inputs"] if operation["kind"] == "linear" else width
            weight = read_floats(streams, f"{index}.weight", count=rows * columns, hasher=hasher)
            tensors[f"{index}.weight"] = (
                [weight[row * columns : (row + 1) * columns] for row in range(rows)] if operation["kind"] == "linear" else weight
            )
        if operation.get("bias"):
            tensors[f"{index}.bias"] = read_floats(streams, f"{index}.bias", count=width, hasher=hasher)
    return {"sha256": hasher.hexdigest(), "spec": spec, "tensors": tensors}


def read_floats(streams: dict[str, bytes], name: str, *, count: int, hasher: Any) -> list[float]:
    patterns = struct.pack(f"<{count}I", *integers(streams, f"{name}/", count=count, bits=32))
    hasher.update(patterns)
    return list(struct.unpack(f"<{count}f", patterns))
