"""How labels are generated: nothing here changes which labels are asked for."""

from __future__ import annotations

from pydantic import Field

from storage.config.base import Config


class GenerationConfig(Config):
    """How `decant label` runs."""

    batch_size: int = Field(default=64, ge=1, description="Views in one teacher batch; the last batch of a unit is padded to it.")
    workers: int = Field(default=1, ge=1, description="Processes on this machine; other runners have their own options.")
    decode_threads: int = Field(
        default=2, ge=1, description="Threads in each process that decode and render ahead of the teacher."
    )
    torch_threads: int | None = Field(
        default=None, ge=1, description="Threads of the teacher in each process; null: cores divided by workers."
    )
    views_per_part: int = Field(default=8, ge=1, description="Views of a unit that are computed together and stored in one part.")
    dead_letter_limit: float = Field(
        default=0.01, ge=0, le=1, description="Share of samples that may fail before the run fails; they are listed either way."
    )
    max_image_pixels: int = Field(
        default=178_956_970, ge=1, description="Larger pictures are refused as decompression bombs and become dead letters."
    )
