"""Sources: where samples are read from, and the index of what they hold."""

from __future__ import annotations

from typing import assert_never

from storage.config.source import (
    DelimitedConfig,
    ImageFolderConfig,
    JsonlConfig,
    ParquetConfig,
    SourceConfig,
    TextConfig,
    WebDatasetConfig,
)
from storage.sources.augmented import AugmentedSource
from storage.sources.base import NO_LABEL, Sample, Source, SourceUnit, UnitReader
from storage.sources.document_files import DocumentFilesSource
from storage.sources.documents import DocumentSource
from storage.sources.image_folder import ImageFolderSource
from storage.sources.index import IndexedUnit, SourceIndex, index_source
from storage.sources.memo import SourceMemo
from storage.sources.parquet import ParquetSource
from storage.sources.unit_digest import UnitDigest
from storage.sources.webdataset import WebDatasetSource

__all__ = [
    "NO_LABEL",
    "AugmentedSource",
    "DocumentFilesSource",
    "DocumentSource",
    "ImageFolderSource",
    "IndexedUnit",
    "ParquetSource",
    "Sample",
    "Source",
    "SourceIndex",
    "SourceMemo",
    "SourceUnit",
    "UnitDigest",
    "UnitReader",
    "WebDatasetSource",
    "index_source",
    "open_source",
]


def open_source(config: SourceConfig) -> Source:
    """Return the source that a config describes; nothing is listed yet.

    Raises:
        SourceError: a file of class names cannot be read, or names in it are doubled.
    """
    source = _open(config)
    if isinstance(config, ImageFolderConfig) or config.augmentation is None:
        return source
    return AugmentedSource(source, config=config.augmentation)


def _open(config: SourceConfig) -> Source:
    match config:
        case ImageFolderConfig():
            return ImageFolderSource(config)
        case WebDatasetConfig():
            return WebDatasetSource(config)
        case ParquetConfig():
            return ParquetSource(config)
        case TextConfig() if config.documents == "files":
            return DocumentFilesSource(config)
        case TextConfig() | JsonlConfig() | DelimitedConfig():
            return DocumentSource(config)
        case _:
            assert_never(config)
