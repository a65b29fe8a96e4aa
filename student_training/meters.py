"""Figures gathered in every update without making the device wait."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from storage.errors import DecantError

_MAX_PENDING = 8
_MAX_KEYS = 8
_REMEDY = (
    "Lower training.optimizer.learning_rate, set training.clip_grad_norm, or use precision fp32 or bf16: that makes it another "
    "run, for another training.output or --restart"
)


class DivergenceError(DecantError):
    """The loss of a step, or weights, are not numbers."""


class LossGuard:
    """Stops training at a loss that is not finite.

    A CPU's loss is checked at once. A GPU's is copied to the host without waiting and checked a few updates later; `flush` waits,
    and comes before anything is written.
    """

    def __init__(self) -> None:
        self._pending: deque[tuple[int, list[str], Tensor, torch.cuda.Event | None]] = deque()

    def watch(self, loss: Tensor, *, step: int, keys: list[str]) -> None:
        """Check a loss, now or soon.

        Raises:
            DivergenceError: this loss, or an earlier one, is not finite.
        """
        if loss.device.type != "cuda":
            self._pending.append((step, keys, loss.detach(), None))
            self.flush()
            return
        host = torch.empty((), dtype=loss.dtype, pin_memory=True)
        host.copy_(loss.detach(), non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record()
        self._pending.append((step, keys, host, copied))
        if len(self._pending) > _MAX_PENDING:
            self._check()

    def flush(self) -> None:
        """Check every loss that was given.

        Raises:
            DivergenceError: one of them is not finite.
        """
        while self._pending:
            self._check()

    def _check(self) -> None:
        step, keys, loss, copied = self._pending.popleft()
        if copied is not None:
            copied.synchronize()
        if torch.isfinite(loss):
            return
        others = f" and {len(keys) - _MAX_KEYS} more" if len(keys) > _MAX_KEYS else ""
        named = ", ".join(map(repr, keys[:_MAX_KEYS])) + others
        raise DivergenceError(
            f"the loss of step {step} is {loss.item()}, on the samples {named}; the weights are of no use any more, and nothing "
            f"was written after the last checkpoint. {_REMEDY}"
        )


def require_finite_weights(module: nn.Module, *, step: int) -> None:
    """Check weights before they are written: an update may spoil them whose own loss was finite.

    Raises:
        DivergenceError: one of them is not finite.
    """
    finite = [torch.isfinite(parameter).all() for parameter in module.parameters()]
    if finite and not torch.stack(finite).all():
        raise DivergenceError(
            f"weights are not finite after step {step}, whose loss was; they were not written, and the checkpoint before is the "
            f"newest. {_REMEDY}"
        )


class LossMeter:
    """Means of the losses since the last report, summed on the device."""

    def __init__(self, names: tuple[str, ...], *, device: torch.device) -> None:
        self._names = names
        self._sums = torch.zeros(len(names), dtype=torch.float64, device=device)
        self._count = 0

    def add(self, losses: dict[str, Tensor]) -> None:
        """Add the losses of one update."""
        self._sums += torch.stack([losses[name].detach() for name in self._names])
        self._count += 1

    def report(self, accelerator: Accelerator) -> dict[str, float]:
        """Return the means over updates and processes, and begin anew."""
        sums = accelerator.reduce(self._sums, reduction="mean").tolist()
        count = max(self._count, 1)
        self._sums.zero_()
        self._count = 0
        return {name: total / count for name, total in zip(self._names, sums, strict=True)}

    def state(self, accelerator: Accelerator) -> dict[str, Any]:
        """Return the sums so far, over all processes, for a checkpoint."""
        return {"sums": accelerator.reduce(self._sums, reduction="mean").tolist(), "count": self._count}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint's sums."""
        self._sums.copy_(torch.tensor(state["sums"], dtype=torch.float64))
        self._count = state["count"]


class Throughput:
    """Samples a second over all processes, without the first updates, evaluations and checkpoints."""

    def __init__(self, *, device: torch.device, skip_steps: int) -> None:
        self._device = device
        self._skip_steps = skip_steps
        self._steps = 0
        self._samples = 0
        self._started = self._lap_started = self._now()
        self._lap_samples = 0

    def add(self, samples: int) -> None:
        """Count one update."""
        self._steps += 1
        self._samples += samples
        self._lap_samples += samples
        if self._steps == self._skip_steps:
            self._started, self._samples = self._now(), 0

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leave out the time of something that is not training."""
        started = self._now()
        yield
        seconds = self._now() - started
        self._started += seconds
        self._lap_started += seconds

    def lap(self) -> float:
        """Return samples a second since the last call."""
        now = self._now()
        rate = self._lap_samples / max(now - self._lap_started, 1e-9)
        self._lap_started, self._lap_samples = now, 0
        return rate

    def steady(self) -> float:
        """Return samples a second since the first updates; 0 if none were made."""
        return self._samples / max(self._now() - self._started, 1e-9)

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
