"""Bytes a position of text, and positions a second on one core."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from pipelines.extraction import extract
from storage import codecs
from storage.codecs import DrawnLabels, RankedLabels, UnstoredLabels
from storage.codecs.divergence import codec_kl
from storage.codecs.sampled import concatenate_drawn
from storage.random import label_uniforms
from storage.specs import CodecSpec, CompactCodec, ExactCodec, SampledCodec, SoftLabelsSpec, ThresholdCodec
from storage.target_blocks import decode_target_block, encode_target_block
from storage.text.token_rows import TokenRows
from tests.benchmarks.labels import PEAKED_CLASSES, PEAKED_ORIGIN, copies, peaked_logits, text_logits
from tests.benchmarks.peers.text_layouts import (
    MegatronLayout,
    NpyLayout,
    ParquetTextLayout,
    TextLayout,
    ThreeByteDraws,
    ranked_tensors,
)
from tests.benchmarks.report import Cell, Goal, Report, Table
from tests.benchmarks.timing import one_thread, rates, round_robin

_K = 64
_PEERS: tuple[TextLayout, ...] = (MegatronLayout(), ParquetTextLayout(), NpyLayout())
_KL_LIMIT = 1e-3
_LIMITS = {"exact": 200.0, "compact": 100.0}
_RS_KD_LIMIT = 24.0
_ENCODED_LIMIT = 3e5
_DECODED_LIMIT = 1e6
_CHUNK = 128

_METHOD = """\
The top {k} classes of each position, or 50 draws of RS-KD, or {units} systematic draws. Bytes are of one target block with its header,
less the token ids, which Decant's blocks carry and the others do not. Large vocabulary: {peaked}, {peaked_rows:,} positions. Real: {text},
{text_rows:,} positions, the same logits {num_copies} times with noise. Compact has the fewest levels at which the codec adds {kl_limit}
nats or less on average.

Positions a second are a CPU second's, on one thread, from arrays to bytes and from bytes to arrays (Decant) or tensors (the others);
medians of {num_passes} passes, all in turn, each doing its block {calls} times. "Codec alone" leaves out compression, checksums and tokens. None of the peers checks its
bytes, but for zstd's and Parquet's own structure; each is read back and compared bit for bit before it counts.
"""


@dataclass(frozen=True, kw_only=True)
class _Size:
    sequence_tokens: int
    num_sequences: int
    num_copies: int
    num_passes: int


_FULL = _Size(sequence_tokens=500, num_sequences=8, num_copies=15, num_passes=7)
_QUICK = _Size(sequence_tokens=16, num_sequences=2, num_copies=1, num_passes=1)


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """Rows of one teacher, ranked and drawn."""

    ranked: RankedLabels
    drawn: dict[str, DrawnLabels]
    num_classes: int
    tokens: TokenRows

    def of(self, codec: CodecSpec) -> UnstoredLabels:
        """Return the rows that a codec stores."""
        return self.drawn.get(codec.kind, self.ranked)

    def spec(self, codec: CodecSpec) -> SoftLabelsSpec:
        """Return what is asked of a codec."""
        k = None if codec.kind in self.drawn else _K
        return SoftLabelsSpec(num_classes=self.num_classes, k=k, codec=codec, positions="all")


@dataclass(frozen=True, kw_only=True)
class _Contestant:
    encode: Callable[[], bytes | int]
    decode: Callable[[], object]
    bytes_per_row: float | None
    kl: float | None = None


def run(*, quick: bool, folder: Path, say: Callable[[str], None]) -> Report:
    """Measure all layouts on both teachers."""
    size = _QUICK if quick else _FULL
    text = text_logits() if not quick else text_logits().first(32)
    num_rows = size.sequence_tokens * size.num_sequences
    say(f"drawing {num_rows:,} positions over {PEAKED_CLASSES:,} classes")
    peaked = _extract(peaked_logits(num_rows, step=_CHUNK), size=size)
    noisy = copies(text, num_copies=size.num_copies).values[: max(num_rows, 32)]
    real = _extract((part.astype(np.float32) for part in np.array_split(noisy, max(1, len(noisy) // 512))), size=size)
    tables, goals = [], []
    with one_thread():
        for title, rows in (("Large vocabulary", peaked), ("Real labels", real)):
            say(title)
            table, found = _measure(rows, title=title, num_passes=size.num_passes)
            tables.append(table)
            goals += _goals(found, title=title, drawn=rows is peaked)
    return Report(
        name="text_bytes",
        title="Bytes a position",
        method=_METHOD.format(
            k=_K,
            units=_THRESHOLD.levels**2,
            peaked=PEAKED_ORIGIN,
            peaked_rows=len(peaked.ranked),
            text=text.origin,
            text_rows=len(real.ranked),
            num_copies=size.num_copies,
            kl_limit=_KL_LIMIT,
            num_passes=size.num_passes,
            calls=_CALLS_A_PASS,
        ),
        tables=tuple(tables),
        goals=tuple(goals),
        quick=quick,
    )


_CALLS_A_PASS = 8
_SAMPLED = SampledCodec()
_THRESHOLD = ThresholdCodec(levels=7)


def _extract(chunks: Iterable[npt.NDArray[np.float32]], *, size: _Size) -> _Rows:
    """Return what the pipeline's own extraction makes of logits, and token ids as a text might have them."""
    ranked: list[RankedLabels] = []
    drawn: dict[str, list[DrawnLabels]] = {"sampled": [], "threshold": []}
    start = num_classes = 0
    for chunk in chunks:
        logits, alive = torch.from_numpy(chunk), np.ones(len(chunk), dtype=np.bool_)
        num_classes = logits.shape[1]
        ranked.append(extract(logits, spec=SoftLabelsSpec(num_classes=num_classes, k=_K, codec=ExactCodec()), alive=alive).rows)
        for codec in (_SAMPLED, _THRESHOLD):
            spec = SoftLabelsSpec(num_classes=num_classes, k=None, codec=codec)
            uniforms = label_uniforms(codec, key="text", view_index=0, positions=np.arange(start, start + len(chunk)))
            drawn[codec.kind].append(extract(logits, spec=spec, alive=alive, uniforms=uniforms).rows)
        start += len(chunk)
    names = ("class_ids", "log_probs", "log_rest")
    rows = RankedLabels(**{name: np.concatenate([getattr(part, name) for part in ranked]) for name in names})
    bounds = np.append(np.arange(0, start, size.sequence_tokens), start).astype(np.int64)
    return _Rows(
        ranked=rows,
        drawn={kind: concatenate_drawn(parts) for kind, parts in drawn.items()},
        num_classes=num_classes,
        tokens=TokenRows(offsets=bounds, token_ids=rows.class_ids[:, 0].copy()),
    )


