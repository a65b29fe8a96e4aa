"""Documents that are records of files: plain text by lines, JSON Lines, TSV and CSV."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from storage.config.source import DelimitedConfig, JsonlConfig, TextConfig
from storage.errors import DuplicateKeyError, SourceError
from storage.sources import compression
from storage.sources.base import Sample, SourceUnit
from storage.sources.checks import key_problem, load_classes
from storage.sources.compression import is_compressed, read_chunks, without_suffix
from storage.sources.document_reader import DocumentReader
from storage.sources.document_records import (
    Columns,
    DelimitedParser,
    Document,
    JsonParser,
    LineParser,
    RecordParser,
    column_names,
)
from storage.sources.files import LISTING_THREADS, StoredFile, expand_files, unit_names, unit_token
from storage.sources.records import Record, RecordRun, RecordStyle, find_runs, iter_records

_ENDINGS = {
    "text": (".txt", ".text"),
    "jsonl": (".jsonl", ".ndjson", ".json"),
    "delimited": (".tsv", ".csv", ".tab"),
}
DocumentsConfig = TextConfig | JsonlConfig | DelimitedConfig


def file_endings(kind: str) -> tuple[str, ...]:
    """Return the endings of files that a folder's documents are in, compressed ones too."""
    return tuple(ending + suffix for ending in _ENDINGS[kind] for suffix in ("", *compression.SUFFIXES))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Layout:
    """What listing finds out about one file.

    Attributes:
        columns: of a delimited file.
        runs: of a file that is not compressed; a compressed one is one unit, and is not read before its turn.
    """

    columns: Columns | None
    runs: tuple[RecordRun, ...]


