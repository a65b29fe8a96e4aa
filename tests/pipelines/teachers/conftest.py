"""Tiny real models on disk, and a hub that is known to be out of reach."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail at once where there is no network, instead of after the hub client's retries."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny networks lose more by threads than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def shake() -> Callable[..., Any]:
    """Give every tensor of a module reproducible values far from its initial ones."""

    def shake_module(module: torch.nn.Module, *, seed: int = 0) -> torch.nn.Module:
        generator = torch.Generator().manual_seed(seed)
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                noise = 0.3 * torch.randn(tensor.shape, generator=generator)
                tensor.copy_(0.5 + noise.abs() if name.endswith("running_var") else noise)
        return module

    return shake_module


@pytest.fixture
def save_state() -> Callable[..., str]:
    """Write a state dict as safetensors or as a torch file, by the name's ending."""

    def save(state: Any, path: Path) -> str:
        if path.suffix == ".safetensors":
            safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
        else:
            torch.save(state, path)
        return str(path)

    return save


@pytest.fixture
def picture() -> Callable[..., Image.Image]:
    """Make RGB noise over a gradient."""

    def make(width: int, height: int, *, seed: int = 0) -> Image.Image:
        noise = np.random.default_rng(seed).integers(0, 90, (height, width, 3))
        rows, columns = np.mgrid[0:height, 0:width]
        ramps = np.stack([rows * 160 / height, columns * 160 / width, (rows + columns) * 160 / (height + width)], axis=-1)
        return Image.fromarray((noise + ramps).astype(np.uint8))

    return make
