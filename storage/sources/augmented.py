"""Texts beside copies of themselves in which words are replaced: TinyBERT's data augmentation."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from storage.config.source import AugmentationConfig
from storage.errors import SampleError, SourceError
from storage.hashing import fingerprint
from storage.sources.base import Sample, Source, SourceUnit, UnitReader
from storage.sources.compression import read_chunks
from storage.sources.files import expand_files
from storage.sources.records import RecordStyle, iter_records
from storage.views.random import view_uniforms

_WORD = re.compile(r"\w+(?:['’]\w+)*")
_MAX_LINE_BYTES = 1 << 20

Candidates = dict[str, tuple[str, ...]]
"""Words that may stand in the place of a word, by the word."""


def load_candidates(url: str) -> Candidates:
    """Read a table of candidates: JSON Lines of {"word": ..., "candidates": [...]}, also compressed (.gz, .zst).

    Raises:
        SourceError: it cannot be read, or a line says something else.
    """
    found: Candidates = {}
    for record in iter_records(read_chunks(url), style=RecordStyle(skip_blank=True), max_record_bytes=_MAX_LINE_BYTES, url=url):
        try:
            line = json.loads(record.data or b"null")
            word, candidates = line["word"], tuple(line["candidates"])
        except (ValueError, KeyError, TypeError) as error:
            raise SourceError(
                f'{url}: line {record.line} is not {{"word": ..., "candidates": [...]}}: {error!r}; make the table again'
            ) from error
        if not isinstance(word, str) or not candidates or not all(isinstance(name, str) and name for name in candidates):
            raise SourceError(f"{url}: line {record.line} has no word or no candidates for it; make the table again")
        if word in found:
            raise SourceError(f"{url}: word {word!r} stands twice, again on line {record.line}; make the table again")
        found[word] = candidates
    if not found:
        raise SourceError(f"{url} holds no words, so nothing could be replaced; make the table again")
    return found


def replace_words(text: str, *, candidates: Candidates, share: float, seed: int, key: str, copy: int) -> str:
    """Return a text in which each word that has candidates is replaced by one of them with probability `share`.

    Uniforms 2 i and 2 i + 1 of `storage.views.random.view_uniforms` for (seed, key, copy) belong to word i: whether it is
    replaced, and by which candidate. A word is looked up as it is, then in lower case; what replaces a capitalised word is
    capitalised.

    References:
        Jiao et al., TinyBERT, algorithm 1, https://arxiv.org/abs/1909.10351
    """
    words = list(_WORD.finditer(text))
    uniforms = view_uniforms(seed, key=key, view_index=copy, count=2 * len(words)).reshape(-1, 2).tolist() if words else []
    pieces: list[str] = []
    end = 0
    for match, (chance, which) in zip(words, uniforms, strict=True):
        word = match.group()
        names = candidates.get(word) or candidates.get(word.lower())
        if names is None or chance >= share:
            continue
        name = names[int(which * len(names))]
        pieces += [text[end : match.start()], name.capitalize() if word.istitle() else name]
        end = match.end()
    return "".join([*pieces, text[end:]])


class AugmentedSource:
    """Every document of another source, each followed by `copies` of it with words replaced.

    The document keeps its key; copy c of it, counted from 1, has `<key>#<c>`, and the document's label.
    """

    def __init__(self, source: Source, *, config: AugmentationConfig) -> None:
        self._source = source
        self._config = config
        self._candidates: Candidates | None = None

    def __reduce__(self) -> tuple[Callable[..., AugmentedSource], tuple[Source, AugmentationConfig]]:
        return _made, (self._source, self._config)

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names of the other source."""
        return self._source.classes

    def units(self) -> list[SourceUnit]:
        """List the other source's units.

        Raises:
            SourceError: as the other source; or the table of candidates cannot be read.
        """
        [table] = expand_files(self._config.candidates, suffixes=())
        identity = [self._config.model_dump(mode="json"), table.token]
        return [
            replace(unit, stat_token=fingerprint([unit.stat_token, identity]) if unit.stat_token and table.token else "")
            for unit in self._source.units()
        ]

    def read(self, unit: SourceUnit) -> Iterator[Sample]:
        """Yield each document of a unit and then its copies, holding one document."""
        for sample in self._source.read(unit):
            for copy in range(self._config.copies + 1):
                yield Sample(
                    position=sample.position * (self._config.copies + 1) + copy,
                    key=_key(sample.key, copy=copy),
                    label=sample.label,
                    data=sample.data if sample.data is None else self.copy_of(sample.data, key=sample.key, copy=copy),
                    error=sample.error,
                )

    def open(self, unit: SourceUnit) -> AugmentedReader:
        """Open a unit of the other source for random access."""
        return AugmentedReader(self._source.open(unit), source=self, copies=self._config.copies)

    def copy_of(self, data: bytes, *, key: str, copy: int) -> bytes:
        """Return copy number `copy` of a document; number 0 is the document, and bytes that are no UTF-8 stay as they are."""
        if copy == 0:
            return data
        try:
            text = data.decode()
        except UnicodeDecodeError:
            return data
        if self._candidates is None:
            self._candidates = load_candidates(self._config.candidates)
        options = self._config
        return replace_words(
            text, candidates=self._candidates, share=options.replaced_share, seed=options.seed, key=key, copy=copy
        ).encode()


class AugmentedReader:
    """Random access to the documents of a unit and their copies."""

    def __init__(self, reader: UnitReader, *, source: AugmentedSource, copies: int) -> None:
        self._reader = reader
        self._source = source
        self._times = copies + 1

    @property
    def keys(self) -> Sequence[str]:
        """Keys in position order."""
        return [_key(key, copy=copy) for key in self._reader.keys for copy in range(self._times)]

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """Hard labels in position order, NO_LABEL where there is none."""
        return np.repeat(self._reader.labels, self._times)

    def read(self, position: int) -> bytes:
        """Return the bytes of a document or copy.

        Raises:
            SampleError: the document cannot be read.
        """
        number, copy = divmod(position, self._times)
        key = self._reader.keys[number] if 0 <= number < len(self._reader.keys) else ""
        try:
            data = self._reader.read(number)
        except SampleError as error:
            raise SampleError(f"{_key(key, copy=copy)}: {error}") from error
        return self._source.copy_of(data, key=key, copy=copy)

    def close(self) -> None:
        """Release files."""
        self._reader.close()


def _key(key: str, *, copy: int) -> str:
    return f"{key}#{copy}" if copy else key


def _made(source: Source, config: AugmentationConfig) -> AugmentedSource:
    return AugmentedSource(source, config=config)
