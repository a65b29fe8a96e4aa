"""The view that a config asks for, with a tokenizer: the same for labels and for students that read texts themselves."""

from __future__ import annotations

from typing import Protocol

from storage.config.labels import MaskedTokensViewsConfig, TextViewsConfig, TokensViewsConfig
from storage.errors import ConfigError
from storage.specs import MaskedTokensView, TextViewSpec, TokensView


class ViewFacts(Protocol):
    """What a view depends on of a tokenizer; see `storage.text.tokenizer.TokenizerFacts`."""

    @property
    def sha256(self) -> str: ...  # noqa: D102  # described there

    @property
    def vocabulary_size(self) -> int: ...  # noqa: D102

    @property
    def mask_id(self) -> int | None: ...  # noqa: D102

    @property
    def separator_id(self) -> int | None: ...  # noqa: D102

    @property
    def num_special_tokens(self) -> int: ...  # noqa: D102

    @property
    def knows_words(self) -> bool: ...  # noqa: D102


def view_of(views: TextViewsConfig, *, tokenizer: ViewFacts, tokenizer_key: str) -> TextViewSpec:
    """Return the view spec of texts.

    Args:
        tokenizer_key: where the config names the tokenizer, for messages.

    Raises:
        ConfigError: the tokenizer cannot do what the views ask for.
    """
    if views.special_tokens and views.length <= tokenizer.num_special_tokens:
        raise ConfigError(
            f"views.length: {views.length} leaves no room for text beside {tokenizer.num_special_tokens} special tokens; raise it"
        )
    if views.layout == "pack" and tokenizer.separator_id is None:
        raise ConfigError(
            "views.layout: pack needs a token between documents, and the tokenizer has neither an end of text nor a separator; "
            f"give layout: cut, or another tokenizer ({tokenizer_key})"
        )
    if isinstance(views, TokensViewsConfig):
        return TokensView(
            tokenizer_sha256=tokenizer.sha256,
            vocabulary_size=tokenizer.vocabulary_size,
            layout=views.layout,
            length=views.length,
            special_tokens=views.special_tokens,
        )
    if tokenizer.mask_id is None:
        raise ConfigError(
            "views.kind: masked_tokens, but the tokenizer has no mask token; give views.kind: tokens, or another tokenizer "
            f"({tokenizer_key})"
        )
    if views.whole_words and not tokenizer.knows_words:
        raise ConfigError("views.whole_words: true, but the tokenizer cannot tell where words begin; give whole_words: false")
    return _masked(views, tokenizer=tokenizer, mask_token_id=tokenizer.mask_id)


def _masked(views: MaskedTokensViewsConfig, *, tokenizer: ViewFacts, mask_token_id: int) -> MaskedTokensView:
    return MaskedTokensView(
        tokenizer_sha256=tokenizer.sha256,
        vocabulary_size=tokenizer.vocabulary_size,
        layout=views.layout,
        length=views.length,
        special_tokens=views.special_tokens,
        mask_token_id=mask_token_id,
        mask_share=views.mask_share,
        replaced_share=views.replaced_share,
        random_share=views.random_share,
        whole_words=views.whole_words,
        seed=views.seed,
    )
