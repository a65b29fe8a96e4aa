"""Which network labels, and how it runs."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from storage.config.base import Config


class TeacherConfig(Config):
    """A teacher network. Its own evaluation preprocessing is used unless the view spec replaces it."""

    kind: Literal["timm", "transformers", "factory"] = Field(
        description="timm model name, transformers image classifier, or your own `package.module:factory`."
    )
    name: str = Field(
        description="timm: model name or hub tag (`hf-hub:...`); transformers: hub id or local folder; "
        "factory: `package.module:factory`."
    )
    checkpoint: str | None = Field(
        default=None,
        description="Local checkpoint, safetensors or a state dict (read with weights_only). null: pretrained weights.",
    )
    num_classes: int | None = Field(default=None, ge=1, description="Number of classes; null: what the checkpoint's config says.")
    kwargs: dict[str, Any] = Field(default={}, description="Further arguments of the model's constructor.")
    precision: Literal["fp32", "bf16", "fp16"] = Field(default="fp32", description="Arithmetic of the forward pass.")
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, mps. Asking for one that is not there is an error.")
