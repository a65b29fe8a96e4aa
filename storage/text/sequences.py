"""Documents to token sequences: cut off, cut up or packed end to end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from storage.errors import SampleError, TeacherError
from storage.failure_trace import short_traceback, without_addresses
from storage.parts import DeadLetter
from storage.sources.base import NO_LABEL, Sample
from storage.specs import MaskedTokensView, TextViewSpec
from storage.text.token_rows import TokenRows, offsets_of
from storage.text.tokenizer import TextTokenizer

_BATCH_DOCUMENTS = 1024
_BATCH_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Sequences:
    """The sequences of a unit. A document that cannot be read has one that is not present, so that positions tell of it.

    Attributes:
        keys: a key for each sequence, absent ones too. truncate: the document's; cut and pack: `<key of the document the first
            token is of>@<that token's place in it>`.
        labels: int64 [sequences], the document's label; NO_LABEL where documents are packed.
        present: bool [sequences].
        tokens: the sequences that are present.
        maskable: bool [tokens], False for special tokens.
        word_starts: bool [tokens], the first token of each word; None unless the view masks whole words.
        dead_letters: why sequences are not present; positions count sequences.
    """

    keys: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    present: npt.NDArray[np.bool_]
    tokens: TokenRows
    maskable: npt.NDArray[np.bool_]
    word_starts: npt.NDArray[np.bool_] | None
    dead_letters: tuple[DeadLetter, ...]

    @property
    def num_tokens(self) -> npt.NDArray[np.int64]:
        """int64 [sequences], 0 of absent ones."""
        found = np.zeros(len(self.keys), dtype=np.int64)
        found[self.present] = self.tokens.lengths
        return found

    @property
    def present_keys(self) -> tuple[str, ...]:
        """Keys of the sequences that are present."""
        return tuple(key for key, present in zip(self.keys, self.present.tolist(), strict=True) if present)


def decode_document(data: bytes) -> str:
    """Return the text of a document.

    Raises:
        SampleError: it is no UTF-8, or holds nothing but white space.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise SampleError(f"the text is not UTF-8: byte {error.start} is 0x{data[error.start]:02x}") from error
    if not text or text.isspace():
        raise SampleError("the document is empty" if not text else "the document holds nothing but white space")
    return text


