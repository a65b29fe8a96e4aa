"""A real network that writes down every batch, so that work done twice can be counted; a factory as users write them."""

from __future__ import annotations

import os
import time
from typing import Any

import timm
import torch

LOG = "DECANT_TRIAL_BATCHES"
"""Environment variable that names the file; an argument of the factory would be part of what the teacher is."""

_GREY = (0.3, 0.3, 0.3)


class CountedNetwork(torch.nn.Module):
    """Appends one byte to a file for each batch it has finished."""

    def __init__(self, network: torch.nn.Module, *, seconds_per_batch: float) -> None:
        super().__init__()
        self.network = network
        self._seconds_per_batch = seconds_per_batch

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return logits; batches of two are the check at load and are not counted."""
        logits: torch.Tensor = self.network(inputs)
        if len(inputs) > 2:
            time.sleep(self._seconds_per_batch)
            file = os.open(os.environ[LOG], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.write(file, b".")
            os.close(file)
        return logits


def counted(*, checkpoint: str, pixels: int, num_classes: int, seconds_per_batch: float) -> tuple[CountedNetwork, dict[str, Any]]:
    """Return timm's resnet10t with the weights of a file, and what pictures it expects."""
    network = timm.create_model("resnet10t", num_classes=num_classes, checkpoint_path=checkpoint)
    preprocessing = {"input_size": (3, pixels, pixels), "mean": _GREY, "std": _GREY, "crop_pct": 1.0}
    return CountedNetwork(network, seconds_per_batch=seconds_per_batch), preprocessing
