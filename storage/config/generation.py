"""How labels are generated: nothing here changes which labels are asked for."""

from __future__ import annotations

from pydantic import Field

from storage.config.base import Config


class GenerationConfig(Config):
    """How `decant label` runs."""

    batch_size: int = Field(default=64, ge=1, description="Views in one teacher batch; the last batch of a unit is padded to it.")
    workers: int = Field(
        default=1,
        ge=1,
        description="Worker processes on each machine: on this one with the local runner; elsewhere asked of the engine "
        "(Beam's --sdk_worker_parallelism, which goes before it).",
    )
    decode_threads: int = Field(
        default=2, ge=1, description="Threads in each process that decode and render ahead of the teacher."
    )
    torch_threads: int | None = Field(
        default=None,
        ge=1,
        description="Threads of the teacher in each process; null: the cores that the process may use, divided by workers.",
    )
    allow_version_differences: bool = Field(
        default=False,
        description="Let workers label whose torch, timm, transformers, tokenizers, numpy or pillow are of other versions "
        "than those of the process that submits the job. Another decant or Python is refused either way.",
    )
    min_ram: str | None = Field(
        default=None,
        pattern=r"^\d+(\.\d+)?([KMGTP]i?)?B$",
        description="Memory that a worker needs, as 16GB or 12GiB; told to runners that know resource hints (Dataflow).",
    )
    accelerator: str | None = Field(
        default=None,
        pattern=r"^type:[^;\s]+;count:\d+(;[^;\s]+)*$",
        description="GPU that a worker needs, as type:nvidia-l4;count:1;install-nvidia-driver; told to runners that know "
        "resource hints (Dataflow). Elsewhere the machines of the cluster have it, and teacher.device asks for it.",
    )
    views_per_part: int = Field(default=8, ge=1, description="Views of a unit that are computed together and stored in one part.")
    dead_letter_limit: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="Share of samples that may fail before the run fails, of labelling, of training on hard or live targets, or "
        "of evaluation; they are listed either way.",
    )
    max_image_pixels: int = Field(
        default=178_956_970, ge=1, description="Larger pictures are refused as decompression bombs and become dead letters."
    )
