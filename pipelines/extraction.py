"""Logits to labels, on the device: only what is stored of a row leaves it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import overload

import numpy as np
import numpy.typing as npt
import torch

from storage.codecs import DrawnLabels, RankedLabels
from storage.codecs.sampled import num_shares
from storage.random import num_uniforms
from storage.specs import SampledCodec, SoftLabelsSpec, ThresholdCodec

_SAFE_LOG = -60.0
"""Sums of float32 probabilities below exp of it may have lost digits to underflow."""
_CHUNK_VALUES = {"cpu": 1 << 21}
"""Logits taken at a time, by device. On a CPU so few that every pass finds them in its cache and that freed memory serves again:
new pages from the system for every batch would cost more than the arithmetic."""
_CHUNK_VALUES_ELSEWHERE = 1 << 24
"""A few hundred megabytes with all that is made of them, however many positions a batch has."""
_FLOOR_NATS = 80.0
"""A logit of minus infinity becomes one so far below the row's largest: a probability of 1e-35, less than any codec keeps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtractedBatch:
    """What a teacher step leaves of a batch.

    Attributes:
        rows: one row for every view of the batch, also for those that are not finite.
        finite: bool [batch], False where a logit, over the temperature, is NaN or infinite; such a row's values mean nothing.
        probability_sums: float64 [classes], sum of all class probabilities over the rows that are alive and finite.
    """

    rows: RankedLabels
    finite: npt.NDArray[np.bool_]
    probability_sums: npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawnBatch:
    """What a teacher step leaves of a batch whose classes are drawn; as `ExtractedBatch` but for its rows."""

    rows: DrawnLabels
    finite: npt.NDArray[np.bool_]
    probability_sums: npt.NDArray[np.float64]


@overload
def extract(
    logits: torch.Tensor, *, spec: SoftLabelsSpec, alive: npt.NDArray[np.bool_], minus_infinity_allowed: bool = False
) -> ExtractedBatch: ...


@overload
def extract(
    logits: torch.Tensor,
    *,
    spec: SoftLabelsSpec,
    alive: npt.NDArray[np.bool_],
    uniforms: npt.NDArray[np.float64],
    minus_infinity_allowed: bool = False,
) -> DrawnBatch: ...


@overload
def extract(
    logits: torch.Tensor,
    *,
    spec: SoftLabelsSpec,
    alive: npt.NDArray[np.bool_],
    uniforms: npt.NDArray[np.float64] | None,
    minus_infinity_allowed: bool = False,
) -> ExtractedBatch | DrawnBatch: ...


