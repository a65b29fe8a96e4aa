"""Teachers to label with: timm networks with random weights, as costly as trained ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from torch import nn

_CONFIDENCE = 12.0
"""Deviation the head's logits are brought to: random weights are otherwise sure of nothing, and every class is a near tie."""


def write_teacher(path: Path, *, name: str, num_classes: int, kwargs: dict[str, Any] | None = None) -> dict[str, Any]:
    """Write the weights of a network and return its teacher config."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=num_classes, **(kwargs or {})).eval()
    head = model.get_classifier()
    assert isinstance(head, nn.Linear)
    side = (kwargs or {}).get("img_size")
    size = (3, side, side) if side else model.pretrained_cfg["input_size"]
    with torch.inference_mode():
        deviation = model(torch.randn(2, *size)).std(dim=1).mean()
        head.weight.mul_(_CONFIDENCE / deviation)
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
    return {"kind": "timm", "name": name, "checkpoint": str(path), "num_classes": num_classes, "kwargs": kwargs or {}}
