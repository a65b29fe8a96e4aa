"""Where the samples are."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from storage.config.base import Config

MAX_DOCUMENT_BYTES = 1 << 24


class AugmentationConfig(Config):
    """Copies of each text in which words are replaced, as in TinyBERT; each is a sample of its own, with the text's label."""

    candidates: str = Field(
        description='Local path or fsspec URL of a table of candidates: JSON Lines of {"word": ..., "candidates": [...]}, made '
        "by `python -m pipelines.text.candidates`."
    )
    copies: int = Field(default=20, ge=1, le=1000, description="Copies of each text, beside the text itself.")
    replaced_share: float = Field(
        default=0.4, gt=0, le=1, description="Probability that a word which has candidates is replaced by one of them."
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed of what is replaced.")


UnitEnds = Literal["count", "keys"]
_UNIT_ENDS = (
    "Where units end. count: after `unit_size` files in the order of their names, so that one added or removed shifts all units "
    "behind it, whose labels are computed anew. keys: where the names themselves say so, after a quarter of `unit_size` to "
    "all of it, so that only the units around it are; for folders that grow."
)
_AUGMENTATION = "Copies of each text with words replaced; null: none."


class _Source(Config):
    path: str | tuple[str, ...] = Field(
        description="Local path or fsspec URL (s3://, gs://, memory://); a list is read in order."
    )
    classes: str | tuple[str, ...] | None = Field(
        default=None,
        description="Class names in label order, or the path of a text file with one name a line. "
        "Checked against what the source holds.",
    )

    @property
    def of_text(self) -> bool:
        """Whether the samples are texts; else they are pictures."""
        return False


class _TextFiles(_Source):
    unit_size: int = Field(
        default=4000,
        ge=1,
        le=1 << 24,
        description="Documents in one source unit (one work unit, one part). A compressed file (.gz, .zst) is one unit, however "
        "many it holds.",
    )
    max_document_bytes: int = Field(
        default=MAX_DOCUMENT_BYTES, ge=1, le=1 << 30, description="Longer documents become dead letters."
    )
    augmentation: AugmentationConfig | None = Field(default=None, description=_AUGMENTATION)

    @property
    def of_text(self) -> bool:
        """Whether the samples are texts; else they are pictures."""
        return True


class ImageFolderConfig(_Source):
    """Pictures in class folders: `path/class_name/picture.jpg`. Label = position of the class folder in sorted order."""

    kind: Literal["image_folder"] = Field(description="Pictures in class folders.")
    unit_size: int = Field(default=4000, ge=1, description="Pictures in one source unit (one work unit, one part).")
    unit_ends: UnitEnds = Field(default="count", description=_UNIT_ENDS)
    labelled: bool = Field(default=True, description="False: a flat or nested folder without classes.")


class WebDatasetConfig(_Source):
    """WebDataset tars; `path` takes brace (`{000..127}`) and glob (`*`) patterns. One tar is one source unit."""

    kind: Literal["webdataset"] = Field(description="WebDataset tars.")
    image_fields: tuple[str, ...] = Field(
        default=("jpg", "jpeg", "png", "webp", "ppm", "bmp", "tif", "tiff"),
        description="Member extensions that hold the picture; the first one found in a sample is taken.",
    )
    text_fields: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="Member extensions that hold the text (txt, txt.gz, txt.zst), in place of pictures; the first one found is "
        "taken. null: a source of pictures.",
    )
    label_field: str | None = Field(
        default="cls", description="Member extension with the label as an ASCII number; null: no labels."
    )
    max_document_bytes: int = Field(
        default=MAX_DOCUMENT_BYTES, ge=1, le=1 << 30, description="Longer texts become dead letters; pictures have no such limit."
    )

    augmentation: AugmentationConfig | None = Field(default=None, description=_AUGMENTATION)

    @model_validator(mode="after")
    def _check_augmentation(self) -> WebDatasetConfig:
        if self.augmentation is not None and not self.of_text:
            raise ValueError("augmentation replaces words, but the source is of pictures; give text_fields, or leave it out")
        return self

    @property
    def of_text(self) -> bool:
        """Whether the samples are texts; else they are pictures."""
        return self.text_fields is not None


