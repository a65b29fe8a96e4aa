"""Top-K log-probabilities of many positions as other systems store them, re-created from what is known of their formats."""

from __future__ import annotations

import io
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import zstandard

from storage.codecs import DrawnLabels, RankedLabels
from tests.benchmarks.peers.base import LabelTensors

_LEVEL = 3


class TextLayout(Protocol):
    """A way of storing the ranked classes of positions: one object for all of them."""

    name: str

    def encode(self, rows: RankedLabels) -> bytes:
        """Return the object."""

    def decode(self, data: bytes) -> LabelTensors:
        """Return what a loss takes; the rest is what the probabilities leave."""


def ranked_tensors(class_ids: torch.Tensor, log_probs: torch.Tensor) -> LabelTensors:
    """Return int32 ids and float32 probabilities of float16 log-probabilities [positions, k]."""
    probs = log_probs.float().exp()
    return LabelTensors(class_ids.to(torch.int32), probs, 1 - probs.sum(dim=1))


class MegatronLayout:
    """torch.save of float16 values, the low 16 bits of ids and a plane for what is above, then zstd.

    Megatron-LM keeps one bit there and refuses vocabularies above 131,072 tokens; here the plane has a byte of bits, which costs the
    same before zstd.
    """

    name = "Megatron-LM: torch.save, zstd"

    def encode(self, rows: RankedLabels) -> bytes:
        """Return the object."""
        buffer = io.BytesIO()
        torch.save(
            {
                "values": torch.from_numpy(rows.log_probs).half(),
                "indices_low": torch.from_numpy((rows.class_ids & 0xFFFF).astype(np.uint16)),
                "indices_high": torch.from_numpy((rows.class_ids >> 16).astype(np.uint8)),
            },
            buffer,
        )
        return zstandard.ZstdCompressor(level=_LEVEL).compress(buffer.getvalue())

    def decode(self, data: bytes) -> LabelTensors:
        """Return what a loss takes."""
        stored = torch.load(io.BytesIO(zstandard.ZstdDecompressor().decompress(data)), weights_only=True)
        ids = stored["indices_low"].to(torch.int32) | (stored["indices_high"].to(torch.int32) << 16)
        return ranked_tensors(ids, stored["values"])


class ParquetTextLayout:
    """Parquet, a list of ids and a list of float16 log-probabilities a position, zstd; as DistillKit's files but for its own packing."""

    name = "Parquet lists, zstd"

    def encode(self, rows: RankedLabels) -> bytes:
        """Return the object."""
        num_rows, k = rows.class_ids.shape
        offsets = pa.array(np.arange(num_rows + 1, dtype=np.int32) * k)
        columns = {
            "ids": pa.ListArray.from_arrays(offsets, pa.array(rows.class_ids.reshape(-1))),
            "log_probs": pa.ListArray.from_arrays(offsets, pa.array(rows.log_probs.astype(np.float16).reshape(-1))),
        }
        buffer = io.BytesIO()
        pq.write_table(pa.table(columns), buffer, compression="zstd", compression_level=_LEVEL)
        return buffer.getvalue()

    def decode(self, data: bytes) -> LabelTensors:
        """Return what a loss takes."""
        table = pq.read_table(io.BytesIO(data), use_threads=False)
        ids, logs = (table.column(name).combine_chunks().flatten().to_numpy() for name in ("ids", "log_probs"))
        shape = (table.num_rows, -1)
        return ranked_tensors(torch.from_numpy(ids.astype(np.int32).reshape(shape)), torch.from_numpy(logs.reshape(shape).copy()))


class NpyLayout:
    """Two plain .npy arrays: uint32 ids, float16 log-probabilities."""

    name = "two .npy arrays"

    def encode(self, rows: RankedLabels) -> bytes:
        """Return the object."""
        buffer = io.BytesIO()
        np.save(buffer, rows.class_ids)
        np.save(buffer, rows.log_probs.astype(np.float16))
        return buffer.getvalue()

    def decode(self, data: bytes) -> LabelTensors:
        """Return what a loss takes."""
        buffer = io.BytesIO(data)
        ids, logs = np.load(buffer), np.load(buffer)
        return ranked_tensors(torch.from_numpy(ids.astype(np.int32)), torch.from_numpy(logs))


class ThreeByteDraws:
    """RS-KD as its authors describe it: 3 bytes a drawn class, id and count together; how many there are in a byte more."""

    name = "RS-KD, 3 bytes an entry"
    count_bits = 6
    """Of 24; 18 are left for ids of 151,936 tokens, and 50 draws of one class still fit."""

    def encode(self, rows: DrawnLabels) -> bytes:
        """Return the object."""
        words = (rows.class_ids << self.count_bits) | rows.counts
        entries = np.diff(rows.offsets).astype(np.uint8)
        return len(entries).to_bytes(4, "little") + entries.tobytes() + words.view(np.uint8).reshape(-1, 4)[:, :3].tobytes()

    def decode(self, data: bytes) -> LabelTensors:
        """Return what a loss takes."""
        num_rows = int.from_bytes(data[:4], "little")
        entries = np.frombuffer(data, dtype=np.uint8, count=num_rows, offset=4)
        words = np.zeros((int(entries.sum()), 4), dtype=np.uint8)
        words[:, :3] = np.frombuffer(data, dtype=np.uint8, offset=4 + num_rows).reshape(-1, 3)
        flat = words.view(np.uint32).reshape(-1)
        used = np.arange(int(entries.max())) < entries[:, None]
        ids, counts = np.zeros(used.shape, dtype=np.int32), np.zeros(used.shape, dtype=np.float32)
        ids[used] = flat >> self.count_bits
        counts[used] = flat & ((1 << self.count_bits) - 1)
        probs = torch.from_numpy(counts / counts.sum(axis=1, keepdims=True))
        return LabelTensors(torch.from_numpy(ids), probs, torch.zeros(num_rows))
