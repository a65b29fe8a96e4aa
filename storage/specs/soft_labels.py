"""Sparse soft labels and their codecs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from storage.specs.base import Spec


class ExactCodec(Spec):
    """Class ids by rank and float16 log-probabilities: codec KL about 1e-7."""

    kind: Literal["exact"] = Field(default="exact", description="float16 log-probabilities.")
    version: Literal[1] = Field(default=1, description="Version of the encoding.")


class CompactCodec(Spec):
    """Class ids as a set and probabilities on a square-root grid of `levels` steps (u8).

    q = round(levels * sqrt(p)); classes with q = 0 fall to the rest. KL-optimal uniform grid at temperature 1.
    """

    kind: Literal["compact"] = Field(default="compact", description="Square-root grid.")
    version: Literal[1] = Field(default=1, description="Version of the encoding.")
    levels: int = Field(
        default=255, ge=1, le=255, description="Steps of the grid: more keep smaller probabilities and cost more bytes."
    )


class SampledCodec(Spec):
    """Random sampling KD: ids drawn with replacement from the teacher's distribution, each stored with its count.

    The expected value of count / draws is the probability, so the gradient of a cross entropy is unbiased.

    References:
        Anshumann et al., Sparse Logit Sampling, https://arxiv.org/abs/2503.16870
    """

    kind: Literal["sampled"] = Field(default="sampled", description="Random sampling KD: draws with replacement.")
    version: Literal[1] = Field(default=1, description="Version of the encoding.")
    draws: int = Field(default=50, ge=1, le=65535, description="Draws a row.")
    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed of the draws; part of their identity.")


class ThresholdCodec(Spec):
    """Threshold sampling: probabilities in units of 1 / levels^2, rounded at random so that nothing is biased.

    A class of probability p gets floor(p * levels^2) units or one more, by systematic sampling: one uniform shifts a comb of
    levels^2 teeth over the cumulated probabilities. Its expected value is p, large or small; the units of a row always sum to 1.

    References:
        Madow and Madow, On the theory of systematic sampling, https://doi.org/10.1214/aoms/1177731209
    """

    kind: Literal["threshold"] = Field(default="threshold", description="Units of 1 / levels^2, rounded at random.")
    version: Literal[1] = Field(default=1, description="Version of the encoding.")
    levels: int = Field(
        default=7, ge=2, le=255, description="1 / levels^2 is the unit: more keep more classes and cost more bytes."
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed of the draws; part of their identity.")


class DenseCodec(Spec):
    """float16 log-probabilities of all classes."""

    kind: Literal["dense"] = Field(default="dense", description="float16 log-probabilities of all classes.")
    version: Literal[1] = Field(default=1, description="Version of the encoding.")


CodecSpec = Annotated[ExactCodec | CompactCodec | SampledCodec | ThresholdCodec | DenseCodec, Field(discriminator="kind")]
Positions = Literal["view", "masked", "all", "next"]

QUALITY_CAP = 255
"""Most classes a row may keep when a quality level takes the place of K."""


class SoftLabelsSpec(Spec):
    """Sparse soft labels: probabilities of some classes and the rest mass of all others.

    With `k`, the k most probable classes are kept. Without (`k` null), the codec decides. compact: every class that reaches half
    a level, at most `QUALITY_CAP`; `codec.levels` is then the quality level. sampled, threshold: what was drawn. dense: all.
    """

    kind: Literal["soft_labels"] = "soft_labels"
    num_classes: int = Field(ge=1, le=2**32)
    k: int | None = Field(ge=1, le=65535)
    codec: CodecSpec
    generation_temperature: float = Field(default=1.0, gt=0)
    positions: Positions = "view"
    """Rows of a view: one for the whole; or, of a text, one for each masked token, each token, each token that has a next one."""

    @model_serializer(mode="wrap")
    def _without_one_row(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = serialize(self)
        return {name: value for name, value in data.items() if name != "positions" or value != "view"}

    @model_validator(mode="after")
    def _check_k(self) -> SoftLabelsSpec:
        if self.k is None and self.codec.kind == "exact":
            raise ValueError(
                "k may be left out only with a codec that decides what is kept; give k, or codec.kind: compact (or sampled, "
                "threshold, dense)"
            )
        if self.k is not None and self.codec.kind in ("sampled", "threshold", "dense"):
            raise ValueError(f"k {self.k} with codec {self.codec.kind}, which decides itself what is kept; give k: null")
        if self.k is not None and self.k > self.num_classes:
            raise ValueError(f"k {self.k} is larger than the number of classes {self.num_classes}; lower k")
        return self

    @property
    def max_entries(self) -> int:
        """Most classes a row can keep."""
        match self.codec:
            case SampledCodec():
                return min(self.codec.draws, self.num_classes)
            case ThresholdCodec():
                return min(self.codec.levels**2, self.num_classes)
            case DenseCodec():
                return self.num_classes
            case _:
                return min(self.k if self.k is not None else QUALITY_CAP, self.num_classes)
