"""Parquet files with embedded pictures or texts, as Hugging Face datasets write them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from storage.config.source import ParquetConfig
from storage.errors import DuplicateKeyError, SourceError
from storage.sources.base import NO_LABEL, Sample, SourceUnit
from storage.sources.checks import MAX_LABEL, key_problem, label_problem, load_classes
from storage.sources.files import LISTING_THREADS, StoredFile, expand_files, unit_names, unit_token
from storage.sources.parquet_file import (
    NO_BYTES,
    check_columns,
    class_names,
    data_column,
    decode_row_group,
    open_parquet,
    stored_bytes,
    too_long,
)
from storage.sources.parquet_reader import ParquetReader

SUFFIXES = (".parquet", ".pq")


class ParquetSource:
    """Rows of Parquet files; a unit is a run of whole row groups of one file, with at least `unit_size` rows but for the last.

    The key is the key column's value or `<file stem>-<row number, 8 digits>`. Class names come from the config or from the
    ClassLabel feature in the file's `huggingface` metadata.
    """

    def __init__(self, config: ParquetConfig) -> None:
        self._config = config
        self._column = data_column(config)
        # Pictures have a limit of their own, in pixels.
        self._max_bytes = config.max_document_bytes if config.of_text else sys.maxsize
        self._classes = load_classes(config.classes)
        self._listed = self._classes is not None or config.label_column is None

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names in label order, if the config or the files name them. Reads the footers if nothing else knows them."""
        if not self._listed:
            self.units()
        return self._classes

    def units(self) -> list[SourceUnit]:
        """List row groups from the files' footers, files in the order of the config's path, globs and folders sorted.

        Raises:
            SourceError: nothing matches, a file is no Parquet or lacks a column, or class names differ between files or from the
                config.
            DuplicateKeyError: two files would give the same keys.
        """
        files = expand_files(self._config.path, suffixes=SUFFIXES)
        stems = [name.rsplit(".", 1)[0] for name in (file.url.rsplit("/", 1)[-1] for file in files)]
        if self._config.key_column is None:
            _refuse_equal_stems(files, stems)
        footers = self._read_footers(files)
        self._agree_on_classes(files, [names for _, names in footers])
        units: list[SourceUnit] = []
        for file, stem, name, (group_rows, _) in zip(files, stems, unit_names(files), footers, strict=True):
            for groups, first_row in _unit_ranges(group_rows, unit_size=self._config.unit_size):
                num_rows = sum(group_rows[groups.start : groups.stop])
                locator = {
                    "url": file.url,
                    "stem": stem,
                    "row_groups": [groups.start, groups.stop],
                    "first_row": first_row,
                    "num_rows": num_rows,
                    "num_classes": len(self._classes) if self._classes is not None else None,
                }
                columns = [self._column, self._config.label_column, self._config.key_column]
                identity = [stem, locator["row_groups"], num_rows, columns, locator["num_classes"]]
                if self._config.of_text:
                    identity.append(self._max_bytes)
                units.append(
                    SourceUnit(
                        name=f"{name}:{first_row:05d}-{first_row + num_rows:05d}",
                        locator=locator,
                        stat_token=unit_token(identity, tokens=[file.token]),
                    )
                )
        return units

    def _read_footers(self, files: Sequence[StoredFile]) -> list[tuple[list[int], tuple[str, ...] | None]]:
        if all(file.url.startswith("file:") for file in files):
            # On a disk threads gain little, and each keeps memory of its own for what it has read.
            return [self._read_footer(file) for file in files]
        with ThreadPoolExecutor(LISTING_THREADS) as pool:
            return list(pool.map(self._read_footer, files))

    def _read_footer(self, file: StoredFile) -> tuple[list[int], tuple[str, ...] | None]:
        with open_parquet(file.url) as parquet:
            schema, metadata = parquet.schema_arrow, parquet.metadata
            check_columns(schema, url=file.url, config=self._config)
            names = class_names(schema, url=file.url, column=self._config.label_column)
            return [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)], names

    def _agree_on_classes(self, files: Sequence[StoredFile], found: Sequence[tuple[str, ...] | None]) -> None:
        known = "the config" if self._config.classes is not None else ""
        classes = self._classes if known else None
        for file, names in zip(files, found, strict=True):
            if names is None:
                continue
            if classes is None:
                classes, known = names, file.url
            elif classes != names:
                raise SourceError(
                    f"class names differ, so labels would mean different things: {known} has {_differing(classes, names)}, "
                    f"{file.url} has {_differing(names, classes)}; correct source.classes or leave out the file"
                )
        self._classes = classes
        self._listed = True

    def read(self, unit: SourceUnit) -> Iterator[Sample]:
        """Yield a unit's rows in order, holding one row group as stored and a few decoded rows.

        Raises:
            SourceError: the file has vanished, changed since it was listed, or does not decode.
        """
        position = 0
        with open_parquet(unit.locator["url"]) as parquet:
            _refuse_changed(parquet, unit=unit)
            for group in range(*unit.locator["row_groups"]):
                for batch in self._batches(parquet, unit=unit, group=group, with_data=True):
                    values = stored_bytes(batch, column=self._column)
                    keys = self._keys(batch, unit=unit, position=position)
                    labels, problems = self._labels(batch, unit=unit)
                    for row, key in enumerate(keys):
                        data: bytes | None = values[row].as_py()
                        error = problems.get(row) or (NO_BYTES if data is None else None)
                        if data is not None and len(data) > self._max_bytes:
                            error = error or too_long(data, max_bytes=self._max_bytes)
                        yield Sample(
                            position=position,
                            key=key,
                            label=int(labels[row]),
                            data=data if error is None else None,
                            error=error,
                        )
                        position += 1

    def open(self, unit: SourceUnit) -> ParquetReader:
        """Read a unit's keys and labels, then decode row groups as samples are asked for.

        Raises:
            SourceError: as `read`.
        """
        keys: list[str] = []
        labels: list[npt.NDArray[np.int64]] = [np.empty(0, dtype=np.int64)]
        problems: dict[int, str] = {}
        group_rows: list[int] = []
        with open_parquet(unit.locator["url"]) as parquet:
            _refuse_changed(parquet, unit=unit)
            for group in range(*unit.locator["row_groups"]):
                before = len(keys)
                for batch in self._batches(parquet, unit=unit, group=group, with_data=False):
                    batch_labels, batch_problems = self._labels(batch, unit=unit)
                    problems.update({len(keys) + row: problem for row, problem in batch_problems.items()})
                    keys += self._keys(batch, unit=unit, position=len(keys))
                    labels.append(batch_labels)
                if self._config.label_column is None and self._config.key_column is None:
                    num_rows = parquet.metadata.row_group(group).num_rows
                    keys += _numbered(unit, position=len(keys), num_rows=num_rows)
                    labels.append(np.full(num_rows, NO_LABEL, dtype=np.int64))
                group_rows.append(len(keys) - before)
        return ParquetReader(
            unit=unit,
            column=self._column,
            max_bytes=self._max_bytes,
            keys=keys,
            labels=np.concatenate(labels),
            problems=problems,
            group_rows=group_rows,
        )

    def _batches(self, parquet: pq.ParquetFile, *, unit: SourceUnit, group: int, with_data: bool) -> Iterator[pa.RecordBatch]:
        columns = [self._column] if with_data else []
        columns += [column for column in (self._config.label_column, self._config.key_column) if column is not None]
        if columns:
            yield from decode_row_group(parquet, url=unit.locator["url"], group=group, columns=columns)

    def _labels(self, batch: pa.RecordBatch, *, unit: SourceUnit) -> tuple[npt.NDArray[np.int64], dict[int, str]]:
        if self._config.label_column is None:
            return np.full(batch.num_rows, NO_LABEL, dtype=np.int64), {}
        column = batch.column(self._config.label_column)
        try:
            stored = column.cast(pa.int64()).fill_null(NO_LABEL).to_numpy(zero_copy_only=False)
        except pa.ArrowInvalid as error:
            url = unit.locator["url"]
            raise SourceError(f"{url}: label column {self._config.label_column!r} holds no labels: {error}") from error
        missing = column.is_null().to_numpy(zero_copy_only=False)
        num_classes: int | None = unit.locator["num_classes"]
        last = num_classes - 1 if num_classes is not None else MAX_LABEL
        problems: dict[int, str] = {}
        for row in np.flatnonzero(missing | (stored < NO_LABEL) | (stored > last)).tolist():
            problem = label_problem(int(stored[row]), num_classes=num_classes)
            problems[row] = problem or "there is no label: the label column is null"
        labels = stored.astype(np.int64)
        labels[list(problems)] = NO_LABEL
        return labels, problems

    def _keys(self, batch: pa.RecordBatch, *, unit: SourceUnit, position: int) -> list[str]:
        if self._config.key_column is None:
            return _numbered(unit, position=position, num_rows=batch.num_rows)
        keys = [str(value) if value is not None else "" for value in batch.column(self._config.key_column).to_pylist()]
        for row, key in enumerate(keys):
            if (problem := key_problem(key)) is not None:
                raise SourceError(
                    f"{unit.locator['url']}: row {unit.locator['first_row'] + position + row} has {key!r} in key column "
                    f"{self._config.key_column!r}, which cannot be a key: {problem}; name another source.key_column or none"
                )
        return keys


