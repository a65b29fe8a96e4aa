"""What is stored of each view."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Tag, model_validator

from storage.config.base import Config
from storage.config.kinds import kind_or
from storage.specs import (
    MAX_TENSORS,
    CodecSpec,
    CompactCodec,
    FeatureCodecSpec,
    Float16Codec,
    Int8Codec,
    Positions,
)

Vector = Literal["query", "key", "value"]
_DECIDES_ITSELF = ("sampled", "threshold", "dense")
_POSITIONS: dict[str, Positions] = {"masked_lm": "masked", "causal_lm": "next"}


class SoftLabelsConfig(Config):
    """Sparse soft labels of each view, or of each token of it."""

    kind: Literal["soft_labels"] = Field(default="soft_labels", description="Sparse soft labels.")
    k: int | None = Field(
        default=10,
        ge=1,
        le=65535,
        description="Classes kept a row; null: the codec decides (compact: its levels are a quality level). null is also the "
        "default of sampled, threshold and dense.",
    )
    codec: CodecSpec = Field(
        default=CompactCodec(),
        description="exact (float16 log-probabilities), compact (square-root grid), sampled, threshold or dense; see "
        "docs/codecs.md.",
    )
    generation_temperature: float = Field(default=1.0, gt=0, description="Temperature of the stored distribution.")
    positions: Positions | None = Field(
        default=None,
        description="Rows of a view: one for the whole (view), or, of a text, one for each masked token, each token (all), each "
        "token that has a next one (next). null: masked for a masked_lm, next for a causal_lm, else view.",
    )

    @model_validator(mode="after")
    def _check_k(self) -> SoftLabelsConfig:
        if "k" not in self.model_fields_set and self.codec.kind in _DECIDES_ITSELF:
            # What a validator changes before the fields are read is no longer read as JSON; afterwards the model is frozen.
            object.__setattr__(self, "k", None)
        if self.k is None and self.codec.kind == "exact":
            raise ValueError(
                "k: null needs a codec that decides what is kept, and exact does not; give k, or codec.kind: compact"
            )
        if self.k is not None and self.codec.kind in _DECIDES_ITSELF:
            raise ValueError(f"k: {self.k} with codec.kind {self.codec.kind}, which decides itself what is kept; leave k out")
        return self

    def positions_of(self, teacher_kind: str) -> Positions:
        """Return the rows of a view, as the kind of teacher decides where the config leaves it open."""
        return self.positions if self.positions is not None else _POSITIONS.get(teacher_kind, "view")


Layers = Annotated[tuple[Annotated[int, Field(ge=0, le=4096)], ...], Field(min_length=1)]


def _check_layers(layers: tuple[int, ...], *, tensors_per_layer: int = 1) -> None:
    if list(layers) != sorted(set(layers)):
        raise ValueError(f"layers {list(layers)} must ascend, each once; write {sorted(set(layers))}")
    if len(layers) * tensors_per_layer > MAX_TENSORS:
        each = f" with {tensors_per_layer} vectors each" if tensors_per_layer > 1 else ""
        raise ValueError(
            f"{len(layers)} layers{each} are more than the {MAX_TENSORS} tensors that a block holds; name fewer, or share them "
            "out to several targets (targets: takes any number by name)"
        )


class HiddenStatesConfig(Config):
    """Hidden states of chosen layers."""

    kind: Literal["hidden_states"] = Field(description="Hidden states.")
    layers: Layers = Field(description="Layers: 0 is what enters the first one, 1 what the first one gives.")
    tokens: Literal["all", "first", "mean"] = Field(
        default="all", description="Every token of a sample, its first one, or the mean of all."
    )
    codec: FeatureCodecSpec = Field(default=Int8Codec(), description="float16, or int8 with scales.")
    head: bool = Field(
        default=False,
        description="Keep the teacher's frozen head too, which makes labels of the last layer's hidden states; `layers` must end "
        "with that layer.",
    )

    @model_validator(mode="after")
    def _check(self) -> HiddenStatesConfig:
        _check_layers(self.layers)
        if self.head and self.tokens == "mean":
            raise ValueError("head: true with tokens: mean, but a head reads tokens; set tokens: all or first, or head: false")
        return self


class AttentionConfig(Config):
    """Query, key and value vectors of chosen layers, from which attention is rebuilt."""

    kind: Literal["attention"] = Field(description="Query, key and value vectors.")
    layers: Layers = Field(description="Layers, counted from 1.")
    vectors: tuple[Vector, ...] = Field(
        default=("query", "key", "value"), min_length=1, description="Which vectors, in this order."
    )
    codec: FeatureCodecSpec = Field(default=Int8Codec(), description="float16, or int8 with scales.")

    @model_validator(mode="after")
    def _check(self) -> AttentionConfig:
        _check_layers(self.layers, tensors_per_layer=len(self.vectors))
        if self.layers[0] < 1:
            raise ValueError("layers begins with 0, which is no layer with attention; count layers from 1")
        _check_vectors(self.vectors)
        return self


class RelationsConfig(Config):
    """Scaled dot products between the tokens of a sample, as in MiniLMv2; stored as float16."""

    kind: Literal["relations"] = Field(description="Attention relations.")
    layer: int = Field(ge=1, le=4096, description="Layer, counted from 1.")
    vectors: tuple[Vector, ...] = Field(
        default=("query", "key", "value"), min_length=1, description="Which vectors are related to themselves, in this order."
    )
    num_relation_heads: int | None = Field(
        default=None, ge=1, le=4096, description="Heads that the vectors are cut into; null: those of the teacher."
    )

    @model_validator(mode="after")
    def _check(self) -> RelationsConfig:
        _check_vectors(self.vectors)
        return self


def _check_vectors(vectors: tuple[Vector, ...]) -> None:
    ordered = [name for name in ("query", "key", "value") if name in vectors]
    if list(vectors) != ordered:
        raise ValueError(f"vectors {list(vectors)} must stand in the order query, key, value, each once; write {ordered}")


class EmbeddingsConfig(Config):
    """One vector a sample: what the teacher's head reads."""

    kind: Literal["embeddings"] = Field(description="One vector a sample.")
    codec: FeatureCodecSpec = Field(default=Float16Codec(), description="float16, or int8 with scales.")


TargetConfig = Annotated[
    Annotated[SoftLabelsConfig, Tag("soft_labels")]
    | Annotated[HiddenStatesConfig, Tag("hidden_states")]
    | Annotated[AttentionConfig, Tag("attention")]
    | Annotated[RelationsConfig, Tag("relations")]
    | Annotated[EmbeddingsConfig, Tag("embeddings")],
    kind_or("soft_labels"),
]
"""A target without a kind is soft labels."""
