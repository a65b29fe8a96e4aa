"""A slow teacher that writes down every batch, so that work done twice can be counted."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from tests.pipelines.networks import PREPROCESSING, ColourNetwork

LOG = "DECANT_TEST_BATCHES"
"""Environment variable; an argument of the factory would be part of what the teacher is."""


class CountingNetwork(ColourNetwork):
    """Appends one byte to the file that an environment variable names for each batch it has finished."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return logits; batches of two are the check at load and are not counted."""
        logits: torch.Tensor = super().forward(inputs)
        if len(inputs) > 2:
            file = os.open(os.environ[LOG], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.write(file, b".")
            os.close(file)
        return logits


def counting(seconds_per_batch: float) -> tuple[CountingNetwork, dict[str, object]]:
    """Return the teacher, as users write their factories."""
    return CountingNetwork(num_classes=3, seconds_per_batch=seconds_per_batch), PREPROCESSING


def num_batches(log: Path) -> int:
    """Return how many batches were finished so far."""
    return log.stat().st_size if log.exists() else 0
