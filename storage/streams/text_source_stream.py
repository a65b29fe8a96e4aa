"""Token sequences of a source alone: texts without labels of a teacher, for baselines, teachers and evaluation."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from storage.block_bounds import block_bounds
from storage.errors import DeadLetterLimitError, SourceError
from storage.hashing import fingerprint
from storage.sources.base import Sample, Source, SourceUnit
from storage.specs import MaskedTokensView, TextViewSpec
from storage.streams.base import TextRows
from storage.streams.recent import Recent
from storage.text.masking import mask_tokens
from storage.text.sequences import Sequences, sequences_of
from storage.text.token_rows import TokenRows, concatenate_tokens, offsets_of
from storage.text.token_store import TokenBlock, TokenStore, write_token_store
from storage.text.tokenizer import TextTokenizer

IntArray = npt.NDArray[np.int64]

_THREADS = 4


class TextSourceStream:
    """A `RowStream` over texts: the sequences, keys, masks and blocks that labelling the same source gives.

    The first use tokenises all of it once, into a folder of its own, since blocks are read in shuffled order; a later one with
    the same files, tokenizer and view finds it there, unless the store tells neither time nor etag of a file. A copy in a loader
    process needs no tokenizer.
    """

    def __init__(
        self,
        source: Source,
        *,
        tokenizer: TextTokenizer,
        view: TextViewSpec,
        folder: Path,
        num_views: int | None = None,
        sample_fraction: float = 1.0,
        dead_letter_limit: float = 0.01,
        held_blocks: int = 17,
    ) -> None:
        """Describe the rows; nothing is read yet.

        Args:
            source: where the texts are.
            tokenizer: its fingerprint must be the view's.
            view: layout, length and masks.
            folder: where token stores are kept; may be removed when nothing runs.
            num_views: epoch e reads view e modulo this; None: view e, so that masks are never the same twice.
            sample_fraction: share of documents that is read, chosen by the hash of their key; see `SourceStream`.
            dead_letter_limit: share of sequences that may be unreadable.
            held_blocks: blocks that are kept; at least those of a shuffle window.
        """
        self._source = source
        self._tokenizer: TextTokenizer | None = tokenizer
        self._unmaskable_ids = np.array(tokenizer.facts.unmaskable_ids, dtype=np.uint32)
        self._view_spec = view
        self._folder = folder
        self._num_views = num_views
        self._sample_fraction = sample_fraction
        self._dead_letter_limit = dead_letter_limit
        self._held_blocks = held_blocks
        self._store: TokenStore | None = None
        self._reset()

    def _reset(self) -> None:
        self._blocks: Recent[int, TokenBlock] = Recent(self._held_blocks)

    def __getstate__(self) -> dict[str, Any]:
        self._opened()
        return {name: value for name, value in self.__dict__.items() if name != "_blocks"} | {"_tokenizer": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    @property
    def view(self) -> TextViewSpec:
        """How the sequences are made and masked."""
        return self._view_spec

    @property
    def num_labelled(self) -> int:
        """Sequences with a hard label."""
        return self._opened().num_labelled

    @property
    def max_label(self) -> int:
        """The largest hard label, NO_LABEL if there is none."""
        return self._opened().max_label

    def identity(self) -> str:
        """Return a fingerprint of keys, labels, tokens, masks and order; where the source lies does not count."""
        return fingerprint(
            {
                "stream": "texts",
                "tokens": self._opened().digest,
                "blocks": xxhash.xxh3_64_hexdigest(self._opened().blocks.tobytes()),
                "view": self._view_spec.to_json(),
                "num_views": self._num_views,
            }
        )

    def block_rows(self, *, epoch: int) -> IntArray:
        """Return int64 [blocks]; every epoch reads the same sequences.

        Raises:
            SourceError: the source cannot be read, or no sequence is left.
            DeadLetterLimitError: too many documents cannot be read.
        """
        del epoch
        return self._opened().block_rows

    def lengths(self, *, epoch: int, block_ids: IntArray, rows: IntArray) -> IntArray:
        """Return int64, the tokens of each sequence, as `read` would give them; its blocks are kept for that."""
        del epoch
        unique, inverse = np.unique(block_ids, return_inverse=True)
        of_block = [self._block(block_id).tokens.lengths for block_id in unique.tolist()]
        starts = offsets_of(np.array([len(lengths) for lengths in of_block], dtype=np.int64))
        found: IntArray = np.concatenate([*of_block, starts[:0]])[starts[inverse] + rows]
        return found

    def read(self, *, epoch: int, block_ids: IntArray, rows: IntArray) -> TextRows:
        """Return sequences by (block, sequence inside the block), in the order asked for."""
        unique, inverse = np.unique(block_ids, return_inverse=True)
        order = np.argsort(inverse, kind="stable")
        bounds = np.searchsorted(inverse[order], np.arange(len(unique) + 1))
        restore = np.argsort(order, kind="stable")
        view = epoch if self._num_views is None else epoch % self._num_views
        keys, labels, tokens = [], [], []
        for index, block_id in enumerate(unique.tolist()):
            block = self._block(block_id)
            chosen = rows[order[bounds[index] : bounds[index + 1]]]
            keys.append(np.array(block.keys, dtype=np.object_)[chosen])
            labels.append(block.labels[chosen])
            tokens.append(self._masked(block, chosen=chosen, view=view))
        return TextRows(
            keys=np.concatenate(keys)[restore].tolist(),
            tokens=concatenate_tokens(tokens).take(restore),
            labels=np.concatenate(labels)[restore],
            targets={},
        )

    def _masked(self, block: TokenBlock, *, chosen: IntArray, view: int) -> TokenRows:
        tokens = block.tokens.take(chosen)
        if not isinstance(self._view_spec, MaskedTokensView):
            return tokens
        starts = None
        if block.word_starts is not None:
            # Taken along with the tokens: a sequence of flags is what a sequence of ids is.
            starts = replace(block.tokens, token_ids=block.word_starts.astype(np.uint32)).take(chosen).token_ids.astype(np.bool_)
        masks = mask_tokens(
            tokens,
            keys=[block.keys[row] for row in chosen.tolist()],
            maskable=~np.isin(tokens.token_ids, self._unmaskable_ids),
            view=self._view_spec,
            view_index=view,
            word_starts=starts,
        )
        return replace(tokens, masks=masks)

    def _block(self, block_id: int) -> TokenBlock:
        block = self._blocks.get(block_id)
        if block is None:
            block = self._opened().read(block_id)
            self._blocks.put(block_id, block)
        return block

    def _opened(self) -> TokenStore:
        if self._store is None:
            units = self._source.units()
            self._store = self._found_or_written(units)
            if not self._store.block_rows.sum():
                raise SourceError(
                    f"no text is left to read in {len(units)} units with sample_fraction {self._sample_fraction}; check the "
                    "source's path, or raise sample_fraction"
                )
        return self._store

    def _found_or_written(self, units: list[SourceUnit]) -> TokenStore:
        name = self._name(units)
        if all(unit.stat_token for unit in units):
            try:
                return TokenStore(self._folder / name)
            except FileNotFoundError:
                return write_token_store(self._folder / name, self._tokenised(units))
        # Nothing says that the texts are those that were read before. Named by their content, they take no more room for it.
        written = self._folder / f"{name}-{uuid.uuid4().hex}"
        found = self._folder / f"{name}-{write_token_store(written, self._tokenised(units)).digest}"
        try:
            written.rename(found)
        except OSError:
            shutil.rmtree(written)
        return TokenStore(found)

    def _name(self, units: list[SourceUnit]) -> str:
        """Return a name that changes with anything that the tokens depend on; masks are drawn when they are read."""
        view = self._view_spec
        described = {
            "units": [[unit.name, unit.stat_token] for unit in units],
            "tokenizer": view.tokenizer_sha256,
            "layout": [view.layout, view.length, view.special_tokens, isinstance(view, MaskedTokensView) and view.whole_words],
            "sample_fraction": self._sample_fraction,
        }
        return fingerprint(described)[:32]

    def _tokenised(self, units: list[SourceUnit]) -> Iterator[TokenBlock]:
        num_present = num_absent = 0
        first_reason = ""
        with ThreadPoolExecutor(_THREADS) as pool:
            # A few units ahead, so that no more than those are held.
            for start in range(0, len(units), _THREADS):
                for found in pool.map(self._sequences, units[start : start + _THREADS]):
                    num_present += len(found.tokens)
                    num_absent += len(found.dead_letters)
                    if found.dead_letters and not first_reason:
                        first_reason = f"{found.dead_letters[0].key!r}: {found.dead_letters[0].reason}"
                    yield from _blocks_of(found)
        if num_absent > self._dead_letter_limit * (num_present + num_absent):
            raise DeadLetterLimitError(
                f"{num_absent} of {num_present + num_absent} texts cannot be read, more than generation.dead_letter_limit "
                f"{self._dead_letter_limit:g} allows; the first is {first_reason}. Mend the source, or raise the limit"
            )

    def _sequences(self, unit: SourceUnit) -> Sequences:
        assert self._tokenizer is not None
        return sequences_of(self._chosen(unit), tokenizer=self._tokenizer, view=self._view_spec)

    def _chosen(self, unit: SourceUnit) -> Iterator[Sample]:
        limit = int(self._sample_fraction * 2**64)
        for sample in self._source.read(unit):
            if self._sample_fraction >= 1 or xxhash.xxh3_64_intdigest(sample.key.encode()) < limit:
                yield sample


def _blocks_of(found: Sequences) -> Iterator[TokenBlock]:
    """Yield the blocks that labelling would store, without the sequences that are not there."""
    rank = np.cumsum(found.present) - 1
    token_places = found.tokens.offsets
    for first, last in pairwise(block_bounds(found.num_tokens).tolist()):
        present = np.flatnonzero(found.present[first:last]) + first
        rows = rank[present]
        words = None
        if found.word_starts is not None:
            words = found.word_starts[token_places[rows[0]] : token_places[rows[-1] + 1]] if len(rows) else found.word_starts[:0]
        yield TokenBlock(
            keys=tuple(found.keys[position] for position in present.tolist()),
            labels=found.labels[present],
            tokens=found.tokens.take(rows),
            word_starts=words,
        )
