"""Targets that are vectors: hidden states, attention, relations, embeddings; and how their numbers are stored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from storage.specs.base import Spec

Layers = tuple[Annotated[int, Field(ge=0, le=4096)], ...]
MAX_TENSORS = 100
"""Tensors of one target: the header of a block lists the streams of all of them."""
Width = Annotated[int, Field(ge=1, le=2**20)]


class Float16Codec(Spec):
    """Every number as float16."""

    kind: Literal["float16"] = Field(default="float16", description="float16.")
    version: Literal[1] = Field(default=1, description="Version of the encoding.")


class Int8Codec(Spec):
    """Every number as int8 times a float16 scale: one a channel of 256 rows of a block, or one a group of channels of a row."""

    kind: Literal["int8"] = Field(default="int8", description="int8 with float16 scales.")
    version: Literal[1] = Field(default=1, description="Version of the encoding.")
    group: int | None = Field(
        default=None, ge=8, le=4096, description="Channels of a row that share a scale; null: one scale a channel of 256 rows."
    )


FeatureCodecSpec = Annotated[Float16Codec | Int8Codec, Field(discriminator="kind")]


def _check_layers(layers: Layers, *, tensors_per_layer: int = 1) -> None:
    if not layers or list(layers) != sorted(set(layers)):
        raise ValueError(f"layers {list(layers)} must be some, ascending and each once")
    if len(layers) * tensors_per_layer > MAX_TENSORS:
        raise ValueError(
            f"{len(layers)} layers with {tensors_per_layer} tensors each are more than {MAX_TENSORS} tensors; choose fewer, or "
            "several targets"
        )


class HiddenStatesSpec(Spec):
    """Hidden states of chosen layers: 0 is what enters the first layer, l what layer l gives."""

    kind: Literal["hidden_states"] = "hidden_states"
    layers: Layers
    tokens: Literal["all", "first", "mean"]
    """Every token of a sample, its first one, or the mean of all."""
    width: Width
    codec: FeatureCodecSpec
    head_sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    """Digest of the teacher's frozen head, kept beside the labels; the last of `layers` is then what the head reads."""
    mean_version: Literal[2] | None = None
    """2 where means are of pictures. Without it such rows hold the sum over tokens, which a release once took for the mean."""

    @model_serializer(mode="wrap")
    def _without_version(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = serialize(self)
        return {name: value for name, value in data.items() if name != "mean_version" or value is not None}

    @model_validator(mode="after")
    def _check(self) -> HiddenStatesSpec:
        _check_layers(self.layers)
        if self.mean_version is not None and self.tokens != "mean":
            raise ValueError(f"mean_version {self.mean_version} of tokens: {self.tokens}, which are no mean; leave it out")
        if self.head_sha256 is not None and self.tokens == "mean":
            raise ValueError("a head reads hidden states of tokens, not their mean; leave the head out, or tokens: mean")
        return self

    @property
    def tensors(self) -> dict[str, int]:
        """Names of the stored tensors, in order, with their widths."""
        return {f"hidden.{layer}": self.width for layer in self.layers}

    @property
    def per_token(self) -> bool:
        """Whether a sample has a row for each of its tokens, or one."""
        return self.tokens == "all"


class AttentionSpec(Spec):
    """Query, key and value vectors of chosen layers (counted from 1); scores and maps are rebuilt from the first two.

    Heads lie side by side in a row. Queries and keys are as the dot product meets them, rotary position included.
    """

    kind: Literal["attention"] = "attention"
    layers: Layers
    vectors: tuple[Literal["query", "key", "value"], ...]
    num_heads: int = Field(ge=1, le=4096)
    num_key_value_heads: int = Field(ge=1, le=4096)
    head_width: Width
    causal: bool
    codec: FeatureCodecSpec

    @model_validator(mode="after")
    def _check(self) -> AttentionSpec:
        _check_layers(self.layers, tensors_per_layer=len(self.vectors))
        if not self.vectors or list(self.vectors) != [name for name in ("query", "key", "value") if name in self.vectors]:
            raise ValueError(f"vectors {list(self.vectors)} must be some of query, key, value, in this order")
        if self.num_heads % self.num_key_value_heads:
            raise ValueError(f"{self.num_heads} heads cannot share {self.num_key_value_heads} key and value heads evenly")
        return self

    @property
    def tensors(self) -> dict[str, int]:
        """Names of the stored tensors, in order, with their widths."""
        heads = {"query": self.num_heads, "key": self.num_key_value_heads, "value": self.num_key_value_heads}
        return {f"{name}.{layer}": heads[name] * self.head_width for layer in self.layers for name in self.vectors}

    @property
    def per_token(self) -> bool:
        """Whether a sample has a row for each of its tokens, or one."""
        return True


class RelationsSpec(Spec):
    """Scaled dot products between the tokens of a sample, of one layer's query, key or value vectors with themselves.

    The vectors of all heads, end to end, are cut anew into `num_relation_heads`. Each relation is symmetric, so that of a sample
    of n tokens n (n + 1) / 2 numbers a head are stored, row by row of the lower triangle.

    References:
        Wang et al., MiniLMv2, https://arxiv.org/abs/2012.15828
    """

    kind: Literal["relations"] = "relations"
    layer: int = Field(ge=1, le=4096)
    vectors: tuple[Literal["query", "key", "value"], ...]
    num_relation_heads: int = Field(ge=1, le=4096)
    codec: Float16Codec

    @model_validator(mode="after")
    def _check(self) -> RelationsSpec:
        if not self.vectors or list(self.vectors) != [name for name in ("query", "key", "value") if name in self.vectors]:
            raise ValueError(f"vectors {list(self.vectors)} must be some of query, key, value, in this order")
        return self

    @property
    def tensors(self) -> dict[str, int]:
        """Names of the stored tensors, in order, with their widths: a row is a pair of tokens."""
        return {f"{name}_relations.{self.layer}": self.num_relation_heads for name in self.vectors}


class EmbeddingsSpec(Spec):
    """One vector a sample: what the teacher's head reads."""

    kind: Literal["embeddings"] = "embeddings"
    width: Width
    codec: FeatureCodecSpec

    @property
    def tensors(self) -> dict[str, int]:
        """Names of the stored tensors, in order, with their widths."""
        return {"embedding": self.width}

    @property
    def per_token(self) -> bool:
        """Whether a sample has a row for each of its tokens, or one."""
        return False


FeaturesSpec = HiddenStatesSpec | AttentionSpec | RelationsSpec | EmbeddingsSpec


def rows_of_samples(spec: FeaturesSpec, *, num_tokens: int) -> int:
    """Return the rows that a sample of so many tokens has."""
    if isinstance(spec, RelationsSpec):
        return num_tokens * (num_tokens + 1) // 2
    return num_tokens if spec.per_token else 1
