"""What a tokenizer is, whatever library made it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

RECORDED_TOKENIZER = "decant_tokenizer_sha256"
"""Entry of a model's config.json: fingerprint of the tokenizer whose tokens it was trained on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerFacts:
    """What others need to know of a tokenizer.

    Attributes:
        sha256: over everything that token ids depend on; equal for a tokenizer that was saved and loaded again.
        vocabulary_size: token ids are below it; added tokens count.
        special_ids: ids of all special tokens, ascending.
        mask_id: id of the mask token; None where there is none, and so the next two.
        pad_id: id of the padding token.
        separator_id: id that stands behind each document where documents are packed: the end of a text, else the separator.
        prefix: ids of the special tokens before a single sequence.
        suffix: ids of those behind it.
        knows_words: whether `encode` can tell where words begin.
        max_length: most tokens of a sequence as the tokenizer's own settings say, None where they do not.
    """

    sha256: str
    vocabulary_size: int
    special_ids: tuple[int, ...]
    mask_id: int | None
    pad_id: int | None
    separator_id: int | None
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    knows_words: bool
    max_length: int | None

    @property
    def num_special_tokens(self) -> int:
        """Special tokens of a single sequence."""
        return len(self.prefix) + len(self.suffix)

    @property
    def unmaskable_ids(self) -> tuple[int, ...]:
        """Ids that are never masked, ascending: special tokens, and what frames sequences or stands between documents."""
        separator = () if self.separator_id is None else (self.separator_id,)
        return tuple(sorted({*self.special_ids, *self.prefix, *self.suffix, *separator}))


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedTexts:
    """Token ids of texts, end to end, without the special tokens that frame a sequence.

    Attributes:
        counts: int64 [texts], tokens of each.
        token_ids: uint32 [tokens].
        word_starts: bool [tokens], the first token of each word; None where nobody asked.
    """

    counts: npt.NDArray[np.int64]
    token_ids: npt.NDArray[np.uint32]
    word_starts: npt.NDArray[np.bool_] | None


class TextTokenizer(Protocol):
    """A tokenizer of any library."""

    @property
    def facts(self) -> TokenizerFacts:
        """What it is."""

    def encode(self, texts: list[str], *, words: bool = False) -> EncodedTexts:
        """Return the token ids of texts, without truncation, padding or the special tokens that frame a sequence.

        Args:
            texts: the texts; special tokens written out in them count as the tokenizer counts them.
            words: whether to tell where words begin.

        Raises:
            TeacherError: words were asked of a tokenizer that does not know them.
        """
