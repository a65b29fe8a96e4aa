"""What one record says: the text, its label and its key; or why it says none."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from storage.config.source import DelimitedConfig, JsonlConfig
from storage.errors import SampleError, SourceError
from storage.naming import did_you_mean
from storage.sources.base import NO_LABEL
from storage.sources.checks import key_problem, label_problem

_NUMBER = re.compile(r"[+-]?[0-9]{1,18}")
_QUOTED = re.compile(rb'"((?:[^"]|"")*+)"')
_SHOWN = 40


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """What a record says.

    Attributes:
        data: the text as UTF-8 bytes, which nobody has checked; None with an error.
        label: hard label, or NO_LABEL.
        key: the key that the record gives; None where its place is the key.
        error: why there is no text.
    """

    data: bytes | None
    label: int = NO_LABEL
    key: str | None = None
    error: str | None = None


class RecordParser(Protocol):
    """Reads one record."""

    def parse(self, data: bytes) -> Document:
        """Return what a record says; a bad one comes with an error, never as an exception."""


class LineParser:
    """A record is the text."""

    def parse(self, data: bytes) -> Document:
        """Return the record as it is."""
        return Document(data=data)


class JsonParser:
    """A record is a JSON object; one of its fields is the text."""

    def __init__(self, config: JsonlConfig, *, classes: Sequence[str] | None) -> None:
        self._config = config
        self._labels = _Labels(classes)

    def parse(self, data: bytes) -> Document:
        """Return the text field of an object."""
        try:
            value = json.loads(data)
        except (ValueError, RecursionError) as error:
            return Document(data=None, error=f"the line is no JSON: {error}")
        if not isinstance(value, dict):
            return Document(data=None, error=f"the line is no JSON object but {_shown(value)}")
        key, problem = self._key(value)
        label, label_error = NO_LABEL, None
        if self._config.label_field is not None:
            label, label_error = self._labels.read(
                value.get(self._config.label_field), name=f"field {self._config.label_field!r}"
            )
        text = value.get(self._config.text_field)
        if not isinstance(text, str):
            found = "is missing" if self._config.text_field not in value else f"is {_shown(text)}, no string"
            near = did_you_mean(self._config.text_field, list(value)) if self._config.text_field not in value else ""
            problem = problem or f"field {self._config.text_field!r} {found}.{near}"
            return Document(data=None, label=label, key=key, error=problem)
        problem = problem or label_error
        try:
            return Document(data=text.encode() if problem is None else None, label=label, key=key, error=problem)
        except UnicodeEncodeError:
            return Document(
                data=None, label=label, key=key, error="the text holds half of a surrogate pair, which is no character"
            )

    def _key(self, value: dict[str, Any]) -> tuple[str | None, str | None]:
        name = self._config.key_field
        if name is None:
            return None, None
        found = value.get(name)
        if not isinstance(found, str | int) or isinstance(found, bool):
            return None, f"there is no key: field {name!r} is {_shown(found)}"
        return _checked_key(str(found), name=f"field {name!r}")


def split_fields(data: bytes, *, config: DelimitedConfig) -> list[bytes]:
    """Return the fields of a record.

    Raises:
        SampleError: it is not quoted as in CSV.
    """
    delimiter = config.delimiter.encode()
    if config.quoting == "none" or b'"' not in data:
        return data.split(delimiter)
    # Not the csv module: it wants text, where bytes may be no UTF-8, and by default refuses fields of more than 128 KiB.
    fields: list[bytes] = []
    start = 0
    while True:
        if data[start : start + 1] == b'"':
            match = _QUOTED.match(data, start)
            if match is None:
                raise SampleError(f"the record is not quoted as in CSV: field {len(fields) + 1} has no closing quote")
            field, end = match.group(1).replace(b'""', b'"'), match.end()
        else:
            end = data.find(delimiter, start)
            end = len(data) if end < 0 else end
            field = data[start:end]
        fields.append(field)
        if end == len(data):
            return fields
        if data[end : end + 1] != delimiter:
            raise SampleError(f"the record is not quoted as in CSV: text follows the closing quote of field {len(fields)}")
        start = end + 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """Where the fields of a delimited file are.

    Attributes:
        text: index of the text; label and key likewise, None where there is none.
        count: fields of each record.
    """

    text: int
    label: int | None
    key: int | None
    count: int

    @classmethod
    def find(cls, names: Sequence[str], *, config: DelimitedConfig, url: str) -> Columns:
        """Return where the columns of a config are.

        Raises:
            SourceError: one of them is not there, or its name stands twice.
        """

        def index(column: str, *, option: str) -> int:
            if names.count(column) != 1:
                how_many = "no column" if column not in names else "more than one column"
                where = "source.columns" if config.columns is not None else f"the header of {url}"
                raise SourceError(
                    f"{url}: {where} has {how_many} {column!r}, only {_shown(list(names))}; name the right one in "
                    f"source.{option}, or the columns of a file without a header in source.columns.{did_you_mean(column, names)}"
                )
            return names.index(column)

        return cls(
            text=index(config.text_column, option="text_column"),
            label=None if config.label_column is None else index(config.label_column, option="label_column"),
            key=None if config.key_column is None else index(config.key_column, option="key_column"),
            count=len(names),
        )


def column_names(header: bytes | None, *, config: DelimitedConfig, url: str) -> list[str]:
    """Return the columns that the first record of a file names.

    Raises:
        SourceError: it is too long, or not quoted as in CSV.
    """
    try:
        if header is None:
            raise SampleError("it is longer than source.max_document_bytes")
        return [name.decode(errors="replace").strip() for name in split_fields(header, config=config)]
    except SampleError as error:
        raise SourceError(f"{url}: its first record names no columns: {error}; give the names in source.columns") from error


class DelimitedParser:
    """A record is fields between delimiters."""

    def __init__(self, config: DelimitedConfig, *, columns: Columns, classes: Sequence[str] | None) -> None:
        self._config = config
        self._columns = columns
        self._labels = _Labels(classes)

    def parse(self, data: bytes) -> Document:
        """Return the text column of a record."""
        columns = self._columns
        try:
            fields = split_fields(data, config=self._config)
        except SampleError as error:
            return Document(data=None, error=str(error))
        if len(fields) != columns.count:
            return Document(data=None, error=f"the record has {len(fields)} fields in place of {columns.count}")
        key, problem, label = None, None, NO_LABEL
        if columns.key is not None:
            key, problem = _checked_key(
                fields[columns.key].decode(errors="surrogateescape"), name=f"column {self._config.key_column!r}"
            )
        if columns.label is not None:
            value = fields[columns.label].decode(errors="replace").strip()
            label, label_error = self._labels.read(value, name=f"column {self._config.label_column!r}")
            problem = problem or label_error
        return Document(data=fields[columns.text] if problem is None else None, label=label, key=key, error=problem)


class _Labels:
    """Labels as integers or as names of classes; a name wins, so that classes may be called 1 to 5."""

    def __init__(self, classes: Sequence[str] | None) -> None:
        self._by_name = {name: label for label, name in enumerate(classes or ())}
        self._num_classes = len(classes) if classes is not None else None

    def read(self, value: Any, *, name: str) -> tuple[int, str | None]:
        if isinstance(value, str) and value in self._by_name:
            return self._by_name[value], None
        if isinstance(value, str) and _NUMBER.fullmatch(value):
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            return NO_LABEL, f"{name} holds no label: {_shown(value)} is no integer{' or class name' if self._by_name else ''}"
        problem = label_problem(value, num_classes=self._num_classes)
        return (value, None) if problem is None else (NO_LABEL, problem)


def _checked_key(key: str, *, name: str) -> tuple[str | None, str | None]:
    problem = key_problem(key)
    return (key, None) if problem is None else (None, f"{name} holds {_shown(key)}, which cannot be a key: {problem}")


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
