"""WebDataset tars: members that share a name up to the first dot are one sample, a picture or a text."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from storage.config.source import WebDatasetConfig
from storage.errors import DuplicateKeyError, SampleError, SourceError
from storage.sources.base import NO_LABEL, Sample, SourceUnit
from storage.sources.checks import key_problem, label_problem, load_classes
from storage.sources.compression import content
from storage.sources.files import READ_BLOCK_BYTES, expand_files, open_store, reaching, unit_names, unit_token
from storage.sources.tar import TarMember, scan_tar

_KEY_AND_FIELD = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)
_META = re.compile(r"__[^/]*__($|/)")
_MAX_LABEL_BYTES = 64


@dataclass(kw_only=True, slots=True)
class _Group:
    """The members of one sample by field, and the bytes of those that were asked for."""

    key: str
    members: dict[str, TarMember] = field(default_factory=dict)
    data: dict[str, bytes] = field(default_factory=dict)


class WebDatasetSource:
    """Samples in WebDataset tars, one tar a unit.

    The key is WebDataset's: folder and base name up to the first dot. Members named `__*__`, hidden files, folders and names
    without a dot are not samples. Nothing is ever extracted, and member names are never used as paths.
    """

    def __init__(self, config: WebDatasetConfig) -> None:
        self._config = config
        self._classes = load_classes(config.classes)
        self._of_text = config.text_fields is not None
        fields = config.text_fields if config.text_fields is not None else config.image_fields
        self._data_fields = tuple(name.lower() for name in fields)
        self._max_bytes = config.max_document_bytes if self._of_text else sys.maxsize
        self._label_field = config.label_field.lower() if config.label_field is not None else None

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names that the config gives; tars hold none."""
        return self._classes

    def units(self) -> list[SourceUnit]:
        """List the tars: braces in the order written, globs and folders sorted.

        Raises:
            SourceError: nothing matches or the store cannot be reached.
        """
        files = expand_files(self._config.path, suffixes=(".tar",))
        identity: list[Any] = [self._data_fields, self._label_field, self._num_classes]
        if self._of_text:
            identity.append(self._max_bytes)
        return [
            SourceUnit(name=name, locator={"url": file.url}, stat_token=unit_token(identity, tokens=[file.token]))
            for name, file in zip(unit_names(files), files, strict=True)
        ]

    @property
    def _noun(self) -> str:
        return "text" if self._of_text else "picture"

    @property
    def _num_classes(self) -> int | None:
        return len(self._classes) if self._classes is not None else None

    def read(self, unit: SourceUnit) -> Iterator[Sample]:
        """Yield a tar's samples in order, reading it once from front to back.

        Raises:
            SourceError: the tar has vanished, is truncated or damaged, or no sample has the config's picture, text or label.
            DuplicateKeyError: two samples of the tar share a key.
        """
        url: str = unit.locator["url"]
        load = dict.fromkeys(self._data_fields, self._max_bytes)
        if self._label_field is not None:
            load[self._label_field] = sys.maxsize
        errors: list[str | None] = []
        fields: set[str] = set()
        with _opened(url) as (file, size_bytes):
            for position, group in enumerate(_groups(file, size_bytes=size_bytes, url=url, load=load)):
                label, data_field, error = self._interpret(group)
                errors.append(error)
                fields.update(group.members)
                data = None
                if data_field is not None and error is None:
                    data, error = self._content(group.data[data_field], name=data_field)
                yield Sample(position=position, key=group.key, label=label, data=data, error=error)
        self._refuse_misfit(url, errors=errors, fields=fields)

    def open(self, unit: SourceUnit) -> WebDatasetReader:
        """Scan a tar's headers and labels once, then read single samples by their place in it.

        Raises:
            SourceError: as `read`.
            DuplicateKeyError: as `read`.
        """
        url: str = unit.locator["url"]
        load = {self._label_field: sys.maxsize} if self._label_field is not None else {}
        keys: list[str] = []
        labels: list[int] = []
        spans: list[tuple[int, int]] = []
        names: list[str] = []
        errors: list[str | None] = []
        fields: set[str] = set()
        with _opened(url) as (file, size_bytes):
            for group in _groups(file, size_bytes=size_bytes, url=url, load=load):
                label, data_field, error = self._interpret(group)
                keys.append(group.key)
                labels.append(label)
                errors.append(error)
                fields.update(group.members)
                member = group.members[data_field] if data_field is not None else None
                spans.append((member.offset, member.size_bytes) if member is not None else (0, 0))
                names.append((data_field or "") if self._of_text else "")
        self._refuse_misfit(url, errors=errors, fields=fields)
        return WebDatasetReader(
            url=url, keys=keys, labels=labels, spans=spans, names=names, errors=errors, max_bytes=self._max_bytes
        )

    def _content(self, data: bytes, *, name: str) -> tuple[bytes | None, str | None]:
        try:
            return content(data, name=name if self._of_text else "", max_bytes=self._max_bytes), None
        except SampleError as error:
            return None, str(error)

    def _interpret(self, group: _Group) -> tuple[int, str | None, str | None]:
        """Return label, field of the picture or text, and what is wrong."""
        data_field = next((name for name in self._data_fields if name in group.members), None)
        label, problem = self._label(group)
        if data_field is None:
            fields = " or ".join(self._data_fields)
            return label, None, f"there is no {self._noun}: no member {fields}, only {_listed(group.members)}"
        member = group.members[data_field]
        if member.is_link:
            return label, data_field, f"member {member.name!r} is a link, and links are not followed"
        if member.size_bytes > self._max_bytes:
            problem = f"it is {member.size_bytes} bytes long, more than source.max_document_bytes = {self._max_bytes}"
        return label, data_field, problem

    def _label(self, group: _Group) -> tuple[int, str | None]:
        if self._label_field is None:
            return NO_LABEL, None
        data = group.data.get(self._label_field)
        if data is None:
            return NO_LABEL, f"there is no label: no member {self._label_field}, only {_listed(group.members)}"
        text = data.strip() if len(data) <= _MAX_LABEL_BYTES else b""
        if not re.fullmatch(rb"[+-]?[0-9]{1,18}", text):
            return NO_LABEL, f"member {self._label_field} is no ASCII number: {data[:32]!r}"
        problem = label_problem(int(text), num_classes=self._num_classes)
        return (int(text), None) if problem is None else (NO_LABEL, problem)

    def _refuse_misfit(self, url: str, *, errors: Sequence[str | None], fields: set[str]) -> None:
        if not errors:
            return
        if not fields & set(self._data_fields):
            raise SourceError(
                f"{url}: not one of its {len(errors)} samples has a {self._noun} ({', '.join(self._data_fields)}); they hold "
                f"{_listed(fields)}; name the {self._noun}'s extension in source.{'text' if self._of_text else 'image'}_fields"
            )
        if self._label_field is not None and self._label_field not in fields:
            raise SourceError(
                f"{url}: not one of its {len(errors)} samples has a label ({self._label_field}); they hold {_listed(fields)}; "
                "name the label's extension in source.label_field, or null for a source without labels"
            )


