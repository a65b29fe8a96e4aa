"""Which views are labelled; `storage.config.targets` says what is stored of each."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from storage.config.base import Config
from storage.config.targets import SoftLabelsConfig, TargetConfig
from storage.specs import Interpolation, Size

__all__ = [
    "EvaluationViewsConfig",
    "MaskedTokensViewsConfig",
    "RandomViewsConfig",
    "SoftLabelsConfig",
    "TargetConfig",
    "TextViewsConfig",
    "TokensViewsConfig",
    "ViewsConfig",
]

Layout = Literal["truncate", "cut", "pack"]


class EvaluationViewsConfig(Config):
    """One view per picture: the teacher's evaluation preprocessing."""

    kind: Literal["evaluation"] = Field(description="The teacher's evaluation view, one per picture.")

    @property
    def count(self) -> int:
        """Number of views of each sample."""
        return 1

    @property
    def of_text(self) -> bool:
        """Whether the views are of texts."""
        return False


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

    @property
    def of_text(self) -> bool:
        """Whether the views are of texts."""
        return False

    @model_validator(mode="after")
    def _check_ranges(self) -> RandomViewsConfig:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale {list(self.scale)} is no range of area shares; give two numbers with 0 < low <= high <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio {list(self.ratio)} is no range of aspect ratios; give two numbers with 0 < low <= high")
        return self


class _TokenViews(Config):
    length: int = Field(default=512, ge=2, le=65535, description="Most tokens of a sequence, special tokens included.")
    layout: Layout = Field(
        default="truncate",
        description="truncate: a document is one sequence, what is too long is cut off. cut: as many sequences as it needs. "
        "pack: the documents of a unit end to end, a separator behind each, cut to full length.",
    )
    special_tokens: bool = Field(
        default=True, description="Whether each sequence carries the special tokens that the tokenizer adds to a single one."
    )

    @property
    def of_text(self) -> bool:
        """Whether the views are of texts."""
        return True


class TokensViewsConfig(_TokenViews):
    """One view per token sequence: as it is."""

    kind: Literal["tokens"] = Field(description="Token sequences as they are.")

    @property
    def count(self) -> int:
        """Number of views of each sequence."""
        return 1


class MaskedTokensViewsConfig(_TokenViews):
    """Several masks per token sequence: the same ones for teacher and student."""

    kind: Literal["masked_tokens"] = Field(description="Token sequences with masked positions.")
    count: int = Field(
        default=1, ge=1, le=99999, description="Masks of each sequence; training epoch e reads mask e modulo this."
    )
    mask_share: float = Field(
        default=0.15, gt=0, le=1, description="Share of the tokens that are masked, special ones not counted; at least one is."
    )
    replaced_share: float = Field(default=0.8, ge=0, le=1, description="Share of the masked tokens that show the mask token.")
    random_share: float = Field(
        default=0.1, ge=0, le=1, description="Share of the masked tokens that show a random token; what is left shows itself."
    )
    whole_words: bool = Field(default=False, description="Mask all tokens of a word together.")
    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed of the masks; part of their identity.")

    @model_validator(mode="after")
    def _check_shares(self) -> MaskedTokensViewsConfig:
        if self.replaced_share + self.random_share > 1:
            raise ValueError(
                f"replaced_share {self.replaced_share} and random_share {self.random_share} sum to more than 1; lower one, what "
                "is left shows the token itself"
            )
        return self


TextViewsConfig = TokensViewsConfig | MaskedTokensViewsConfig
ViewsConfig = Annotated[
    EvaluationViewsConfig | RandomViewsConfig | TokensViewsConfig | MaskedTokensViewsConfig, Field(discriminator="kind")
]
