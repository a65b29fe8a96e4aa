"""Turn a loaded network into a teacher: hash its weights, place it, and prove on one batch what it gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipelines.teachers.base import Network, Preprocessing, Teacher, run_network
from pipelines.teachers.devices import resolve_device
from pipelines.teachers.picture_networks import PictureNetwork
from pipelines.teachers.weights import weights_sha256
from storage.config import TeacherConfig
from storage.errors import TeacherError
from storage.specs import TeacherSpec

if TYPE_CHECKING:
    import torch


def assemble_teacher(
    module: torch.nn.Module,
    *,
    config: TeacherConfig,
    architecture: str,
    preprocessing: Preprocessing,
    class_names: tuple[str, ...] | None,
    network: Network | None = None,
    vector_network: PictureNetwork | None = None,
) -> Teacher:
    """Return the teacher made of a module; `network` is its forward pass where that is not simply `module(inputs)`.

    Precision is a cast of the whole module, not autocast: what autocast runs in which dtype differs between devices and torch
    releases, so the same spec would name different functions; and a cast halves memory where autocast keeps float32 weights
    and casts them again in every batch. The weights are hashed as float32, before the cast.

    Raises:
        TeacherError: a missing device, weights that do not fit the precision, a forward pass that fails or gives no finite
            logits, another number of classes than the config says.
    """
    import torch

    kind = config.kind
    assert kind in ("timm", "transformers", "factory")
    device = resolve_device(config.device)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[config.precision]
    module = module.eval().requires_grad_(False).float()
    weights = weights_sha256(module)
    if dtype == torch.float16:
        check_range(module, name=config.name)
    module = module.to(device=device, dtype=dtype)
    num_classes = _count_classes(network or module, config=config, preprocessing=preprocessing, device=device, dtype=dtype)
    if class_names is not None and len(class_names) != num_classes:
        raise TeacherError(
            f"teacher {config.name} names {len(class_names)} classes but gives {num_classes} logits: names and labels would not "
            "belong together. Correct the class names in the model's config"
        )
    return Teacher(
        name=config.name,
        spec=TeacherSpec(
            kind=kind,
            architecture=architecture,
            weights_sha256=weights,
            num_classes=num_classes,
            normalization=preprocessing.normalization,
            precision=config.precision,
        ),
        preprocessing=preprocessing,
        class_names=class_names,
        device=device,
        dtype=dtype,
        network=network or module,
        vector_network=vector_network,
    )


def _count_classes(
    network: Network,
    *,
    config: TeacherConfig,
    preprocessing: Preprocessing,
    device: torch.device,
    dtype: torch.dtype,
) -> int:
    """Run one grey batch and return what the network really gives."""
    height, width = preprocessing.input_size
    grey = np.full((2, height, width, 3), 128, np.uint8)
    logits = run_network(network, grey, normalization=preprocessing.normalization, device=device, dtype=dtype, name=config.name)
    if not bool(logits.isfinite().all()):
        raise TeacherError(
            f"teacher {config.name} gives logits that are not finite for a grey picture in {config.precision}: every label would "
            "be void. Use another precision (teacher.precision: fp32) or check the weights"
        )
    num_classes = logits.shape[1]
    if config.num_classes is not None and num_classes != config.num_classes:
        raise TeacherError(
            f"teacher {config.name} gives {num_classes} classes but teacher.num_classes is {config.num_classes}: its labels "
            f"would be of another list of classes. Set teacher.num_classes: {num_classes}, or give the checkpoint of a model "
            f"with {config.num_classes} classes"
        )
    return num_classes


def check_range(module: torch.nn.Module, *, name: str) -> None:
    """Refuse weights that float16 would turn into infinities without a word."""
    import torch

    limit = torch.finfo(torch.float16).max
    for key, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_floating_point() and bool((tensor.isfinite() & (tensor.abs() > limit)).any()):
            raise TeacherError(
                f"teacher {name} holds values beyond {limit:.0f} in {key}: in fp16 they would become infinite. Set "
                "teacher.precision: bf16 or fp32"
            )
