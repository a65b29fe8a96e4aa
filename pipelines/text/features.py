"""Vectors of a batch of sequences."""

from __future__ import annotations

import numpy as np
import torch

from pipelines.teachers.text_base import TextOutputs
from pipelines.text.batches import TextBatch
from pipelines.text.soft_labels import ExtractedRows
from pipelines.vectors import extract_vectors
from storage.alignment import rows_per_sample
from storage.specs import FeaturesSpec


def extract_features(outputs: TextOutputs, batch: TextBatch, *, target: FeaturesSpec) -> ExtractedRows:
    """Return the vectors of a batch's sequences."""
    counts = rows_per_sample(target, lengths=batch.tokens.lengths, mask_counts=None)
    device = outputs.teacher.device
    lengths = torch.from_numpy(batch.lengths[: len(batch)]).to(device)
    there = torch.arange(batch.token_ids.shape[1], device=device) < lengths[:, None]
    rows, storable = extract_vectors(outputs, target=target, there=there)
    whole = np.ones(len(batch), dtype=np.bool_)
    whole[np.repeat(np.arange(len(batch)), counts)[~storable]] = False
    return ExtractedRows(values=rows, counts=counts, whole=whole, probability_sums=None)
