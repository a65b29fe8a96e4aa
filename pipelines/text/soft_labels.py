"""Soft labels of a batch of sequences: logits of the tokens that have labels, a bounded number of them at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from pipelines.extraction import DrawnBatch, ExtractedBatch, extract
from pipelines.teachers.text_base import TextOutputs
from pipelines.text.batches import TextBatch
from pipelines.values import concatenate_values
from storage.codecs.values import UnstoredValues
from storage.random import label_uniforms
from storage.specs import SampledCodec, SoftLabelsSpec, ThresholdCodec
from storage.text.token_rows import offsets_of

_MAX_LOGITS = 1 << 24
"""Logits that leave a head at a time, however many tokens a batch has labels of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtractedRows:
    """What is kept of a batch.

    Attributes:
        values: rows of the batch's sequences, sequence by sequence in the batch's order; of sequences that are not whole too.
        counts: int64 [sequences], rows of each.
        whole: bool [sequences], False where a row cannot be stored; such a sequence's values mean nothing.
        probability_sums: float64 [classes], sum of all class probabilities over the rows of whole sequences; None of features.
    """

    values: UnstoredValues
    counts: npt.NDArray[np.int64]
    whole: npt.NDArray[np.bool_]
    probability_sums: npt.NDArray[np.float64] | None


def labelled_places(batch: TextBatch, *, target: SoftLabelsSpec) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return int64 [rows] twice: the batch's sequence and the token in it that each row of labels is of.

    A row of labels of a next token stands at the token before it: row i of a sequence is what its token i + 1 may be.
    """
    lengths = batch.tokens.lengths
    if target.positions == "masked":
        assert batch.tokens.masks is not None
        masks = batch.tokens.masks
        return np.repeat(np.arange(len(batch)), masks.counts), masks.positions
    counts = lengths if target.positions == "all" else lengths - 1
    starts = offsets_of(counts)[:-1]
    return np.repeat(np.arange(len(batch)), counts), np.arange(int(counts.sum())) - np.repeat(starts, counts)


def extract_soft_labels(outputs: TextOutputs, batch: TextBatch, *, target: SoftLabelsSpec, view: int) -> ExtractedRows:
    """Return the soft labels of a batch's sequences.

    Args:
        view: view index; draws depend on it.
    """
    rows = _Rows.of(batch, target=target, view=view)
    whole = np.ones(len(batch), dtype=np.bool_)
    chunks = _extract(outputs, rows, target=target, whole=whole)
    whole[rows.sequences[~np.concatenate([chunk.finite for chunk in chunks])]] = False
    if not whole.all():
        # Rare: once more, so that no row of a sequence that is left out counts in the sums.
        chunks = _extract(outputs, rows, target=target, whole=whole)
    return ExtractedRows(
        values=concatenate_values([chunk.rows for chunk in chunks]),
        counts=np.bincount(rows.sequences, minlength=len(batch)),
        whole=whole,
        probability_sums=np.sum([chunk.probability_sums for chunk in chunks], axis=0),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rows:
    """Which rows a batch has.

    Attributes:
        sequences: int64 [rows], of the batch.
        positions: int64 [rows], tokens in their sequence; None where a sequence has one row.
        uniforms: float64 [rows, n]; None where the codec does not draw.
    """

    sequences: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64] | None
    uniforms: npt.NDArray[np.float64] | None

    @classmethod
    def of(cls, batch: TextBatch, *, target: SoftLabelsSpec, view: int) -> _Rows:
        sequences, positions = np.arange(len(batch)), None
        if target.positions != "view":
            sequences, positions = labelled_places(batch, target=target)
        uniforms = None
        if isinstance(target.codec, SampledCodec | ThresholdCodec):
            places = np.zeros(len(batch), dtype=np.int64) if positions is None else positions
            bounds = np.searchsorted(sequences, np.arange(len(batch) + 1)).tolist()
            uniforms = np.concatenate(
                [
                    label_uniforms(target.codec, key=key, view_index=view, positions=places[bounds[index] : bounds[index + 1]])
                    for index, key in enumerate(batch.keys)
                ]
            )
        return cls(sequences=sequences, positions=positions, uniforms=uniforms)


def _extract(
    outputs: TextOutputs, rows: _Rows, *, target: SoftLabelsSpec, whole: npt.NDArray[np.bool_]
) -> list[ExtractedBatch | DrawnBatch]:
    size = max(1, _MAX_LOGITS // target.num_classes)
    device = outputs.teacher.device
    found: list[ExtractedBatch | DrawnBatch] = []
    # At least one chunk, so that a batch without rows has values too.
    for first in range(0, max(len(rows.sequences), 1), size):
        chunk = slice(first, first + size)
        sequences = torch.from_numpy(rows.sequences[chunk]).to(device)
        if rows.positions is None:
            logits = outputs.sequence_logits()[sequences]
        else:
            logits = outputs.token_logits(sequences, torch.from_numpy(rows.positions[chunk]).to(device))
        uniforms = None if rows.uniforms is None else rows.uniforms[chunk]
        found.append(
            extract(logits, spec=target, alive=whole[rows.sequences[chunk]], uniforms=uniforms, minus_infinity_allowed=True)
        )
    return found
