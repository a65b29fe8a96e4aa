"""Teachers of our own that misbehave when a picture tells them to; `package.module:factory` as users write them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch

PREPROCESSING = {"input_size": (3, 16, 16), "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "crop_pct": 1.0}
RAISE_COLOUR = (255, 0, 0)
NAN_COLOUR = (0, 255, 0)
DRIFT = "DECANT_TEST_DRIFT"
"""Environment variable that makes the same network give slightly other logits, as another device does."""


class ColourNetwork(torch.nn.Module):
    """A linear layer on the pixels; what stands on a view's left edge may make it fail."""

    def __init__(self, *, num_classes, seconds_per_batch):
        super().__init__()
        self.head = torch.nn.Linear(3 * 16 * 16, num_classes)
        with torch.no_grad():
            self.head.weight.copy_(0.05 * torch.randn(self.head.weight.shape, generator=torch.Generator().manual_seed(0)))
            self.head.bias.zero_()
        self.seconds_per_batch = seconds_per_batch

    def forward(self, inputs):
        if self.seconds_per_batch:
            time.sleep(self.seconds_per_batch)
        logits = self.head(inputs.flatten(1)) * float(os.environ.get(DRIFT, "1"))
        if _edge_is(inputs, RAISE_COLOUR).any():
            raise RuntimeError("this picture is one too many")
        return torch.where(_edge_is(inputs, NAN_COLOUR)[:, None], torch.nan, logits)


def _edge_is(inputs, colour):
    edge = inputs[:, :, :, 0].mean(dim=2)
    return ((edge - torch.tensor(colour) / 255).abs() < 0.02).all(dim=1)


def colours(num_classes=3, seconds_per_batch=0.0, log=None, class_names=None):
    """A small network; each load of it adds a line to the file `log`."""
    if log is not None:
        with Path(log).open("a", encoding="utf-8") as file:
            file.write("loaded\n")
    names = {} if class_names is None else {"label_names": class_names}
    return ColourNetwork(num_classes=num_classes, seconds_per_batch=seconds_per_batch), {**PREPROCESSING, **names}


class BrokenAfterLoading(torch.nn.Module):
    """Passes the check at load, where two views come at once, and fails on every real batch."""

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(3, 3)

    def forward(self, inputs):
        if len(inputs) != 2:
            raise RuntimeError("no kernel for this batch")
        return self.head(inputs.mean(dim=(2, 3)))


def broken_after_loading():
    return BrokenAfterLoading(), PREPROCESSING
