"""Which views are labelled and what is stored of each."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from storage.config.base import Config
from storage.specs import CompactCodec, ExactCodec, Interpolation, Size


class EvaluationViewsConfig(Config):
    """One view per picture: the teacher's evaluation preprocessing."""

    kind: Literal["evaluation"] = Field(description="The teacher's evaluation view, one per picture.")

    @property
    def count(self) -> int:
        """Number of views of each sample."""
        return 1


class RandomViewsConfig(Config):
    """Several random views per picture: random resized crop and flip, the same pixels for teacher and student."""

    kind: Literal["random_resized_crop"] = Field(description="Random resized crop and horizontal flip.")
    count: int = Field(
        default=1,
        ge=1,
        le=99999,
        description="Views of each picture; training epoch e reads view e modulo this. Hard labels: new views every epoch.",
    )
    size: Size | None = Field(default=None, description="Height and width of the views; null: the teacher's input size.")
    scale: tuple[float, float] = Field(
        default=(0.08, 1.0), description="Range of the share of the picture's area that is cropped."
    )
    ratio: tuple[float, float] = Field(default=(0.75, 4 / 3), description="Range of the crop's aspect ratio.")
    flip_probability: float = Field(default=0.5, ge=0, le=1, description="Share of views that are mirrored.")
    interpolation: Interpolation | None = Field(default=None, description="Resampling; null: the teacher's.")
    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed of the views; part of their identity.")

    @model_validator(mode="after")
    def _check_ranges(self) -> RandomViewsConfig:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale {list(self.scale)} is no range of area shares; give two numbers with 0 < low <= high <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio {list(self.ratio)} is no range of aspect ratios; give two numbers with 0 < low <= high")
        return self


ViewsConfig = Annotated[EvaluationViewsConfig | RandomViewsConfig, Field(discriminator="kind")]


class SoftLabelsConfig(Config):
    """Sparse soft labels of each view."""

    kind: Literal["soft_labels"] = Field(default="soft_labels", description="Sparse soft labels.")
    k: int | None = Field(
        default=10, ge=1, le=65535, description="Classes kept a row; null: the compact codec's levels decide (a quality level)."
    )
    codec: Annotated[ExactCodec | CompactCodec, Field(discriminator="kind")] = Field(
        default=CompactCodec(), description="exact (float16 log-probabilities) or compact (square-root grid); see docs/codecs.md."
    )
    generation_temperature: float = Field(default=1.0, gt=0, description="Temperature of the stored distribution.")

    @model_validator(mode="after")
    def _check_k(self) -> SoftLabelsConfig:
        if self.k is None and self.codec.kind != "compact":
            raise ValueError("k: null needs the compact codec, whose grid then decides; give k or codec.kind: compact")
        return self