def sequences_of(samples: Iterable[Sample], *, tokenizer: TextTokenizer, view: TextViewSpec) -> Sequences:
    """Return the sequences of a unit's documents.

    truncate: one a document, what is too long is cut off. cut: as many as the document needs, the last one shorter. pack: the
    documents of the unit end to end, the separator behind each, cut to full length; the last sequence is shorter. With
    `view.special_tokens` each sequence is framed as the tokenizer frames a single one, and `view.length` counts the frame.

    Args:
        samples: a unit, in order.
        tokenizer: its fingerprint must be the view's.
        view: layout and length.

    Raises:
        TeacherError: the tokenizer is not the view's, has no separator to pack with, knows no words though whole ones are
            masked, or leaves no room for text beside its special tokens.
    """
    frame = _Frame.of(tokenizer, view=view)
    words = isinstance(view, MaskedTokensView) and view.whole_words
    documents = _encode(samples, tokenizer=tokenizer, words=words)
    if view.layout == "pack":
        documents = _with_separators(documents, separator=_separator(tokenizer))
    pieces = _pieces(documents, layout=view.layout, room=frame.room)
    return _assemble(documents, pieces=pieces, frame=frame, layout=view.layout)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Frame:
    prefix: npt.NDArray[np.uint32]
    suffix: npt.NDArray[np.uint32]
    room: int
    unmaskable_ids: npt.NDArray[np.uint32]

    @classmethod
    def of(cls, tokenizer: TextTokenizer, *, view: TextViewSpec) -> _Frame:
        facts = tokenizer.facts
        if facts.sha256 != view.tokenizer_sha256:
            raise TeacherError(
                f"the view was made with tokenizer {view.tokenizer_sha256[:12]}, this one is {facts.sha256[:12]}, so ids would "
                "mean other words; load the same tokenizer"
            )
        prefix, suffix = (facts.prefix, facts.suffix) if view.special_tokens else ((), ())
        room = view.length - len(prefix) - len(suffix)
        if room < 1:
            raise TeacherError(
                f"views.length {view.length} leaves no room for text beside {len(prefix) + len(suffix)} special tokens; raise it"
            )
        return cls(
            prefix=np.array(prefix, dtype=np.uint32),
            suffix=np.array(suffix, dtype=np.uint32),
            room=room,
            unmaskable_ids=np.array(facts.unmaskable_ids, dtype=np.uint32),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Documents:
    """Tokens of all documents end to end, none of those that are dead."""

    keys: list[str]
    labels: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    token_ids: npt.NDArray[np.uint32]
    word_starts: npt.NDArray[np.bool_] | None
    dead: dict[int, DeadLetter]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pieces:
    """Runs of tokens that become sequences: where each begins and ends, and the document of its first token."""

    starts: npt.NDArray[np.int64]
    stops: npt.NDArray[np.int64]
    documents: npt.NDArray[np.int64]


def _separator(tokenizer: TextTokenizer) -> int:
    found = tokenizer.facts.separator_id
    if found is None:
        raise TeacherError(
            "the tokenizer has no end-of-text or separator token to stand between packed documents; set views.layout: cut, or "
            "give the tokenizer an eos_token"
        )
    return found


def _encode(samples: Iterable[Sample], *, tokenizer: TextTokenizer, words: bool) -> _Documents:
    keys: list[str] = []
    labels: list[int] = []
    dead: dict[int, DeadLetter] = {}
    counts: list[npt.NDArray[np.int64]] = [np.zeros(0, dtype=np.int64)]
    token_ids: list[npt.NDArray[np.uint32]] = [np.zeros(0, dtype=np.uint32)]
    starts: list[npt.NDArray[np.bool_]] = [np.zeros(0, dtype=np.bool_)]
    for batch in _batches(samples):
        texts: dict[int, str] = {}
        for index, sample in enumerate(batch):
            read = _read(sample)
            if isinstance(read, str):
                texts[index] = read
            else:
                dead[len(keys)] = read
            keys.append(sample.key)
            labels.append(sample.label)
        encoded = tokenizer.encode(list(texts.values()), words=words)
        sizes = np.zeros(len(batch), dtype=np.int64)
        sizes[list(texts)] = encoded.counts
        counts.append(sizes)
        token_ids.append(encoded.token_ids)
        if encoded.word_starts is not None:
            starts.append(encoded.word_starts)
    sizes = np.concatenate(counts)
    for index in np.flatnonzero(sizes == 0).tolist():
        dead.setdefault(index, _letter(stage="decode", reason="the tokenizer makes no tokens of the document"))
    return _Documents(
        keys=keys,
        labels=np.array(labels, dtype=np.int64),
        offsets=offsets_of(sizes),
        token_ids=np.concatenate(token_ids),
        word_starts=np.concatenate(starts) if words else None,
        dead=dead,
    )


def _batches(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    batch: list[Sample] = []
    num_bytes = 0
    for sample in samples:
        batch.append(sample)
        num_bytes += len(sample.data or b"")
        if len(batch) == _BATCH_DOCUMENTS or num_bytes >= _BATCH_BYTES:
            yield batch
            batch, num_bytes = [], 0
    if batch:
        yield batch


def _read(sample: Sample) -> str | DeadLetter:
    if sample.data is None:
        return _letter(stage="read", reason=sample.error or "no bytes")
    try:
        return decode_document(sample.data)
    except SampleError as error:
        return _letter(stage="decode", reason=str(error), error=error)


def _letter(*, stage: Literal["read", "decode"], reason: str, error: Exception | None = None) -> DeadLetter:
    """Return a letter whose key and position are filled in when sequences are numbered."""
    traceback = "" if error is None else short_traceback(error)
    return DeadLetter(key="", position=0, view=None, stage=stage, reason=without_addresses(reason), traceback=traceback)


def _with_separators(documents: _Documents, *, separator: int) -> _Documents:
    sizes = np.diff(documents.offsets)
    ends = documents.offsets[1:][sizes > 0]
    starts = documents.word_starts
    return replace(
        documents,
        offsets=offsets_of(sizes + (sizes > 0)),
        token_ids=np.insert(documents.token_ids, ends, np.uint32(separator)),
        word_starts=None if starts is None else np.insert(starts, ends, True),
    )


def _pieces(documents: _Documents, *, layout: Literal["truncate", "cut", "pack"], room: int) -> _Pieces:
    offsets = documents.offsets
    if layout == "pack":
        starts = np.arange(0, offsets[-1], room)
        stops = np.minimum(starts + room, offsets[-1])
        # A document without tokens begins where the next one does, and is not the one that is found.
        return _Pieces(starts=starts, stops=stops, documents=np.searchsorted(offsets, starts, side="right") - 1)
    sizes = np.diff(offsets)
    num_pieces = -(-sizes // room) if layout == "cut" else np.minimum(sizes, 1)
    owners = np.repeat(np.arange(len(sizes)), num_pieces)
    number = np.arange(len(owners)) - np.repeat(offsets_of(num_pieces)[:-1], num_pieces)
    starts = offsets[owners] + room * number
    return _Pieces(starts=starts, stops=np.minimum(starts + room, offsets[owners + 1]), documents=owners)


def _assemble(documents: _Documents, *, pieces: _Pieces, frame: _Frame, layout: Literal["truncate", "cut", "pack"]) -> Sequences:
    dead = sorted(documents.dead)
    owners = np.concatenate([pieces.documents, np.array(dead, dtype=np.int64)])
    order = np.argsort(owners, kind="stable")
    first_tokens = np.concatenate([pieces.starts - documents.offsets[pieces.documents], np.zeros(len(dead), dtype=np.int64)])
    keys = [documents.keys[owner] for owner in owners[order].tolist()]
    if layout != "truncate":
        keys = [f"{key}@{first}" for key, first in zip(keys, first_tokens[order].tolist(), strict=True)]
    present = order < len(pieces.documents)
    letters = tuple(
        documents.dead[index].model_copy(update={"key": keys[position], "position": position})
        for index, position in zip(dead, np.flatnonzero(~present).tolist(), strict=True)
    )
    labels = documents.labels[owners[order]]
    tokens, places = _framed(documents.token_ids, pieces=pieces, frame=frame)
    word_starts = None
    if documents.word_starts is not None:
        word_starts = np.ones(len(tokens.token_ids), dtype=np.bool_)
        word_starts[places.to] = documents.word_starts[places.of]
    return Sequences(
        keys=tuple(keys),
        labels=np.full_like(labels, NO_LABEL) if layout == "pack" else labels,
        present=present,
        tokens=tokens,
        maskable=~np.isin(tokens.token_ids, frame.unmaskable_ids),
        word_starts=word_starts,
        dead_letters=letters,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Places:
    """Where tokens of texts stand among those of all documents, and among those of all sequences."""

    of: npt.NDArray[np.int64]
    to: npt.NDArray[np.int64]


def _framed(token_ids: npt.NDArray[np.uint32], *, pieces: _Pieces, frame: _Frame) -> tuple[TokenRows, _Places]:
    sizes = pieces.stops - pieces.starts
    num_before, num_behind = len(frame.prefix), len(frame.suffix)
    inner = offsets_of(sizes)
    offsets = offsets_of(sizes + num_before + num_behind)
    number = np.arange(inner[-1])
    places = _Places(
        of=number + np.repeat(pieces.starts - inner[:-1], sizes),
        to=number + np.repeat(offsets[:-1] + num_before - inner[:-1], sizes),
    )
    framed = np.empty(offsets[-1], dtype=np.uint32)
    framed[places.to] = token_ids[places.of]
    framed[offsets[:-1, None] + np.arange(num_before)] = frame.prefix
    framed[offsets[1:, None] - num_behind + np.arange(num_behind)] = frame.suffix
    return TokenRows(offsets=offsets, token_ids=framed), places
