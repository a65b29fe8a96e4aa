"""Teachers, as far as the bytes of their labels depend on them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from storage.specs.base import Spec


class Normalization(Spec):
    """(pixels / 255 - mean) / std, per channel; what a network does to a rendered view first."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class TeacherSpec(Spec):
    """A teacher as the bytes of its labels depend on it: function, weights, precision. Not library, device or file format."""

    kind: Literal["timm", "transformers", "factory"]
    architecture: str
    """Architecture name with its arguments, canonical."""
    weights_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """sha256 over (name, dtype, shape, bytes) of every tensor in name order."""
    num_classes: int = Field(ge=1, le=2**32)
    normalization: Normalization
    precision: Literal["fp32", "bf16", "fp16"]


class TextTeacherSpec(Spec):
    """A teacher of texts as the bytes of its labels depend on it. Its tokenizer is part of the view."""

    kind: Literal["masked_lm", "causal_lm", "sequence_classifier", "text_factory"]
    architecture: str
    """Architecture name with its arguments, canonical."""
    weights_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """sha256 over (name, dtype, shape, bytes) of every tensor in name order."""
    num_classes: int = Field(ge=1, le=2**32)
    """Outputs of the head that labels are of: tokens of the vocabulary, padding of the head left out, or classes."""
    precision: Literal["fp32", "bf16", "fp16"]


class ImportedTeacher(Spec):
    """A teacher that somebody else ran: a name as stated by whoever imported its labels. Weights and precision are not known."""

    kind: Literal["imported"] = "imported"
    architecture: str = Field(min_length=1)
    num_classes: int = Field(ge=1, le=2**32)