def _compact(rows: _Rows) -> CompactCodec:
    """Return the codec of the fewest levels that adds no more than the limit."""
    low, high = 1, 255
    while low < high:
        middle = (low + high) // 2
        if _codec_kl(rows, codec=CompactCodec(levels=middle)) <= _KL_LIMIT:
            high = middle
        else:
            low = middle + 1
    return CompactCodec(levels=low)


def _codec_kl(rows: _Rows, *, codec: CodecSpec) -> float:
    spec, num_rows = rows.spec(codec), len(rows.ranked)
    stored = codecs.decode(codecs.encode(rows.of(codec), spec=spec), num_rows=num_rows, spec=spec)
    return float(codec_kl(rows.of(codec), stored).mean())


def _encode_block(rows: _Rows, *, codec: CodecSpec) -> bytes:
    return encode_target_block(
        rows.of(codec),
        target=rows.spec(codec),
        view=0,
        first_sample=0,
        present=np.ones(len(rows.tokens), dtype=np.bool_),
        key_hash=0,
        tokens=rows.tokens,
        vocabulary_size=rows.num_classes,
    )


def _label_bytes(block: bytes) -> int:
    """Return the bytes of a block less those of its tokens."""
    header_bytes = int.from_bytes(block[8:12], "little")
    streams = json.loads(block[12 : 12 + header_bytes])["streams"]
    return len(block) - sum(stored for name, _, stored in streams if name.startswith(("tokens", "token_checksums", "lengths")))