@torch.inference_mode()
def extract(
    logits: torch.Tensor,
    *,
    spec: SoftLabelsSpec,
    alive: npt.NDArray[np.bool_],
    uniforms: npt.NDArray[np.float64] | None = None,
    minus_infinity_allowed: bool = False,
) -> ExtractedBatch | DrawnBatch:
    """Return the most probable classes of a batch of logits and the mass of all others, or classes drawn from each row.

    Probabilities are those of a float32 softmax; they are added up in float64 where classes are drawn. A row's result depends on
    its logits and uniforms alone.

    Args:
        logits: float [batch, classes], any device.
        alive: bool [rows], for the rows in front that belong to the unit, whether the sample could be rendered; the rows behind
            pad the batch.
        uniforms: float64 [rows, `storage.random.num_uniforms`] for the codecs that draw, None for all others.
        minus_infinity_allowed: whether minus infinity is a probability of 0, as language models mean it for tokens they never
            give, or a fault; a row of nothing else always is one.

    Raises:
        ValueError: uniforms for a codec that does not draw, none for one that does, or of another shape.
    """
    _check_uniforms(uniforms, spec=spec, num_rows=len(alive))
    logits = logits[: len(alive)]
    alive_here = torch.from_numpy(alive).to(logits.device)
    draws = None if uniforms is None else torch.from_numpy(uniforms)
    step = max(1, _CHUNK_VALUES.get(logits.device.type, _CHUNK_VALUES_ELSEWHERE) // logits.shape[1])
    finite: list[torch.Tensor] = []
    ranked: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    drawn: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    sums = np.zeros(logits.shape[1])
    for start in range(0, max(len(alive), 1), step):
        chunk = slice(start, start + step)
        log_probs, chunk_finite = _log_probs(
            logits[chunk], temperature=spec.generation_temperature, minus_infinity_allowed=minus_infinity_allowed
        )
        finite.append(chunk_finite)
        probs = log_probs.exp()
        counted = chunk_finite & alive_here[chunk]
        sums += (counted.to(probs.dtype) @ probs).cpu().numpy().astype(np.float64)
        if draws is None:
            ranked.append(_rank(log_probs, probs=probs, entries=spec.max_entries))
        else:
            drawn.append(_draw(probs, uniforms=draws[chunk], spec=spec))
    is_finite = torch.cat(finite).cpu().numpy()
    if draws is None:
        class_ids, kept, log_rest = (torch.cat(column).cpu().numpy() for column in zip(*ranked, strict=True))
        rows = RankedLabels(class_ids=class_ids.astype(np.uint32), log_probs=kept, log_rest=log_rest)
        return ExtractedBatch(rows=rows, finite=is_finite, probability_sums=sums)
    entries, class_ids, counts = (torch.cat(column).cpu().numpy() for column in zip(*drawn, strict=True))
    labels = DrawnLabels(
        offsets=np.concatenate([[0], np.cumsum(entries)]).astype(np.int64),
        class_ids=class_ids.astype(np.uint32),
        counts=counts.astype(np.uint32),
    )
    return DrawnBatch(rows=labels, finite=is_finite, probability_sums=sums)


def _check_uniforms(uniforms: npt.NDArray[np.float64] | None, *, spec: SoftLabelsSpec, num_rows: int) -> None:
    width = num_uniforms(spec.codec)
    shape = None if uniforms is None else uniforms.shape
    if shape != ((num_rows, width) if width else None):
        raise ValueError(f"uniforms of shape {shape} for {num_rows} rows of codec {spec.codec.kind}, which takes {width} a row")


def _log_probs(logits: torch.Tensor, *, temperature: float, minus_infinity_allowed: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return float32 [rows, classes] and bool [rows], whether a row is finite."""
    scaled = logits.float() if temperature == 1 else logits.float() / temperature
    # Passes over a large vocabulary cost more than the body of a small teacher: one is enough to find NaN and infinity.
    smallest, largest = torch.aminmax(scaled, dim=1)
    if minus_infinity_allowed and torch.isneginf(smallest).any():
        floor = largest[:, None] - _FLOOR_NATS
        scaled = torch.where((scaled == -torch.inf) & floor.isfinite(), floor, scaled)
        smallest, largest = torch.aminmax(scaled, dim=1)
    finite = torch.isfinite(smallest) & torch.isfinite(largest)
    if not finite.all():
        # A row that is not finite becomes a dead letter; zeros keep its neighbours' arithmetic clean.
        scaled = torch.where(finite[:, None], scaled, 0.0)
    return torch.log_softmax(scaled, dim=1), finite


def _rank(log_probs: torch.Tensor, *, probs: torch.Tensor, entries: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return class ids and log-probabilities [rows, entries], most probable first, and the log of what all others have [rows].

    Probabilities of what is kept are overwritten.
    """
    kept, class_ids = torch.topk(log_probs, entries, dim=1, sorted=True)
    # 1 - sum(kept) would lose a small rest to rounding.
    log_rest = probs.scatter_(1, class_ids, 0.0).sum(dim=1).log()
    tiny = log_rest < _SAFE_LOG
    if entries < log_probs.shape[1] and tiny.any():
        others = log_probs[tiny].scatter(1, class_ids[tiny], -torch.inf)
        log_rest[tiny] = torch.logsumexp(others, dim=1)
    return class_ids, kept, log_rest


def _draw(
    probs: torch.Tensor, *, uniforms: torch.Tensor, spec: SoftLabelsSpec
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return int64 entries of each row [rows], and of all entries, row by row, the classes, ascending, and their counts."""
    # Metal has no float64.
    cumulated = (probs.cpu() if probs.device.type == "mps" else probs).double().cumsum(dim=1)
    cumulated /= cumulated[:, -1:].clone()
    uniforms = uniforms.to(cumulated.device)
    if isinstance(spec.codec, SampledCodec):
        return _independent(cumulated, uniforms=uniforms)
    assert isinstance(spec.codec, ThresholdCodec)
    return _systematic(cumulated, uniforms=uniforms, shares=num_shares(spec.codec))


def _independent(cumulated: torch.Tensor, *, uniforms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw a class for each uniform [rows, draws]: the first whose cumulated probability exceeds it."""
    drawn = torch.searchsorted(cumulated, uniforms.contiguous(), right=True).sort(dim=1).values
    first = torch.ones_like(drawn, dtype=torch.bool)
    first[:, 1:] = drawn[:, 1:] != drawn[:, :-1]
    places = first.flatten().nonzero().flatten()
    counts = torch.diff(places, append=places.new_tensor([drawn.numel()]))
    return first.sum(dim=1), drawn[first], counts


def _systematic(
    cumulated: torch.Tensor, *, uniforms: torch.Tensor, shares: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Deal equal shares at regular places of the cumulated probability, which one uniform a row [rows, 1] shifts together.

    A class of probability p gets floor(p * shares) or one more; the expected number is p * shares.
    """
    dealt = torch.ceil(cumulated * shares - uniforms)
    # Rounding must not lose the last share, nor, where a device adds up in pieces, take one back.
    dealt = torch.where(cumulated >= 1, float(shares), dealt).cummax(dim=1).values
    counts = torch.diff(dealt, dim=1, prepend=torch.zeros_like(dealt[:, :1])).long()
    row_ids, class_ids = counts.nonzero(as_tuple=True)
    return torch.bincount(row_ids, minlength=len(counts)), class_ids, counts[row_ids, class_ids]
