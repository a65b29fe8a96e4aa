"""Quantisation-aware training: weights and activations on a symmetric integer grid, gradients as if they were not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

THRESHOLD = "activation_threshold"
"""Name of the buffer that holds the largest activation a layer reads, as a moving average; 0 before the first batch."""


def fake_quantize(values: Tensor, *, threshold: Tensor, bits: int) -> Tensor:
    """Return values rounded to a grid: clamp(round(x * s), -q, q) / s, q = 2^(bits - 1) - 1, s = q / threshold.

    The gradient is that of the identity (straight-through estimator).

    Args:
        values: of any shape.
        threshold: scalar, the largest value of the grid; at 0 every value becomes 0.
        bits: of the grid.

    References:
        Zafrir et al., Q8BERT: Quantized 8Bit BERT, https://arxiv.org/abs/1910.06188
    """
    limit = 2 ** (bits - 1) - 1
    with torch.no_grad():
        wide = values.float()
        step = (threshold.float() / limit).clamp(min=torch.finfo(torch.float32).tiny)
        correction: Tensor = (wide / step).round().clamp(-limit, limit) * step - wide
    return values + correction.to(values.dtype)


def quantize_for_training(network: nn.Module, *, bits: int, activation_decay: float) -> None:
    """Have every linear layer and embedding of a network compute with rounded weights, and linear layers with rounded inputs.

    A weight's grid follows its largest absolute value at every step; an input's follows a moving average that training updates
    and evaluation leaves. Norms, softmax and activation functions read what is not rounded; biases, 32 bits wide in integer
    arithmetic, are left as they are. Parameters keep their names, shapes and ties.

    Args:
        network: changed in place.
        bits: of weights and activations.
        activation_decay: share of the old average that stays; the first batch sets it.
    """
    for module in list(network.modules()):
        kind = _KINDS.get(type(module))
        if kind is None:
            continue
        layer: Any = module
        layer.__class__ = kind
        layer.bits, layer.activation_decay = bits, activation_decay
        if kind is not _RoundedEmbedding:
            layer.register_buffer(THRESHOLD, torch.zeros((), device=layer.weight.device))


def float_state(network: nn.Module) -> dict[str, Tensor]:
    """Return a network's tensors without thresholds: those that it has without quantisation."""
    return {name: tensor for name, tensor in network.state_dict().items() if not name.endswith(THRESHOLD)}


def set_thresholds(network: nn.Module, *, largest: Mapping[str, float]) -> None:
    """Put the largest activations of layers back, by the layers' names."""
    for name, value in largest.items():
        network.get_buffer(f"{name}.{THRESHOLD}").fill_(value)


def thresholds(network: nn.Module) -> dict[str, float]:
    """Return the largest activation that each layer reads, by the layer's name."""
    suffix = f".{THRESHOLD}"
    return {name.removesuffix(suffix): float(value) for name, value in network.named_buffers() if name.endswith(suffix)}


def _rounded_weight(layer: Any) -> Tensor:
    """Return a layer's weight on its grid."""
    return fake_quantize(layer.weight, threshold=layer.weight.detach().abs().max(), bits=layer.bits)


def _rounded_input(layer: Any, values: Tensor) -> Tensor:
    """Return what a layer reads on its grid, having moved the grid in training."""
    threshold: Tensor = layer.activation_threshold
    largest = values.detach().abs().max().to(threshold.dtype)
    if layer.training:
        moved = threshold * layer.activation_decay + largest * (1 - layer.activation_decay)
        threshold.copy_(torch.where(threshold == 0, largest, moved))
    return fake_quantize(values, threshold=torch.where(threshold == 0, largest, threshold), bits=layer.bits)


class _RoundedLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(_rounded_input(self, input), _rounded_weight(self), self.bias)


class _RoundedConv1D(Conv1D):
    def forward(self, x: Tensor) -> Tensor:
        rounded: Tensor = _rounded_input(self, x) @ _rounded_weight(self) + self.bias
        return rounded


class _RoundedEmbedding(nn.Embedding):
    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.embedding(input, _rounded_weight(self), self.padding_idx)


_KINDS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: _RoundedLinear,
    Conv1D: _RoundedConv1D,
    nn.Embedding: _RoundedEmbedding,
}