def _contestants(rows: _Rows) -> dict[str, _Contestant]:
    num_rows = len(rows.ranked)
    found: dict[str, _Contestant] = {}
    compact = _compact(rows)
    names = {
        f"exact, K={_K}": ExactCodec(),
        f"compact, K={_K}, {compact.levels} levels": compact,
        "sampled, 50 draws (RS-KD)": _SAMPLED,
        f"threshold, levels {_THRESHOLD.levels}": _THRESHOLD,
    }
    for name, codec in names.items():
        spec, streams = rows.spec(codec), codecs.encode(rows.of(codec), spec=rows.spec(codec))
        block = _encode_block(rows, codec=codec)
        found[f"decant {name}"] = _Contestant(
            encode=partial(_encode_block, rows, codec=codec),
            decode=partial(decode_target_block, block, origin="benchmark"),
            bytes_per_row=_label_bytes(block) / num_rows,
            kl=None if codec.kind in rows.drawn else _codec_kl(rows, codec=codec),
        )
        found[f"- codec alone: {name}"] = _Contestant(
            encode=partial(_count_streams, rows, codec=codec),
            decode=partial(codecs.decode, streams, num_rows=num_rows, spec=spec),
            bytes_per_row=None,
        )
    expected = ranked_tensors(
        torch.from_numpy(rows.ranked.class_ids.astype(np.int32)), torch.from_numpy(rows.ranked.log_probs).half()
    )
    for layout in _PEERS:
        data = layout.encode(rows.ranked)
        for mine, theirs in zip(expected, layout.decode(data), strict=True):
            if not torch.equal(mine, theirs):
                raise AssertionError(f"{layout.name}: reads something else than was stored")
        found[layout.name] = _Contestant(
            encode=partial(layout.encode, rows.ranked), decode=partial(layout.decode, data), bytes_per_row=len(data) / num_rows
        )
    three = ThreeByteDraws()
    data = three.encode(rows.drawn["sampled"])
    _check_draws(three, data=data, rows=rows)
    found[three.name] = _Contestant(
        encode=partial(three.encode, rows.drawn["sampled"]),
        decode=partial(three.decode, data),
        bytes_per_row=len(data) / num_rows,
    )
    return found


def _count_streams(rows: _Rows, *, codec: CodecSpec) -> int:
    return len(codecs.encode(rows.of(codec), spec=rows.spec(codec)))


def _check_draws(layout: ThreeByteDraws, *, data: bytes, rows: _Rows) -> None:
    spec = rows.spec(_SAMPLED)
    stored = codecs.decode(codecs.encode(rows.drawn["sampled"], spec=spec), num_rows=len(rows.ranked), spec=spec)
    found = layout.decode(data)
    if not (np.array_equal(found.class_ids, stored.class_ids) and np.allclose(found.probs, stored.probs, atol=1e-6)):
        raise AssertionError(f"{layout.name}: reads something else than was stored")


def _measure(rows: _Rows, *, title: str, num_passes: int) -> tuple[Table, dict[str, tuple[_Contestant, float, float]]]:
    num_rows = len(rows.ranked)
    contestants = _contestants(rows)
    measured = {
        way: round_robin(
            {name: partial(_run, getattr(one, way), num_rows=num_rows) for name, one in contestants.items()},
            num_passes=num_passes,
            on_pass=lambda index: None,
        )
        for way in ("encode", "decode")
    }
    found = {
        name: (one, rates(measured["encode"][name]).per_cpu_second, rates(measured["decode"][name]).per_cpu_second)
        for name, one in contestants.items()
    }
    table: list[tuple[Cell, ...]] = [
        (name, one.bytes_per_row, one.kl, encoded, decoded) for name, (one, encoded, decoded) in found.items()
    ]
    kept = float(np.exp(rows.ranked.log_probs).sum(axis=1).mean())
    entries = len(rows.drawn["sampled"].class_ids) / num_rows
    return (
        Table(
            title=f"{title}: {rows.num_classes:,} classes, {100 * kept:.1f} % of the mass in {_K}, {entries:.1f} classes in 50 draws",
            columns=("layout", "bytes a position", "codec KL, mean", "encoded a second", "decoded a second"),
            rows=tuple(table),
        ),
        found,
    )


def _run(work: Callable[[], object], *, num_rows: int) -> int:
    # A stream is one block after the other: the first alone would be timed with caches that others have filled.
    for _ in range(_CALLS_A_PASS):
        work()
    return _CALLS_A_PASS * num_rows


def _goals(found: dict[str, tuple[_Contestant, float, float]], *, title: str, drawn: bool) -> list[Goal]:
    goals = []
    for name, (one, encoded, decoded) in found.items():
        kind = name.removeprefix("decant ").split(",")[0]
        if not name.startswith("decant ") or one.bytes_per_row is None:
            continue
        what = f"{kind}, {title.lower()}"
        if kind in _LIMITS:
            goals += [
                Goal(what=f"{what}: bytes a position, K={_K}", measured=one.bytes_per_row, limit=_LIMITS[kind], unit="B"),
                Goal(what=f"{what}: encoded a second", measured=encoded, limit=_ENCODED_LIMIT, at_most=False),
                Goal(what=f"{what}: decoded a second", measured=decoded, limit=_DECODED_LIMIT, at_most=False),
            ]
        elif kind == "sampled" and drawn:
            goals.append(Goal(what=f"{what}: bytes a position", measured=one.bytes_per_row, limit=_RS_KD_LIMIT, unit="B"))
    return goals