def _unit_ranges(group_rows: Sequence[int], *, unit_size: int) -> Iterator[tuple[range, int]]:
    """Yield runs of row groups of at least `unit_size` rows, the last with what is left, and the row each starts at."""
    start, first_row, num_rows = 0, 0, 0
    for group, rows in enumerate(group_rows):
        num_rows += rows
        if num_rows >= unit_size or (group == len(group_rows) - 1 and num_rows):
            yield range(start, group + 1), first_row
            start, first_row, num_rows = group + 1, first_row + num_rows, 0


def _numbered(unit: SourceUnit, *, position: int, num_rows: int) -> list[str]:
    first = unit.locator["first_row"] + position
    return [f"{unit.locator['stem']}-{row:08d}" for row in range(first, first + num_rows)]


def _refuse_changed(parquet: pq.ParquetFile, *, unit: SourceUnit) -> None:
    start, stop = unit.locator["row_groups"]
    metadata = parquet.metadata
    found = sum(metadata.row_group(group).num_rows for group in range(start, min(stop, metadata.num_row_groups)))
    if stop > metadata.num_row_groups or found != unit.locator["num_rows"]:
        raise SourceError(
            f"{unit.locator['url']} has changed since it was listed: row groups {start} to {stop} no longer hold "
            f"{unit.locator['num_rows']} rows; leave sources alone while they are read, then start again"
        )


def _refuse_equal_stems(files: Sequence[StoredFile], stems: Sequence[str]) -> None:
    urls: dict[str, str] = {}
    for file, stem in zip(files, stems, strict=True):
        if stem in urls:
            raise DuplicateKeyError(
                f"{urls[stem]} and {file.url} have the same stem {stem!r}, so their rows would share keys; rename one or name a "
                "column with unique keys in source.key_column"
            )
        urls[stem] = file.url


def _differing(classes: Sequence[str], others: Sequence[str]) -> str:
    label = next((label for label, (one, other) in enumerate(zip(classes, others, strict=False)) if one != other), None)
    return f"{classes[label]!r} for label {label}" if label is not None else f"{len(classes)} classes"
