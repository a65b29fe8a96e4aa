"""Masks of token sequences: a pure function of (seed, sequence key, view index), whatever else is in the batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from storage.specs import MaskedTokensView
from storage.text.token_rows import MaskRows, TokenRows, offsets_of
from storage.views.random import view_uniforms

_DRAWS = 3
"""Uniforms of a token: its place in the order of choice, what is shown in its place, which random token."""


def mask_tokens(
    tokens: TokenRows,
    *,
    keys: Sequence[str],
    maskable: npt.NDArray[np.bool_],
    view: MaskedTokensView,
    view_index: int,
    word_starts: npt.NDArray[np.bool_] | None = None,
) -> MaskRows:
    """Choose the positions that are masked and what the teacher sees there.

    In each sequence the maskable tokens are put in random order and the first round(mask_share * maskable) are chosen, at least
    one. Of whole words, as many are taken in random order as fit that number, the last one if at least half of it does, the
    first one always. A chosen token shows the mask token, a random token of the whole vocabulary, or itself.

    Uniform number 3 i + j of `storage.views.random.view_uniforms` belongs to token i of a sequence: j = 0 its place in the
    order (a word has that of its first token), j = 1 what is shown, j = 2 which random token.

    Args:
        tokens: sequences.
        keys: a key for each sequence.
        maskable: bool [tokens], False for special tokens.
        view: what share is masked, and how.
        view_index: which view of each sequence.
        word_starts: bool [tokens], the first token of each word; needed where the view masks whole words.

    Raises:
        ValueError: arrays that do not fit each other, or no word starts for a view of whole words.

    References:
        Devlin et al., BERT, https://arxiv.org/abs/1810.04805
    """
    if len(keys) != len(tokens) or len(maskable) != len(tokens.token_ids):
        raise ValueError(
            f"{len(keys)} keys and {len(maskable)} flags for {len(tokens)} sequences of {len(tokens.token_ids)} tokens"
        )
    if view.whole_words and (word_starts is None or len(word_starts) != len(maskable)):
        raise ValueError("a view that masks whole words needs a word start flag for each token")
    uniforms = _uniforms(tokens, keys=keys, seed=view.seed, view_index=view_index)
    items = np.flatnonzero(maskable)
    sequences = np.repeat(np.arange(len(tokens)), tokens.lengths)[items]
    num_chosen = _num_chosen(np.bincount(sequences, minlength=len(tokens)), mask_share=view.mask_share)
    if view.whole_words and word_starts is not None:
        words = _words(items, sequences=sequences, word_starts=word_starts)
    else:
        words = np.arange(len(items))
    chosen = items[_first_words(words, sequences=sequences, order=uniforms[items, 0], num_chosen=num_chosen)]
    shown, random = uniforms[chosen, 1], uniforms[chosen, 2]
    input_ids = tokens.token_ids[chosen].astype(np.uint32)
    is_replaced = shown < view.replaced_share
    is_random = ~is_replaced & (shown < view.replaced_share + view.random_share)
    input_ids[is_replaced] = view.mask_token_id
    input_ids[is_random] = np.floor(random[is_random] * view.vocabulary_size).astype(np.uint32)
    offsets = np.searchsorted(chosen, tokens.offsets)
    positions = chosen - np.repeat(tokens.offsets[:-1], np.diff(offsets))
    return MaskRows(offsets=offsets.astype(np.int64), positions=positions.astype(np.int64), input_ids=input_ids)


def _uniforms(tokens: TokenRows, *, keys: Sequence[str], seed: int, view_index: int) -> npt.NDArray[np.float64]:
    """Return float64 [tokens, 3]."""
    found = np.empty((len(tokens.token_ids), _DRAWS), dtype=np.float64)
    bounds = tokens.offsets.tolist()
    for index, key in enumerate(keys):
        start, stop = bounds[index], bounds[index + 1]
        drawn = view_uniforms(seed, key=key, view_index=view_index, count=_DRAWS * (stop - start))
        found[start:stop] = drawn.reshape(-1, _DRAWS)
    return found


def _num_chosen(num_maskable: npt.NDArray[np.int64], *, mask_share: float) -> npt.NDArray[np.int64]:
    wanted: npt.NDArray[np.int64] = np.rint(mask_share * num_maskable).astype(np.int64)
    return np.clip(wanted, np.minimum(num_maskable, 1), num_maskable)


def _words(
    items: npt.NDArray[np.int64], *, sequences: npt.NDArray[np.int64], word_starts: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int64]:
    """Return int64 [maskable tokens], the word of each; a word also begins where a sequence or a gap of special tokens ends."""
    begins = word_starts[items].copy()
    begins[:1] = True
    begins[1:] |= (np.diff(sequences) != 0) | (np.diff(items) != 1)
    return np.cumsum(begins) - 1


def _first_words(
    words: npt.NDArray[np.int64],
    *,
    sequences: npt.NDArray[np.int64],
    order: npt.NDArray[np.float64],
    num_chosen: npt.NDArray[np.int64],
) -> npt.NDArray[np.bool_]:
    """Return bool [maskable tokens], True for the words that come first in their sequence and fit the number to choose."""
    firsts = np.flatnonzero(np.diff(words, prepend=-1))
    sizes = np.diff(firsts, append=len(words))
    of_sequence = sequences[firsts]
    # Stable, so equal uniforms fall to the earlier word.
    ranked = np.lexsort((order[firsts], of_sequence))
    before = offsets_of(sizes[ranked])[:-1]
    starts = np.searchsorted(of_sequence, of_sequence)
    before -= before[starts]
    taken = np.zeros(len(firsts), dtype=np.bool_)
    taken[ranked] = 2 * before + sizes[ranked] <= 2 * num_chosen[of_sequence]
    taken[ranked[np.unique(starts)]] = True
    return taken[words]