class WebDatasetReader:
    """Random access to one tar by member offsets; holds its keys, labels and offsets, and opens the tar for each read."""

    def __init__(
        self,
        *,
        url: str,
        keys: Sequence[str],
        labels: Sequence[int],
        spans: Sequence[tuple[int, int]],
        names: Sequence[str],
        errors: Sequence[str | None],
        max_bytes: int,
    ) -> None:
        self._url = url
        self._fs, self._path = open_store(url)
        self._keys = keys
        self._labels = np.asarray(labels, dtype=np.int64)
        self._spans = np.asarray(spans, dtype=np.int64).reshape(-1, 2)
        self._names = names
        self._max_bytes = max_bytes
        self._errors = {position: error for position, error in enumerate(errors) if error is not None}

    @property
    def keys(self) -> Sequence[str]:
        """Keys in position order."""
        return self._keys

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """Hard labels in position order, NO_LABEL where there is none."""
        return self._labels

    def read(self, position: int) -> bytes:
        """Return the bytes of a picture or text.

        Raises:
            SampleError: the sample has no picture or text, or no valid label.
            SourceError: the tar has vanished or become shorter.
        """
        if not 0 <= position < len(self._keys):
            raise IndexError(f"position {position} is not among the {len(self._keys)} samples of the unit")
        if position in self._errors:
            raise SampleError(f"{self._keys[position]}: {self._errors[position]}")
        offset, size_bytes = (int(value) for value in self._spans[position])
        if size_bytes == 0:
            return b""
        with reaching(self._url, action="read"):
            data: bytes = self._fs.cat_file(self._path, start=offset, end=offset + size_bytes)
        if len(data) != size_bytes:
            raise SourceError(f"{self._url} has become shorter since it was opened; leave sources alone while they are read")
        try:
            return content(data, name=self._names[position], max_bytes=self._max_bytes)
        except SampleError as error:
            raise SampleError(f"{self._keys[position]}: {error}") from error

    def close(self) -> None:
        """Release files; none stay open between reads."""


