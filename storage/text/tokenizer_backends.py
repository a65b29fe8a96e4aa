"""Tokenizers of transformers and tokenizers behind one interface, and the fingerprint of each."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.errors import TeacherError
from storage.hashing import fingerprint
from storage.text.tokenizer import EncodedTexts, TextTokenizer, TokenizerFacts

_PROBES = ("a", "The 1st word, and 2 more.", "to be or not to be")
_WORD_MARKS = ("▁", "Ġ")
_NO_LIMIT = 10**9
_ROLES = ("mask", "pad", "sep", "eos")
_SHAPES_IDS = frozenset({"added_tokens", "normalizer", "pre_tokenizer", "model"})
"""Entries of tokenizer.json that ids depend on. The frame stands for the post-processor; the decoder makes texts, not ids."""
_NAMES = {
    "mask": ("[MASK]", "<mask>"),
    "pad": ("[PAD]", "<pad>"),
    "sep": ("[SEP]", "</s>"),
    "eos": ("<|endoftext|>", "</s>", "<eos>"),
}
_NOT_IDENTITY = frozenset(
    {
        "auto_map",
        "backend",
        "chat_template",
        "clean_up_tokenization_spaces",
        "is_local",
        "local_files_only",
        "model_max_length",
        "name_or_path",
        "padding_side",
        "processor_class",
        "tokenizer_class",
        "truncation_side",
    }
)
"""Settings of slow tokenizers that say where they came from, or what happens after ids are made."""


def wrap_tokenizer(tokenizer: Any, *, name: str) -> TextTokenizer:
    """Return a tokenizer behind the common interface.

    Args:
        tokenizer: `transformers.PreTrainedTokenizerBase` or `tokenizers.Tokenizer`.
        name: for messages.

    Raises:
        TeacherError: it is neither, draws at random (BPE dropout), or frames sequences by special tokens that depend on the text.
    """
    # By what they can do, not by type: neither library is imported here.
    if hasattr(tokenizer, "encode_batch_fast"):
        return _FastTokenizer(
            tokenizer,
            name=name,
            roles={role: _first_id(tokenizer, names=names) for role, names in _NAMES.items()},
            special_ids=(),
            encode=None,
            max_length=None,
        )
    if not hasattr(tokenizer, "all_special_ids"):
        raise TeacherError(
            f"tokenizer {name} is a {type(tokenizer).__name__}; give a tokenizer of transformers (PreTrainedTokenizerBase) or of "
            "tokenizers (Tokenizer)"
        )
    roles: dict[str, int | None] = {role: getattr(tokenizer, f"{role}_token_id", None) for role in _ROLES}
    length = tokenizer.model_max_length
    max_length = int(length) if isinstance(length, int) and length < _NO_LIMIT else None

    def encode(text: str, special: bool) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
        return ids

    special_ids = tuple(sorted(set(tokenizer.all_special_ids)))
    if tokenizer.is_fast:
        return _FastTokenizer(
            tokenizer.backend_tokenizer, name=name, roles=roles, special_ids=special_ids, encode=encode, max_length=max_length
        )
    return _SlowTokenizer(tokenizer, name=name, roles=roles, special_ids=special_ids, encode=encode, max_length=max_length)


class _FastTokenizer:
    """A tokenizer of the tokenizers library, in a copy of its own without truncation or padding."""

    def __init__(
        self,
        backend: Any,
        *,
        name: str,
        roles: Mapping[str, int | None],
        special_ids: tuple[int, ...],
        encode: Callable[[str, bool], list[int]] | None,
        max_length: int | None,
    ) -> None:
        """Take a tokenizer.

        Args:
            encode: gives the ids of a text, with or without its frame; None: the backend does.
        """
        self._name = name
        self._backend = type(backend).from_str(backend.to_str())
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = backend.encode_special_tokens
        written = json.loads(self._backend.to_str())
        if written["model"].get("dropout"):
            raise TeacherError(
                f"tokenizer {name} drops merges at random (dropout {written['model']['dropout']}), so a text has no ids of its "
                "own; set dropout to null in tokenizer.json"
            )
        added = self._backend.get_added_tokens_decoder()
        special = tuple(sorted({*special_ids, *(index for index, token in added.items() if token.special)}))
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        if not set(vocabulary.values()) - set(special):
            raise TeacherError(
                f"tokenizer {name} has {len(special)} special tokens and no others, as a folder without a tokenizer gives; name "
                "the folder or hub id that holds one"
            )
        prefix, suffix = _frame(encode or self._ids, bare=lambda text: self._ids(text, False), name=name)
        identity = {
            "kind": "fast",
            "tokenizer": {key: _canonical(value) for key, value in written.items() if key in _SHAPES_IDS},
            "encodes_special_tokens": self._backend.encode_special_tokens,
            "special_ids": special,
            "separator_id": _separator(roles),
            "frame": [prefix, suffix],
        }
        # Some tokenizers cut no words before they merge, but mark where each begins.
        self._marks = None if self._cuts_words() else _word_marks(vocabulary)
        self._facts = TokenizerFacts(
            sha256=fingerprint(identity),
            vocabulary_size=max(vocabulary.values()) + 1,
            special_ids=special,
            mask_id=roles.get("mask"),
            pad_id=roles.get("pad"),
            separator_id=_separator(roles),
            prefix=prefix,
            suffix=suffix,
            knows_words=self._marks is None or bool(self._marks.any()),
            max_length=max_length,
        )

    @property
    def facts(self) -> TokenizerFacts:
        return self._facts

    def _ids(self, text: str, special: bool) -> list[int]:
        ids: list[int] = self._backend.encode(text, add_special_tokens=special).ids
        return ids

    def _cuts_words(self) -> bool:
        words = {word for word in self._backend.encode(_PROBES[2], add_special_tokens=False).word_ids if word is not None}
        return len(words) > 1

    def encode(self, texts: list[str], *, words: bool = False) -> EncodedTexts:
        if words and not self._facts.knows_words:
            raise _no_words(self._name)
        needs_encodings = words and self._marks is None
        encode = self._backend.encode_batch if needs_encodings else self._backend.encode_batch_fast
        encodings = encode(texts, add_special_tokens=False)
        counts = np.fromiter(map(len, encodings), dtype=np.int64, count=len(encodings))
        num_tokens = int(counts.sum())
        token_ids = np.fromiter(chain.from_iterable(item.ids for item in encodings), dtype=np.uint32, count=num_tokens)
        starts = None
        if words and self._marks is not None:
            starts = self._marks[token_ids]
        elif words:
            found = [np.array(item.word_ids, dtype=np.float64) for item in encodings if len(item)]
            starts = np.ones(num_tokens, dtype=np.bool_)
            if found:
                # A token outside all words (None, so NaN) differs from every other and is a word of its own.
                number = np.concatenate(found)
                starts[1:] = number[1:] != number[:-1]
        if starts is not None:
            firsts = (np.cumsum(counts) - counts)[counts > 0]
            starts[firsts] = True
        return EncodedTexts(counts=counts, token_ids=token_ids, word_starts=starts)


class _SlowTokenizer:
    """A tokenizer of transformers that is written in Python."""

    def __init__(
        self,
        tokenizer: Any,
        *,
        name: str,
        roles: Mapping[str, int | None],
        special_ids: tuple[int, ...],
        encode: Callable[[str, bool], list[int]],
        max_length: int | None,
    ) -> None:
        self._name = name
        self._encode = encode
        vocabulary: dict[str, int] = tokenizer.get_vocab()
        prefix, suffix = _frame(encode, bare=lambda text: encode(text, False), name=name)
        identity = {
            "kind": "slow",
            "class": type(tokenizer).__name__,
            "vocabulary": sorted(vocabulary.items()),
            "files": dict(_vocabulary_files(tokenizer)),
            "settings": dict(_settings(tokenizer)),
            "special_ids": special_ids,
            "separator_id": _separator(roles),
            "frame": [prefix, suffix],
        }
        self._facts = TokenizerFacts(
            sha256=fingerprint(identity),
            vocabulary_size=max(max(vocabulary.values()) + 1, len(tokenizer)),
            special_ids=special_ids,
            mask_id=roles.get("mask"),
            pad_id=roles.get("pad"),
            separator_id=_separator(roles),
            prefix=prefix,
            suffix=suffix,
            knows_words=False,
            max_length=max_length,
        )

    @property
    def facts(self) -> TokenizerFacts:
        return self._facts

    def encode(self, texts: list[str], *, words: bool = False) -> EncodedTexts:
        if words:
            raise _no_words(self._name)
        found = [np.asarray(self._encode(text, False), dtype=np.uint32) for text in texts]
        return EncodedTexts(
            counts=np.array([len(ids) for ids in found], dtype=np.int64),
            token_ids=np.concatenate([np.empty(0, dtype=np.uint32), *found]),
            word_starts=None,
        )


def _no_words(name: str) -> TeacherError:
    return TeacherError(
        f"tokenizer {name} does not tell where words begin, so whole words cannot be masked; set views.whole_words: false, or "
        "use a fast tokenizer that cuts texts into words"
    )


def _frame(
    encode: Callable[[str, bool], list[int]], *, bare: Callable[[str], list[int]], name: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the special tokens before and behind a single sequence, proven to be the same for several texts."""
    frames: set[tuple[tuple[int, ...], tuple[int, ...]]] | None = None
    for text in _PROBES:
        whole, inner = encode(text, True), bare(text)
        if not inner:
            continue
        starts = [start for start in range(len(whole) - len(inner) + 1) if whole[start : start + len(inner)] == inner]
        found = {(tuple(whole[:start]), tuple(whole[start + len(inner) :])) for start in starts}
        frames = found if frames is None else frames & found
    if not frames:
        reason = "encodes plain English to nothing" if frames is None else "frames a sequence by tokens that depend on the text"
        raise TeacherError(f"tokenizer {name} {reason}, so sequences cannot be cut from its ids; use another tokenizer")
    return min(frames)


