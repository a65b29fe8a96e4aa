"""The samples that imported labels are of: those of a source, or what the key files themselves name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, assert_never

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from storage.config import SourceConfig
from storage.errors import MismatchError, SourceError
from storage.hashing import key_hash
from storage.interchange.tinyvit_folder import TinyViTFolder, read_keys
from storage.sources import NO_LABEL, Sample, UnitDigest, index_source, open_source

KeyStyle = Literal["name", "stem", "position"]
"""How TinyViT's keys name a source's samples. name: by the sample's key; stem: by its file name without folder and ending (its
ImageNet-22k keys); position: by its number in the source's order (its ImageNet-1k keys, in torchvision's order)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportedUnit:
    """A unit of samples.

    Attributes:
        first: its first sample, counted over all units.
        num_samples: its samples.
    """

    name: str
    digest: str
    first: int
    num_samples: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportedSamples:
    """All samples, unit after unit.

    Attributes:
        keys: sample keys.
        names: what TinyViT's key files call them.
        labels: int64 [samples], NO_LABEL where there is none.
        source: JSON data for the label set's manifest: where to look for the pictures.
    """

    units: tuple[ImportedUnit, ...]
    keys: pa.LargeStringArray
    names: pa.LargeStringArray
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...] | None
    source: dict[str, Any]


def samples_of_folder(folder: TinyViTFolder, *, unit_size: int) -> ImportedSamples:
    """Return the samples that the key files name, sorted by key, in units as a folder of pictures without classes has them.

    Their pictures are not known: the digest of a unit takes in keys alone.
    """
    keys = pa.array([], type=pa.large_string())
    for packages in folder.epochs.values():
        for package in packages:
            found = read_keys(folder, package)
            new = found.filter(pc.invert(pc.is_in(found, value_set=keys)))
            if len(new):
                keys = pa.concat_arrays([keys, new])
    keys = keys.take(pc.array_sort_indices(keys))
    units = []
    for first in range(0, len(keys), unit_size):
        unit_digest = UnitDigest()
        for position, key in enumerate(keys.slice(first, unit_size).to_pylist()):
            unit_digest.add(Sample(position=position, key=key, label=NO_LABEL, data=None))
        last = first + unit_digest.num_samples
        units.append(
            ImportedUnit(
                name=f"{first:05d}-{last:05d}", digest=unit_digest.hexdigest(), first=first, num_samples=unit_digest.num_samples
            )
        )
    return ImportedSamples(
        units=tuple(units),
        keys=keys,
        names=keys,
        labels=np.full(len(keys), NO_LABEL, dtype=np.int64),
        classes=None,
        source={"kind": "tinyvit", "path": folder.store.url},
    )


def samples_of_source(
    config: SourceConfig, *, style: KeyStyle, on_progress: Callable[[int, int], None] | None = None
) -> ImportedSamples:
    """Return the samples of a source, in its units; every picture is read once for their digests.

    Args:
        style: how TinyViT's keys name them.
        on_progress: called with units read and units in all.

    Raises:
        SourceError: the source cannot be read, or changes while it is.
        MismatchError: two samples would have one name.
    """
    source = open_source(config)
    units, keys, labels = [], [], []
    first = 0
    for indexed in index_source(source, on_progress=on_progress).units:
        reader = source.open(indexed.unit)
        try:
            found = reader.keys
            keys.append(pa.array(found, type=pa.large_string()))
            labels.append(np.asarray(reader.labels, dtype=np.int64))
        finally:
            reader.close()
        # One sample more, and the labels of all units behind would be of others.
        if key_hash(found) != indexed.key_hash:
            raise SourceError(
                f"unit {indexed.unit.name!r} changed while the source was read: it holds other samples than a moment ago, and "
                "labels would go to the wrong ones; nothing was imported. Import again once the source is at rest"
            )
        units.append(ImportedUnit(name=indexed.unit.name, digest=indexed.digest, first=first, num_samples=indexed.num_samples))
        first += indexed.num_samples
    all_keys = pa.concat_arrays(keys)
    return ImportedSamples(
        units=tuple(units),
        keys=all_keys,
        names=_names(all_keys, style=style),
        labels=np.concatenate(labels),
        classes=source.classes,
        source=config.model_dump(mode="json"),
    )


def _names(keys: pa.LargeStringArray, *, style: KeyStyle) -> pa.LargeStringArray:
    match style:
        case "name":
            return keys
        case "position":
            return pc.cast(pa.array(np.arange(len(keys), dtype=np.int64)), pa.large_string())
        case "stem":
            names = pc.replace_substring_regex(pc.replace_substring_regex(keys, r"^.*/", ""), r"(.)\.[^.]*$", r"\1")
            counts = pc.value_counts(names)
            doubled: Sequence[str] = counts.field("values").filter(pc.greater(counts.field("counts"), 1)).to_pylist()
            if doubled:
                raise MismatchError(
                    f"{len(doubled):,} file names occur in several folders of the source, such as {doubled[0]!r}, so TinyViT's "
                    "keys cannot be told apart by them; import with --keys name or position"
                )
            return names
        case _:
            assert_never(style)