def _listed(fields: set[str] | dict[str, TarMember]) -> str:
    return ", ".join(sorted(fields)[:12])


@contextmanager
def _opened(url: str) -> Iterator[tuple[BinaryIO, int]]:
    fs, path = open_store(url)
    with reaching(url, action="open"):
        file = fs.open(path, "rb", block_size=READ_BLOCK_BYTES)
    with file:
        with reaching(url, action="read"):
            size_bytes = file.seek(0, 2)
            file.seek(0)
        yield file, size_bytes


def _groups(file: BinaryIO, *, size_bytes: int, url: str, load: Mapping[str, int]) -> Iterator[_Group]:
    """Yield samples in order, with the bytes of the fields in `load`, where they are no more than it says."""
    positions: dict[str, int] = {}
    group: _Group | None = None
    num_members = 0
    members = scan_tar(file, size_bytes=size_bytes, url=url)
    while True:
        with reaching(url, action="read"):
            member = next(members, None)
        if member is None:
            break
        num_members += 1
        match = _KEY_AND_FIELD.fullmatch(member.name)
        if match is None or _META.match(member.name) or member.name.rsplit("/", 1)[-1].startswith("."):
            continue
        key, name = match.group(1), match.group(2).lower()
        if group is None or key != group.key:
            if group is not None:
                yield group
            _check_key(key, url=url, positions=positions)
            positions[key] = len(positions)
            group = _Group(key=key)
        if name in group.members:
            raise DuplicateKeyError(
                f"{url}: sample {key!r} has member {name!r} twice, at bytes {group.members[name].offset} and {member.offset}; "
                "only one can be meant, so write the tar again without one of them"
            )
        group.members[name] = member
        if member.size_bytes <= load.get(name, -1) and not member.is_link:
            with reaching(url, action="read"):
                file.seek(member.offset)
                group.data[name] = file.read(member.size_bytes)
            if len(group.data[name]) != member.size_bytes:
                raise SourceError(f"{url} is truncated inside member {member.name!r}; copy or write it again")
    if group is not None:
        yield group
    elif num_members:
        raise SourceError(
            f"{url} holds {num_members} files, none named as WebDataset names them (key.extension); write the tar again"
        )


def _check_key(key: str, *, url: str, positions: dict[str, int]) -> None:
    if (problem := key_problem(key)) is not None:
        raise SourceError(f"{url}: {key!r} cannot be a key: {problem}; rename the member")
    if key in positions:
        raise DuplicateKeyError(
            f"{url}: key {key!r} stands for sample {positions[key]} and again for sample {len(positions)}; labels could not tell "
            "them apart; members of one sample must be neighbours, so sort or rename them"
        )
