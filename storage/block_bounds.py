"""Which samples of a unit a block covers, and what a block may hold. Depends on samples and views alone, so that blocks match."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from storage.text.token_rows import offsets_of

MAX_BLOCK_SAMPLES = 8000
MAX_BLOCK_VALUE_ROWS = 1 << 24
BLOCK_TOKENS = 8000


def block_samples(*, num_samples: int, num_tokens: int) -> int:
    """Return the samples one block of a unit covers that all have as many tokens: even shares of at most 8,000 tokens."""
    most = max(BLOCK_TOKENS // num_tokens, 1)
    num_blocks = max(1, -(-num_samples // most))
    return max(1, -(-num_samples // num_blocks))


def block_bounds(num_tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return int64 [blocks + 1], where the blocks of a unit begin and end, of samples that differ in their tokens.

    As few blocks as hold at most 8,000 tokens, 8,000 samples and 2^24 - 1 pairs of tokens each (a longer sample is alone), and
    the largest of these no larger than needed. Every target of a text view gets the same blocks, also one with a row a pair.

    Args:
        num_tokens: int64 [samples], 0 of those that are not present.
    """
    tokens = offsets_of(num_tokens)
    pairs = offsets_of(num_tokens * (num_tokens + 1) // 2)
    fewest = len(_cut(tokens, pairs=pairs, most=BLOCK_TOKENS))
    low, high = 1, BLOCK_TOKENS
    while low < high:
        middle = (low + high) // 2
        if len(_cut(tokens, pairs=pairs, most=middle)) > fewest:
            low = middle + 1
        else:
            high = middle
    return np.array([0, *_cut(tokens, pairs=pairs, most=low)], dtype=np.int64)


def _cut(tokens: npt.NDArray[np.int64], *, pairs: npt.NDArray[np.int64], most: int) -> list[int]:
    """Return where blocks end that take samples as long as they fit."""
    ends = []
    first, last = 0, len(tokens) - 1
    while first < last:
        end = int(np.searchsorted(tokens, tokens[first] + most, side="right")) - 1
        end = min(end, int(np.searchsorted(pairs, pairs[first] + MAX_BLOCK_VALUE_ROWS)) - 1, first + MAX_BLOCK_SAMPLES, last)
        first = max(end, first + 1)
        ends.append(first)
    return ends
