"""TinyViT's logits folder: its layout, and labels written in it.

`logits_top<K>_epoch<E>/rank<R>-keys.txt` names a sample a line, `rank<R>-values.bin` holds a record for each line: the
seed of the sample's augmentation (int32), K class ids (int16) and K probabilities (float16), most probable first.

Wu et al., TinyViT: Fast Pretraining Distillation for Small Vision Transformers, https://arxiv.org/abs/2207.10666
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import numpy.typing as npt

from storage.errors import MismatchError
from storage.interchange.output import ExportFolder
from storage.interchange.rows import RowReader
from storage.soft_labels import SoftLabels
from storage.specs import SoftLabelsSpec

EPOCH_FOLDER = re.compile(r"logits_top([1-9][0-9]*)_epoch([0-9]+)")
PACKAGE_FILE = re.compile(r"rank([0-9]+)-(keys\.txt|values\.bin)")
MAX_CLASSES = 2**15
"""TinyViT reads ids as int16."""
MAX_ENTRIES = 2**16
"""Ids of a record that can differ."""
NO_SEED = 0


def record_dtype(k: int) -> np.dtype[np.void]:
    """Return the dtype of a record; ids as the bits that they are."""
    return np.dtype([("seed", "<i4"), ("class_ids", "<u2", (k,)), ("probs", "<f2", (k,))])


def epoch_folder(k: int, *, epoch: int) -> str:
    """Return the name of an epoch's folder."""
    return f"logits_top{k}_epoch{epoch}"


@dataclass(kw_only=True, slots=True)
class TinyViTLosses:
    """What TinyViT's records could not hold, over all rows written."""

    num_filled_entries: int = 0
    num_vanished_entries: int = 0
    num_rows_above_one: int = 0
    rest_error_max: float = 0.0
    prob_error_max: float = 0.0


@dataclass(kw_only=True)
class TinyViTExport:
    """Writes one epoch folder a view, with one package, `rank0`."""

    folder: ExportFolder
    target: SoftLabelsSpec
    losses: TinyViTLosses = field(default_factory=TinyViTLosses)

    def __post_init__(self) -> None:
        if self.target.num_classes > MAX_CLASSES:
            raise MismatchError(
                f"TinyViT stores class ids in 16 bits, for at most {MAX_CLASSES:,} classes; these labels have "
                f"{self.target.num_classes:,}, and larger ids would come back as others. Export to parquet or webdataset"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing stays open between views."""

    @property
    def k(self) -> int:
        """Entries of a record."""
        return self.target.max_entries

    def write(self, reader: RowReader, *, view: int) -> Iterator[int]:
        """Write a view; yield the rows of each block that was taken in.

        Raises:
            MismatchError: a key that a line of text, stripped when read, cannot hold.
        """
        name = f"{epoch_folder(self.k, epoch=view)}/rank0"
        with self.folder.create(f"{name}-keys.txt") as keys_file, self.folder.create(f"{name}-values.bin") as values_file:
            for rows in reader.read(view):
                _check_keys(rows.keys)
                keys_file.write("".join(f"{key}\n" for key in rows.keys).encode())
                values_file.write(self._records(rows.soft_labels).tobytes())
                yield len(rows.keys)

    def _records(self, soft_labels: SoftLabels) -> npt.NDArray[np.void]:
        ids, probs, num_filled = fill(soft_labels, k=self.k)
        order = np.argsort(-probs, axis=1, kind="stable")
        probs = np.take_along_axis(probs, order, axis=1)
        records = np.zeros(len(ids), dtype=record_dtype(self.k))
        records["seed"] = NO_SEED
        records["class_ids"] = np.take_along_axis(ids, order, axis=1)
        records["probs"] = probs
        stored = records["probs"].astype(np.float64)
        sums = stored.sum(axis=1)
        self.losses.num_filled_entries += num_filled
        self.losses.num_vanished_entries += int(((probs > 0) & (stored == 0)).sum())
        self.losses.num_rows_above_one += int((sums > 1).sum())
        self.losses.prob_error_max = max(self.losses.prob_error_max, float(np.abs(stored - probs).max(initial=0)))
        rest = 1 - probs.sum(axis=1, dtype=np.float64)
        self.losses.rest_error_max = max(self.losses.rest_error_max, float(np.abs(1 - sums - rest).max(initial=0)))
        return records


def fill(soft_labels: SoftLabels, *, k: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], int]:
    """Return rows of exactly k different classes, and how many entries were added.

    A row that keeps fewer gets the lowest classes that it lacks, each with its even share of the rest: the distribution is the
    same, as TinyViT spreads what is left evenly over the classes that a record does not name.

    Returns:
        class ids and probabilities, [rows, k], in no order.
    """
    num_rows, entries = soft_labels.probs.shape
    ids = np.zeros((num_rows, k), dtype=np.int64)
    probs = np.zeros((num_rows, k), dtype=np.float64)
    ids[:, :entries] = soft_labels.class_ids
    probs[:, :entries] = soft_labels.probs
    num_kept = (probs > 0).sum(axis=1)
    short = np.flatnonzero(num_kept < k)
    if not len(short):
        return ids, probs, 0
    unused = np.arange(k) >= num_kept[short, None]
    # Of the classes 0 to k - 1, a row that names n of all classes lacks at least k - n.
    low = np.where(unused, k, np.minimum(ids[short], k))
    named = np.zeros((len(short), k + 1), dtype=np.bool_)
    np.put_along_axis(named, low, values=True, axis=1)
    lacking = np.argsort(named[:, :k], axis=1, kind="stable")
    place = np.maximum(np.arange(k) - num_kept[short, None], 0)
    share = soft_labels.rest[short].astype(np.float64) / np.maximum(soft_labels.num_classes - num_kept[short], 1)
    ids[short] = np.where(unused, np.take_along_axis(lacking, place, axis=1), ids[short])
    probs[short] = np.where(unused, share[:, None], probs[short])
    return ids, probs, int(unused.sum())


def _check_keys(keys: Sequence[str]) -> None:
    for key in keys:
        if key != key.strip() or "\n" in key or "\r" in key:
            raise MismatchError(
                f"key {key!r} cannot stand in TinyViT's key files, whose lines are stripped when they are read, so its label "
                "would not be found; export to parquet or webdataset, or rename the sample"
            )
