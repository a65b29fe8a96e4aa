"""Networks that can be trained: of pictures and of texts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, Tag, model_validator

from storage.config.base import Config
from storage.config.kinds import kind_or

_NUM_CLASSES = "Classes of the head; null: those of the labels or the source."
_OF_CLASSIFIER = "sequence_classifier: classes of the head; null: those of the labels or the source."


class StudentConfig(Config):
    """A timm network, any name. The kind that is meant where none is given."""

    kind: Literal["timm"] = Field(default="timm", description="A network of pictures.")
    name: str = Field(description="timm model name, for instance tiny_vit_5m_224.")
    num_classes: int | None = Field(default=None, ge=1, description=_NUM_CLASSES)
    kwargs: dict[str, Any] = Field(
        default={}, description="Further arguments of timm.create_model (drop_path_rate, img_size, ...)."
    )
    checkpoint: str | None = Field(default=None, description="Local checkpoint to start from; null: fresh weights.")
    pretrained: bool = Field(default=False, description="Start from timm's pretrained weights.")


class LayersFromConfig(Config):
    """Start from some layers of a deeper network: DistilBERT takes 0, 2, 4, 7, 9 and 11 of BERT's twelve."""

    path: str = Field(
        description="Local folder or hub id of the deeper network: of the student's architecture, or BERT for DistilBERT."
    )
    layers: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        min_length=1, description="Which of its layers, counted from 0, become the student's layers, in order."
    )


class QuantizationConfig(Config):
    """Train for integer arithmetic: linear layers and embeddings compute with numbers rounded to a symmetric grid (Q8BERT)."""

    bits: int = Field(default=8, ge=2, le=16, description="Bits of weights and activations.")
    activation_decay: float = Field(
        default=0.9999, gt=0, lt=1, description="Decay of the moving average of the largest activation, which sets its grid."
    )


class TransformersStudentConfig(Config):
    """Any transformers network with one of three heads; it leaves as a transformers checkpoint."""

    kind: Literal["transformers"] = Field(description="A transformers network of texts.")
    head: Literal["masked_lm", "causal_lm", "sequence_classifier"] = Field(description="What it predicts.")
    architecture: str | None = Field(
        default=None,
        description="Model type (bert, distilbert, albert, gpt2, ...) of a network described by `config`; null: `path`.",
    )
    path: str | None = Field(
        default=None,
        description="Local folder or hub id whose config is taken, and whose weights if `pretrained`; null: `architecture`.",
    )
    config: dict[str, Any] = Field(
        default={},
        description="Fields of its transformers config (num_hidden_layers, hidden_size, ...); vocab_size follows the texts.",
    )
    pretrained: bool = Field(default=False, description="Start from the weights of `path`; a missing head is fresh.")
    layers_from: LayersFromConfig | None = Field(default=None, description="Start from layers of a deeper network; null: do not.")
    num_classes: int | None = Field(default=None, ge=1, description=_OF_CLASSIFIER)
    quantization: QuantizationConfig | None = Field(default=None, description="Quantisation-aware training; null: none.")

    @model_validator(mode="after")
    def _check(self) -> TransformersStudentConfig:
        if (self.architecture is None) == (self.path is None):
            raise ValueError("give either architecture (and config) or path: they say which network it is")
        if self.pretrained and self.path is None:
            raise ValueError("pretrained needs path, where the weights lie")
        if self.pretrained and self.layers_from is not None:
            raise ValueError("pretrained and layers_from both give the first weights; drop one of them")
        if self.num_classes is not None and self.head != "sequence_classifier":
            raise ValueError(f"num_classes is of sequence_classifier; a {self.head} predicts tokens of the vocabulary")
        return self


class BiLstmStudentConfig(Config):
    """A bidirectional LSTM over embeddings of its own, a hidden layer, and a classifier (Tang et al. 2019)."""

    kind: Literal["bilstm"] = Field(description="A BiLSTM classifier.")
    embedding_width: int = Field(default=300, ge=1, description="Width of token embeddings.")
    hidden_width: int = Field(default=150, ge=1, description="Width of each direction.")
    num_layers: int = Field(default=1, ge=1, description="LSTM layers.")
    head_width: int = Field(default=200, ge=1, description="Width of the hidden layer before the classifier.")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="Share of channels dropped, before each layer.")
    num_classes: int | None = Field(default=None, ge=1, description=_NUM_CLASSES)


class TextCnnStudentConfig(Config):
    """Convolutions of several widths over embeddings of its own, maximum over time, and a classifier (Kim 2014)."""

    kind: Literal["text_cnn"] = Field(description="A TextCNN classifier.")
    embedding_width: int = Field(default=300, ge=1, description="Width of token embeddings.")
    kernel_sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(3, 4, 5), min_length=1, description="Tokens that each group of filters sees."
    )
    num_filters: int = Field(default=100, ge=1, description="Filters of each size.")
    dropout: float = Field(default=0.5, ge=0, lt=1, description="Share of channels dropped before the classifier.")
    num_classes: int | None = Field(default=None, ge=1, description=_NUM_CLASSES)


class MiniAlbertStudentConfig(Config):
    """One transformer layer that is run again and again, with small adapters of each round (MiniALBERT)."""

    kind: Literal["mini_albert"] = Field(description="A recursive transformer of texts.")
    head: Literal["masked_lm", "sequence_classifier"] = Field(description="What it predicts.")
    num_rounds: int = Field(default=6, ge=1, description="Times the layer is run; each counts as a layer.")
    width: int = Field(default=768, ge=1, description="Width of hidden states; a teacher of the same width needs no projections.")
    num_heads: int = Field(default=12, ge=1, description="Attention heads.")
    intermediate_width: int = Field(default=3072, ge=1, description="Width of the feed-forward network.")
    embedding_width: int = Field(default=312, ge=1, description="Width of token embeddings, projected to that of hidden states.")
    adapter_reduction: int = Field(default=16, ge=1, description="Width of hidden states divided by that of adapters.")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="Share of channels dropped.")
    num_classes: int | None = Field(default=None, ge=1, description=_OF_CLASSIFIER)

    @model_validator(mode="after")
    def _check(self) -> MiniAlbertStudentConfig:
        if self.width % self.num_heads or self.adapter_reduction > self.width:
            raise ValueError(
                f"width {self.width} must be a multiple of num_heads {self.num_heads}, and adapter_reduction "
                f"{self.adapter_reduction} no more than it"
            )
        if self.num_classes is not None and self.head != "sequence_classifier":
            raise ValueError(f"num_classes is of sequence_classifier; a {self.head} predicts tokens of the vocabulary")
        return self


TextStudentConfig = TransformersStudentConfig | MiniAlbertStudentConfig | BiLstmStudentConfig | TextCnnStudentConfig

AnyStudentConfig = Annotated[
    Annotated[StudentConfig, Tag("timm")]
    | Annotated[TransformersStudentConfig, Tag("transformers")]
    | Annotated[MiniAlbertStudentConfig, Tag("mini_albert")]
    | Annotated[BiLstmStudentConfig, Tag("bilstm")]
    | Annotated[TextCnnStudentConfig, Tag("text_cnn")],
    kind_or("timm"),
]
