"""Terms of a loss: what is compared, how, and with what weight."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from storage.config.base import Config

Divisor = Literal["rows", "tokens", "sequences"]
Layer = Annotated[int, Field(ge=0, le=4096)]
LayerPair = tuple[Layer, Layer]
RestPolicy = Literal["uniform", "mean", "bucket", "renormalize"]
VectorLoss = Literal["mse", "mae", "cosine"]

_DIVISOR = (
    "What the sum over rows is divided by: rows that the term has, tokens of the batch (padding left out), or sequences of it, "
    "each a text or a picture."
)
_TARGET = "Name of the target; null: the only one that fits."
_WEIGHT = "Factor of the term in the sum."
_LAYERS = "Pairs of a teacher's layer and the student's layer that is to match it; the losses of all pairs are added."


class SoftLabelsTerm(Config):
    """Student logits against cached soft labels, or against the logits that a teacher's kept head makes of hidden states."""

    kind: Literal["soft_labels"] = Field(description="Soft labels.")
    target: str | None = Field(default=None, description=_TARGET)
    loss: Literal["kl", "reverse_kl", "cross_entropy"] | None = Field(
        default=None,
        description="kl: KL(teacher || student); reverse_kl: KL(student || teacher); cross_entropy: unbiased, for labels that "
        "were drawn (sampled, threshold). null: cross_entropy for drawn labels, else kl.",
    )
    weight: float = Field(default=1.0, gt=0, description=_WEIGHT)
    temperature: float = Field(default=1.0, gt=0, description="Temperature at which teacher and student are matched.")
    scale_by_temperature_squared: bool = Field(default=True, description="Multiply the loss by temperature squared.")
    rest: RestPolicy = Field(
        default="uniform",
        description="What becomes of the rest mass: spread evenly, spread by the mean class probability, kept as one bucket, or "
        "dropped by renormalising. cross_entropy has no rest.",
    )
    rest_floor: float = Field(
        default=1e-6,
        gt=0,
        lt=1,
        description="reverse_kl: smallest rest mass; without one, a class that is not kept costs infinity.",
    )
    positions: Literal["all", "masked", "next"] | None = Field(
        default=None,
        description="Of hidden states with a head: tokens whose logits are compared. null: for causal_lm those "
        "with a next token, else masked ones where the view masks, else all. Soft labels have positions of their own.",
    )
    divisor: Divisor = Field(default="rows", description=_DIVISOR)


class HardTokensTerm(Config):
    """Cross entropy with a text's own tokens: masked ones (BERT) or next ones (language models). Of texts only."""

    kind: Literal["hard_tokens"] = Field(description="The text's own tokens.")
    weight: float = Field(default=1.0, gt=0, description=_WEIGHT)
    smoothing: float = Field(default=0.0, ge=0, lt=1, description="Label smoothing.")
    divisor: Divisor = Field(default="rows", description=_DIVISOR)


class HardLabelTerm(Config):
    """Cross entropy with the source's own labels; samples without one are left out."""

    kind: Literal["hard_label"] = Field(description="The source's own labels.")
    weight: float = Field(default=1.0, gt=0, description=_WEIGHT)
    smoothing: float = Field(default=0.0, ge=0, lt=1, description="Label smoothing.")
    divisor: Literal["rows", "sequences"] = Field(
        default="rows", description="What the sum is divided by: samples with a label, or all samples."
    )


class HiddenStatesTerm(Config):
    """Hidden states of student layers against those of the teacher: of pictures, class tokens and patches each with its own."""

    kind: Literal["hidden_states"] = Field(description="Hidden states.")
    target: str | None = Field(default=None, description=_TARGET)
    loss: VectorLoss = Field(
        default="mse", description="mse, mae: mean over channels of squares, of absolute values; cosine: 1 - cosine similarity."
    )
    weight: float = Field(default=1.0, gt=0, description=_WEIGHT)
    layers: tuple[LayerPair, ...] = Field(min_length=1, description=f"{_LAYERS} 0 is what enters the first layer.")
    projection: Literal["none", "shared", "per_layer"] = Field(
        default="none",
        description="Learned linear map from the student's width to the teacher's: none, one for all pairs, or one a pair. "
        "Trained and checkpointed, not exported.",
    )
    divisor: Divisor = Field(default="rows", description=_DIVISOR)


class AttentionTerm(Config):
    """Attention of student layers against that of the teacher, rebuilt from its query and key vectors."""

    kind: Literal["attention"] = Field(description="Attention scores or maps.")
    target: str | None = Field(default=None, description=_TARGET)
    loss: Literal["score_mse", "map_kl"] = Field(
        default="score_mse",
        description="score_mse: mean squared difference of scores before the softmax (TinyBERT); map_kl: KL(teacher || student) "
        "of maps (MiniALBERT).",
    )
    weight: float = Field(default=1.0, gt=0, description=_WEIGHT)
    layers: tuple[LayerPair, ...] = Field(min_length=1, description=f"{_LAYERS} Counted from 1.")
    divisor: Divisor = Field(default="rows", description=_DIVISOR)


class RelationsTerm(Config):
    """Relations between the tokens of a sample: softmax of scaled dot products of vectors of one kind (MiniLMv2)."""

    kind: Literal["relations"] = Field(description="Query, key and value relations.")
    target: str | None = Field(default=None, description=_TARGET)
    weight: float = Field(default=1.0, gt=0, description=_WEIGHT)
    layers: tuple[LayerPair, ...] = Field(min_length=1, description=f"{_LAYERS} Counted from 1.")
    vectors: tuple[Literal["query", "key", "value"], ...] = Field(
        default=("query", "key", "value"), min_length=1, description="Which vectors; the losses of all are added."
    )
    num_relation_heads: int | None = Field(
        default=None,
        ge=1,
        description="Heads that vectors are cut into; null: of stored relations theirs, else the teacher's heads.",
    )
    divisor: Divisor = Field(default="rows", description=_DIVISOR)

    @model_validator(mode="after")
    def _check(self) -> RelationsTerm:
        if len(set(self.vectors)) < len(self.vectors):
            raise ValueError(f"vectors {list(self.vectors)} name one twice; name each once")
        return self


class EmbeddingsTerm(Config):
    """One vector a sample: what a classifier's head reads, of a language model the mean of its last hidden states."""

    kind: Literal["embeddings"] = Field(description="Embeddings.")
    target: str | None = Field(default=None, description=_TARGET)
    loss: VectorLoss = Field(
        default="mse", description="mse, mae: mean over channels of squares, of absolute values; cosine: 1 - cosine similarity."
    )
    weight: float = Field(default=1.0, gt=0, description=_WEIGHT)
    projection: Literal["none", "shared"] = Field(
        default="none", description="Learned linear map from the student's width to the teacher's, trained and not exported."
    )
    divisor: Literal["rows", "sequences"] = Field(default="rows", description="Both are the samples of the batch.")


TermConfig = Annotated[
    SoftLabelsTerm | HardTokensTerm | HardLabelTerm | HiddenStatesTerm | AttentionTerm | RelationsTerm | EmbeddingsTerm,
    Field(discriminator="kind"),
]