class ParquetConfig(_Source):
    """Parquet as Hugging Face datasets write it: an image column of struct<bytes, path>, or a text column."""

    kind: Literal["parquet"] = Field(description="Parquet files with embedded pictures, or with texts.")
    image_column: str = Field(default="image", description="Column with the picture: struct<bytes, path> or binary.")
    text_column: str | None = Field(
        default=None,
        description="Column with the text (string or binary), in place of pictures; null: a source of pictures.",
    )
    label_column: str | None = Field(default="label", description="Integer label column; null: no labels.")
    key_column: str | None = Field(default=None, description="Column with unique sample keys; null: file stem and row number.")
    unit_size: int = Field(default=4000, ge=1, description="Rows in one source unit, rounded up to whole row groups.")
    max_document_bytes: int = Field(
        default=MAX_DOCUMENT_BYTES, ge=1, le=1 << 30, description="Longer texts become dead letters; pictures have no such limit."
    )

    augmentation: AugmentationConfig | None = Field(default=None, description=_AUGMENTATION)

    @model_validator(mode="after")
    def _check_augmentation(self) -> ParquetConfig:
        if self.augmentation is not None and not self.of_text:
            raise ValueError("augmentation replaces words, but the source is of pictures; give text_column, or leave it out")
        return self

    @property
    def of_text(self) -> bool:
        """Whether the samples are texts; else they are pictures."""
        return self.text_column is not None


class TextConfig(_TextFiles):
    """Plain text (.txt, .text), also compressed (.gz, .zst): one document a line, or one a file. It has no labels."""

    kind: Literal["text"] = Field(description="Plain text.")
    documents: Literal["lines", "files"] = Field(default="lines", description="What one document is: a line, or a whole file.")
    unit_ends: UnitEnds = Field(default="count", description=f"{_UNIT_ENDS} With documents: files alone.")
    skip_blank_lines: bool = Field(
        default=False, description="Leave out lines of nothing but white space; otherwise each of them becomes a dead letter."
    )

    @model_validator(mode="after")
    def _check_lines(self) -> TextConfig:
        if self.classes is not None:
            raise ValueError(
                "classes name the labels of documents, and plain text has none; leave classes out, or use kind jsonl"
            )
        if self.unit_ends == "keys" and self.documents == "lines":
            raise ValueError(
                "unit_ends: keys goes by the names of files, and lines have none but their numbers, which shift; with documents: "
                "lines leave it out"
            )
        if self.skip_blank_lines and self.documents == "files":
            raise ValueError("skip_blank_lines leaves out documents that are lines; with documents: files leave it out")
        return self


class JsonlConfig(_TextFiles):
    """JSON Lines (.jsonl, .ndjson, .json), also compressed (.gz, .zst): one object a line."""

    kind: Literal["jsonl"] = Field(description="JSON Lines.")
    text_field: str = Field(default="text", description="Field with the text.")
    label_field: str | None = Field(
        default=None, description="Field with the label: an integer, or one of the names in `classes`; null: no labels."
    )
    key_field: str | None = Field(
        default=None, description="Field with a unique key (string or integer); null: file name and line number."
    )


class DelimitedConfig(_TextFiles):
    """Tables as text (.tsv, .csv, .tab), also compressed (.gz, .zst): one document a record. SST-2, for one."""

    kind: Literal["delimited"] = Field(description="TSV or CSV.")
    delimiter: Annotated[str, Field(pattern=r"^[^\"\r\n\u0080-\U0010ffff]$")] = Field(
        default="\t", description="One ASCII character between fields."
    )
    quoting: Literal["none", "standard"] = Field(
        default="none",
        description="none: quotes are characters like others, a record is a line. standard: as in CSV (RFC 4180), fields in "
        "double quotes may hold delimiters, line ends and doubled quotes.",
    )
    columns: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="Names of the columns of files without a header; null: the first record has them."
    )
    text_column: str = Field(default="text", description="Column with the text.")
    label_column: str | None = Field(
        default=None, description="Column with the label: an integer, or one of the names in `classes`; null: no labels."
    )
    key_column: str | None = Field(default=None, description="Column with unique keys; null: file name and line number.")


SourceConfig = Annotated[
    ImageFolderConfig | WebDatasetConfig | ParquetConfig | TextConfig | JsonlConfig | DelimitedConfig, Field(discriminator="kind")
]
