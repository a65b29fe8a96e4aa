"""Views of texts: token sequences as the teacher read them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from storage.specs.base import Spec


class TokensView(Spec):
    """Token sequences as they are. Every sequence has one such view.

    A document becomes one sequence (`truncate`: what is too long is cut off), several (`cut`), or flows into the sequences of its
    unit (`pack`: documents end to end, a separator behind each).
    """

    kind: Literal["tokens"] = "tokens"
    tokenizer_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    vocabulary_size: int = Field(ge=1, le=2**32)
    """Token ids are below it."""
    layout: Literal["truncate", "cut", "pack"]
    length: int = Field(ge=2, le=65535)
    """Most tokens of a sequence, special tokens included."""
    special_tokens: bool
    """Whether each sequence carries the special tokens that its tokenizer adds."""


class MaskedTokensView(Spec):
    """Token sequences with positions masked, drawn by a counter-based generator from (seed, sequence key, view index).

    `mask_share` of the maskable positions, at least one, are chosen; `replaced_share` of them show the mask token, `random_share`
    a random token, the others themselves.

    References:
        Devlin et al., BERT, https://arxiv.org/abs/1810.04805
    """

    kind: Literal["masked_tokens"] = "masked_tokens"
    tokenizer_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    vocabulary_size: int = Field(ge=1, le=2**32)
    layout: Literal["truncate", "cut", "pack"]
    length: int = Field(ge=2, le=65535)
    special_tokens: bool
    mask_token_id: int = Field(ge=0, lt=2**32)
    mask_share: float = Field(default=0.15, gt=0, le=1)
    replaced_share: float = Field(default=0.8, ge=0, le=1)
    random_share: float = Field(default=0.1, ge=0, le=1)
    whole_words: bool = False
    """Whether all tokens of a word are masked together."""
    seed: int = Field(default=0, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _check_shares(self) -> MaskedTokensView:
        if self.replaced_share + self.random_share > 1:
            raise ValueError(
                f"replaced_share {self.replaced_share} and random_share {self.random_share} sum to more than 1; what is left "
                "shows the token itself"
            )
        if self.mask_token_id >= self.vocabulary_size:
            raise ValueError(f"mask_token_id {self.mask_token_id} is outside the vocabulary of {self.vocabulary_size} tokens")
        return self


TextViewSpec = Annotated[TokensView | MaskedTokensView, Field(discriminator="kind")]
