"""Where the samples are."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from storage.config.base import Config


class _PictureSource(Config):
    path: str | tuple[str, ...] = Field(
        description="Local path or fsspec URL (s3://, gs://, memory://); a list is read in order."
    )
    classes: str | tuple[str, ...] | None = Field(
        default=None,
        description="Class names in label order, or the path of a text file with one name a line. "
        "Checked against what the source holds.",
    )


class ImageFolderConfig(_PictureSource):
    """Pictures in class folders: `path/class_name/picture.jpg`. Label = position of the class folder in sorted order."""

    kind: Literal["image_folder"] = Field(description="Pictures in class folders.")
    unit_size: int = Field(default=4000, ge=1, description="Pictures in one source unit (one work unit, one part).")
    labelled: bool = Field(default=True, description="False: a flat or nested folder without classes.")


class WebDatasetConfig(_PictureSource):
    """WebDataset tars; `path` takes brace (`{000..127}`) and glob (`*`) patterns. One tar is one source unit."""

    kind: Literal["webdataset"] = Field(description="WebDataset tars.")
    image_fields: tuple[str, ...] = Field(
        default=("jpg", "jpeg", "png", "webp", "ppm", "bmp", "tif", "tiff"),
        description="Member extensions that hold the picture; the first one found in a sample is taken.",
    )
    label_field: str | None = Field(
        default="cls", description="Member extension with the label as an ASCII number; null: no labels."
    )


class ParquetConfig(_PictureSource):
    """Parquet as Hugging Face image datasets write it: an image column of struct<bytes, path>."""

    kind: Literal["parquet"] = Field(description="Parquet files with embedded pictures.")
    image_column: str = Field(default="image", description="Column with the picture: struct<bytes, path> or binary.")
    label_column: str | None = Field(default="label", description="Integer label column; null: no labels.")
    key_column: str | None = Field(default=None, description="Column with unique sample keys; null: file stem and row number.")
    unit_size: int = Field(default=4000, ge=1, description="Rows in one source unit, rounded up to whole row groups.")


SourceConfig = Annotated[ImageFolderConfig | WebDatasetConfig | ParquetConfig, Field(discriminator="kind")]
