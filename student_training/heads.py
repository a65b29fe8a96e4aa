"""A teacher's frozen head in torch: logits over the whole vocabulary, rebuilt from stored hidden states."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from storage.errors import MismatchError
from storage.heads import Activation, ActivationName, FrozenHead, LayerNorm, Linear, RmsNorm, Scale, SoftCap

_ACTIVATIONS: dict[ActivationName, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": functional.gelu,
    "gelu_tanh": lambda values: functional.gelu(values, approximate="tanh"),
    "relu": functional.relu,
    "silu": functional.silu,
    "tanh": torch.tanh,
}


class HeadModule(nn.Module):
    """Logits from last hidden states: float32 throughout, nothing to train, and nothing of it in a checkpoint.

    Rows are independent: give it only those whose logits a loss reads, since a vocabulary of logits takes far more memory than
    the hidden state it comes from.
    """

    def __init__(self, head: FrozenHead, *, teacher_kind: str | None = None) -> None:
        """Take a head.

        Args:
            head: as it is stored.
            teacher_kind: of the teacher that it was taken from, which says of which token its logits are; None: not known.
        """
        super().__init__()
        self.spec = head.spec
        self.teacher_kind = teacher_kind
        for name, values in head.tensors.items():
            # torch.tensor copies: decoded arrays may be read-only.
            self.register_buffer(name.replace(".", "_"), torch.tensor(values), persistent=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return float32 [rows, outputs] of hidden states [rows, width].

        Raises:
            MismatchError: hidden states of another width.
        """
        if hidden.shape[-1] != self.spec.width:
            raise MismatchError(
                f"the teacher's head reads hidden states {self.spec.width} wide, these are {hidden.shape[-1]} wide: they are of "
                "another layer or teacher. Choose the label set that the head came with"
            )
        values = hidden.float()
        buffers = dict(self.named_buffers())
        # Under autocast a linear would round the logits to bfloat16.
        with torch.autocast(hidden.device.type, enabled=False):
            for index, operation in enumerate(self.spec.operations):
                weight, bias = buffers.get(f"{index}_weight"), buffers.get(f"{index}_bias")
                match operation:
                    case Linear():
                        assert weight is not None
                        values = functional.linear(values, weight, bias)
                    case Activation():
                        values = _ACTIVATIONS[operation.name](values)
                    case LayerNorm():
                        values = functional.layer_norm(values, (operation.width,), weight, bias, operation.eps)
                    case RmsNorm():
                        values = functional.rms_norm(values, (operation.width,), weight, operation.eps)
                    case Scale():
                        values = values * operation.factor
                    case SoftCap():
                        values = operation.cap * torch.tanh(values / operation.cap)
        return values