class DocumentSource:
    """Records of files, one document each.

    The key is `<name>:<line>` (the file's name below the source's path without the ending of its compression, and the record's
    first line, counted from 1) or what the key field says. A record that says no usable key has its place as key, and an error.

    A file that is not compressed is scanned for line ends when units are listed, so that a unit is a byte range of `unit_size`
    documents and reading it reads nothing else. A compressed file is one unit.
    """

    def __init__(self, config: DocumentsConfig) -> None:
        self._config = config
        self._classes = load_classes(config.classes)
        self._layouts: dict[tuple[str, str], _Layout] = {}
        self._has_header = isinstance(config, DelimitedConfig) and config.columns is None
        self._style = RecordStyle(
            quoted_by=config.delimiter.encode() if isinstance(config, DelimitedConfig) and config.quoting == "standard" else None,
            skip_blank=not isinstance(config, TextConfig) or config.skip_blank_lines,
        )

    def __reduce__(self) -> tuple[type[DocumentSource], tuple[DocumentsConfig]]:
        return DocumentSource, (self._config,)

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names that the config gives; files hold none."""
        return self._classes

    def units(self) -> list[SourceUnit]:
        """List the units: files in the order of the config's path, globs and folders sorted.

        Raises:
            SourceError: nothing is found, a file lacks a column, or a quote never closes.
            DuplicateKeyError: two files would give the same keys.
        """
        files = expand_files(self._config.path, suffixes=file_endings(self._config.kind))
        if self._config_key is None:
            refuse_equal_names(files)
        with ThreadPoolExecutor(LISTING_THREADS) as pool:
            layouts = list(pool.map(self._lay_out, files))
        units: list[SourceUnit] = []
        for file, name, layout in zip(files, unit_names(files), layouts, strict=True):
            locator: dict[str, Any] = {"url": file.url, "name": without_suffix(file.name)}
            if layout.columns is not None:
                locator["columns"] = asdict(layout.columns)
            if is_compressed(file.url):
                units.append(self._unit(name, locator=locator, file=file))
                continue
            for run in layout.runs:
                place = {"bytes": [run.start, run.end], "line": run.line, "num_documents": run.num_records}
                last = run.first_record + run.num_records
                units.append(self._unit(f"{name}:{run.first_record:05d}-{last:05d}", locator=locator | place, file=file))
        if not units:
            raise SourceError(f"{files[0].url} and {len(files) - 1} more files hold no document; check source.path")
        return units

    @property
    def _config_key(self) -> str | None:
        match self._config:
            case JsonlConfig():
                return self._config.key_field
            case DelimitedConfig():
                return self._config.key_column
            case _:
                return None

    def _unit(self, name: str, *, locator: dict[str, Any], file: StoredFile) -> SourceUnit:
        read_as = self._config.model_dump(mode="json", exclude={"path", "unit_size"})
        # Names in a file count as those that stand in the config: another order gives other labels.
        read_as["classes"] = None if self._classes is None else list(self._classes)
        identity = [read_as, {key: value for key, value in locator.items() if key != "url"}]
        return SourceUnit(name=name, locator=locator, stat_token=unit_token(identity, tokens=[file.token]))

    def _lay_out(self, file: StoredFile) -> _Layout:
        known = self._layouts.get((file.url, file.token)) if file.token else None
        if known is not None:
            return known
        start, line, columns = 0, 1, None
        if isinstance(self._config, DelimitedConfig):
            names: Sequence[str] | None = self._config.columns
            if names is None:
                header = self._header(file.url)
                start, line = header.start + header.size_bytes + 1, header.line + (header.data or b"").count(b"\n") + 1
                names = column_names(header.data, config=self._config, url=file.url)
            columns = Columns.find(names, config=self._config, url=file.url)
        runs: list[RecordRun] = []
        if not is_compressed(file.url):
            chunks = read_chunks(file.url, start=start)
            size = self._config.unit_size
            runs = find_runs(chunks, style=self._style, run_records=size, url=file.url, start=start, line=line)
        layout = _Layout(columns=columns, runs=tuple(runs))
        self._layouts[file.url, file.token] = layout
        return layout

    def _header(self, url: str) -> Record:
        header = next(self._records(read_chunks(url), url=url), None)
        if header is None:
            raise SourceError(
                f"{url} is empty, but its first record should name the columns; give source.columns, or leave it out"
            )
        return header

    def _parser(self, unit: SourceUnit) -> RecordParser:
        match self._config:
            case JsonlConfig():
                return JsonParser(self._config, classes=self._classes)
            case DelimitedConfig():
                columns = Columns(**unit.locator["columns"])
                return DelimitedParser(self._config, columns=columns, classes=self._classes)
            case _:
                return LineParser()

    def _records(self, chunks: Iterable[bytes], *, url: str, start: int = 0, line: int = 1) -> Iterator[Record]:
        limit = self._config.max_document_bytes
        return iter_records(chunks, style=self._style, max_record_bytes=limit, url=url, start=start, line=line)

    def read(self, unit: SourceUnit) -> Iterator[Sample]:
        """Yield a unit's documents in order, holding one of them and some read ahead.

        Raises:
            SourceError: the file has vanished, changed since it was listed, or is damaged.
        """
        parser = self._parser(unit)
        for position, record in enumerate(self._unit_records(unit, chunks=_chunks(unit))):
            document = self._document(record, parser=parser)
            yield Sample(
                position=position,
                key=_key(unit, record=record, document=document),
                label=document.label,
                data=document.data,
                error=document.error,
            )

    def open(self, unit: SourceUnit) -> DocumentReader:
        """Read a unit once for its keys, labels and places; then read single documents by their place.

        A compressed unit is decompressed to a temporary file, as nothing in it can be found otherwise.

        Raises:
            SourceError: as `read`.
        """
        reader = DocumentReader(url=unit.locator["url"], parser=self._parser(unit))
        chunks = reader.spooled(_chunks(unit)) if is_compressed(unit.locator["url"]) else _chunks(unit)
        try:
            for record in self._unit_records(unit, chunks=chunks):
                document = self._document(record, parser=reader.parser)
                key = _key(unit, record=record, document=document)
                reader.add(record, key=key, label=document.label, error=document.error)
        except BaseException:
            reader.close()
            raise
        return reader

    def _unit_records(self, unit: SourceUnit, *, chunks: Iterable[bytes]) -> Iterator[Record]:
        locator = unit.locator
        start, line = locator.get("bytes", [0])[0], locator.get("line", 1)
        records = self._records(chunks, url=locator["url"], start=start, line=line)
        if "bytes" not in locator and self._has_header:
            next(records, None)
        num_records = 0
        for record in records:
            num_records += 1
            yield record
        if locator.get("num_documents", num_records) != num_records:
            raise SourceError(
                f"{locator['url']} has changed since it was listed: bytes {start} to {locator['bytes'][1]} hold {num_records} "
                f"documents, not {locator['num_documents']}; leave sources alone while they are read, then start again"
            )

    def _document(self, record: Record, *, parser: RecordParser) -> Document:
        if record.data is not None:
            return parser.parse(record.data)
        limit = self._config.max_document_bytes
        return Document(data=None, error=f"it is {record.size_bytes} bytes long, more than source.max_document_bytes = {limit}")


def _chunks(unit: SourceUnit) -> Iterator[bytes]:
    start, end = unit.locator.get("bytes", [0, None])
    return read_chunks(unit.locator["url"], start=start, end=end)


def _key(unit: SourceUnit, *, record: Record, document: Document) -> str:
    return document.key if document.key is not None else f"{unit.locator['name']}:{record.line}"


def refuse_equal_names(files: Sequence[StoredFile]) -> None:
    """Refuse files whose documents would share keys.

    Raises:
        DuplicateKeyError: two files have the same name below the source's path, the endings of compression left out.
        SourceError: a name cannot be part of a key.
    """
    urls: dict[str, str] = {}
    for file in files:
        name = without_suffix(file.name)
        if (problem := key_problem(name)) is not None:
            raise SourceError(f"the file name {file.name!r} cannot be a key: {problem}; rename the file")
        if name in urls:
            raise DuplicateKeyError(
                f"{urls[name]} and {file.url} have the same name {name!r}, so their documents would share keys; give the folder "
                "that holds both as source.path, rename one, or name a field with unique keys where documents have one"
            )
        urls[name] = file.url
