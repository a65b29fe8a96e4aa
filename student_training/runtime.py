"""Where training runs: device, precision and processes, through accelerate."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState

from storage.config.training import TrainingConfig
from storage.errors import ConfigError

_PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


@contextmanager
def open_accelerator(config: TrainingConfig) -> Iterator[Accelerator]:
    """Yield an accelerator for one training; several processes are found from the environment that a launcher sets.

    accelerate keeps its state in the process; it is cleared here, so that one process can train several students in turn.

    Raises:
        ConfigError: a device that is not there, a precision that it does not compute in, or gradient accumulation.
    """
    device = resolve_device(config.device)
    check_precision(config.precision, device=device)
    _forget_state()
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision=_PRECISIONS[config.precision])
    _require_one_batch_an_update(accelerator)
    yield accelerator
    accelerator.end_training()
    _forget_state()


def _require_one_batch_an_update(accelerator: Accelerator) -> None:
    """Refuse what a launcher asks for and an update does not do: accelerate divides the gradient by it all the same.

    Raises:
        ConfigError: it asks for gradients of several batches.
    """
    if accelerator.gradient_accumulation_steps != 1:
        raise ConfigError(
            f"the environment asks for {accelerator.gradient_accumulation_steps} gradient accumulation steps "
            "(ACCELERATE_GRADIENT_ACCUMULATION_STEPS), and an update is of one batch, whose gradient would be divided by as "
            "many; unset it: training.batch_size is the size of an update, shared out to all processes"
        )


def count_local_processes(accelerator: Accelerator) -> int:
    """Return the training processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))


def resolve_device(name: str) -> str:
    """Return `cpu` or `cuda`.

    Raises:
        ConfigError: an unknown name, or cuda where torch finds no GPU.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise ConfigError(
            f"training.device is {name!r}; valid are auto, cpu and cuda. Choose one of several GPUs with CUDA_VISIBLE_DEVICES"
        )
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"training.device is cuda but torch {torch.__version__} finds no GPU here; set device: cpu to train slowly, or "
            "check the driver and that torch is built for CUDA"
        )
    return name


def check_precision(precision: str, *, device: str) -> None:
    """Check that a device computes in a precision.

    Raises:
        ConfigError: it does not.
    """
    if precision == "fp16" and device == "cpu":
        raise ConfigError("training.precision is fp16, which CPUs do not train in; use bf16 or fp32, or device: cuda")
    if precision == "bf16" and device == "cuda" and not torch.cuda.is_bf16_supported():
        raise ConfigError("training.precision is bf16, which this GPU does not compute in; use fp16 or fp32")


def _forget_state() -> None:
    """Clear accelerate's record of device and precision; that of processes stays while they are connected."""
    connected = torch.distributed.is_available() and torch.distributed.is_initialized()
    AcceleratorState._reset_state(reset_partial_state=not connected)
    if not connected:
        PartialState._reset_state()