def _first_id(tokenizer: Any, *, names: tuple[str, ...]) -> int | None:
    return next((index for name in names if (index := tokenizer.token_to_id(name)) is not None), None)


def _separator(roles: Mapping[str, int | None]) -> int | None:
    end = roles.get("eos")
    return end if end is not None else roles.get("sep")


def _word_marks(vocabulary: Mapping[str, int]) -> npt.NDArray[np.bool_]:
    marks = np.zeros(max(vocabulary.values()) + 1, dtype=np.bool_)
    marks[[index for token, index in vocabulary.items() if token.startswith(_WORD_MARKS)]] = True
    return marks


def _canonical(value: Any) -> Any:
    """Return JSON data without what is null or false, and merges as pairs: what library versions write differently."""
    if isinstance(value, dict):
        found = {key: _canonical(item) for key, item in value.items() if item is not None and item is not False}
        # Of BERT's normalizer null means what `lowercase` says.
        if value.get("strip_accents") is False and value.get("lowercase"):
            found["strip_accents"] = False
        if isinstance(found.get("merges"), list):
            found["merges"] = [merge.split(" ") if isinstance(merge, str) else merge for merge in found["merges"]]
        return found
    return [_canonical(item) for item in value] if isinstance(value, list) else value


def _vocabulary_files(tokenizer: Any) -> Iterator[tuple[str, str]]:
    with tempfile.TemporaryDirectory(prefix="decant-tokenizer-") as folder:
        tokenizer.save_vocabulary(folder)
        for file in sorted(Path(folder).iterdir()):
            yield file.name, hashlib.sha256(file.read_bytes()).hexdigest()


def _settings(tokenizer: Any) -> Iterator[tuple[str, str | int | bool]]:
    for key, value in sorted(tokenizer.init_kwargs.items()):
        # Where nothing is said of accents, lower case takes them off.
        says_nothing = value is False and not (key == "strip_accents" and tokenizer.init_kwargs.get("do_lower_case", True))
        if key in _NOT_IDENTITY or key.endswith(("_file", "_token")) or says_nothing:
            continue
        if isinstance(value, str | int | bool):
            yield key, value
