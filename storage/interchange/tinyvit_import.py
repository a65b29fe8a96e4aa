"""Published labels of TinyViT become a label set: each epoch a view, probabilities in the exact codec.

The views were drawn by TinyViT's own code from seeds, so nobody can render them here; the label set says so.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version

import numpy as np
from pydantic import ValidationError

from storage.cache import Cache
from storage.config import ExperimentConfig, SourceConfig
from storage.errors import ConfigError, DeadLetterLimitError, MismatchError
from storage.interchange.tinyvit_folder import EpochRecords, Places, TinyViTFolder, digest_folder, list_folder
from storage.interchange.tinyvit_part import PartMaker
from storage.interchange.tinyvit_units import ImportedSamples, ImportedUnit, KeyStyle, samples_of_folder, samples_of_source
from storage.label_set import LabelSet, UsedPart, commit_label_set, label_set_id
from storage.parts import PartRecord, PartWriter
from storage.samples import SampleTable
from storage.specs import ExactCodec, ImportedTeacher, ImportedView, PartSpec, RequestSpec, Size, SoftLabelsSpec
from storage.upkeep.leases import hold_requests
from storage.upkeep.tags import check_experiment_name

_EPOCHS_PER_PART = 4
"""Views stored in one part; the keys of this many epochs are looked up together."""
_MAX_CLASSES = 2**16
"""Ids are 16 bits wide; beyond that two classes share one."""
_MAX_EPOCHS = 99999


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportReport:
    """What was imported.

    Attributes:
        num_reused_parts: parts that an earlier run of the same import had committed.
        num_clipped: rows, of the parts made now, that sum to more than 1 by rounding; their rest is 0.
        num_unused: keys of the files, over all epochs, that are no sample's.
        num_doubled: records that name a sample again, which padding makes; the first of each counts.
    """

    num_parts: int
    num_reused_parts: int
    num_rows: int
    num_dead_letters: int
    num_clipped: int
    num_unused: int
    num_doubled: int


def import_tinyvit(
    folder_url: str,
    cache: Cache,
    *,
    name: str,
    teacher: str,
    num_classes: int,
    image_size: Size,
    epochs: Iterable[int] | None = None,
    source: SourceConfig | None = None,
    keys: KeyStyle = "name",
    unit_size: int = 4000,
    dead_letter_limit: float = 0.01,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> tuple[LabelSet, ImportReport]:
    """Make a label set of a logits folder. What an interrupted run committed is not made again.

    The files are read twice: their digest is part of the labels' identity, since the teacher's weights are not known. Holds the
    keys of all samples, and those of one epoch, in memory; records of one unit at a time.

    Args:
        name: of the label set.
        teacher: what the teacher is to be called.
        num_classes: classes of the teacher's output, which no file says.
        image_size: height and width of the teacher's input, which no file says.
        epochs: epochs to import; None: all. View i is the i-th of them.
        source: the pictures, if the labels are to be joined with them by unit and position; None: samples are what the keys name,
            sorted, in units as a folder of pictures has them.
        keys: how TinyViT's keys name the source's samples.
        unit_size: samples of a unit, without a source.
        dead_letter_limit: share of rows that may be missing or no distribution before the import fails.
        on_progress: called with what is done, how much of it, and out of how much.

    Raises:
        ConfigError: more or fewer classes than the files can hold, or what cannot be a name.
        MismatchError: no logits folder, labels of several K, or keys that are not the source's.
        CorruptError: files that are cut off or do not belong together.
        DeadLetterLimitError: too many rows are missing or no distributions.
    """
    try:
        ExperimentConfig(name=name)
    except ValidationError as error:
        raise ConfigError(
            f"{name!r} cannot be a label set's name; give letters, digits, '.', '_' and '-', a letter or digit first"
        ) from error
    report = on_progress or (lambda _what, _done, _total: None)
    folder = list_folder(folder_url, epochs=epochs)
    if not folder.k <= num_classes <= _MAX_CLASSES:
        raise ConfigError(
            f"{num_classes:,} classes: {folder_url} names {folder.k} classes a row, by ids of 16 bits; give the number of the "
            f"teacher's classes, {folder.k:,} to {_MAX_CLASSES:,}"
        )
    if len(folder.epochs) > _MAX_EPOCHS:
        raise ConfigError(f"{folder_url} has {len(folder.epochs):,} epochs, at most {_MAX_EPOCHS:,} can be views; name some")
    request = RequestSpec(
        teacher=ImportedTeacher(architecture=teacher, num_classes=num_classes),
        view=ImportedView(
            size=image_size,
            epochs=tuple(folder.epochs),
            files_sha256=digest_folder(folder, on_progress=lambda done, total: report("digest of the files, bytes", done, total)),
        ),
        target=SoftLabelsSpec(num_classes=num_classes, k=folder.k, codec=ExactCodec()),
    )
    if source is None:
        samples = samples_of_folder(folder, unit_size=unit_size)
    else:
        samples = samples_of_source(
            source, style=keys, on_progress=lambda done, total: report("units of the source", done, total)
        )
    work = _Import(
        folder=folder, cache=cache, request=request, samples=samples, dead_letter_limit=dead_letter_limit, report=report
    )
    return work.run(name=name)


@dataclass(kw_only=True)
class _Import:
    folder: TinyViTFolder
    cache: Cache
    request: RequestSpec
    samples: ImportedSamples
    dead_letter_limit: float
    report: Callable[[str, int, int], None]
    num_reused: int = 0
    num_clipped: int = 0
    num_unused: int = 0
    num_doubled: int = 0
    num_missing: int = 0
    _epochs: tuple[int, ...] = field(init=False)
    _request: str = field(init=False)

    def __post_init__(self) -> None:
        self._epochs = tuple(self.folder.epochs)
        self._request = self.request.fingerprint()

    @property
    def _num_rows_asked(self) -> int:
        return len(self.samples.keys) * len(self._epochs)

    def run(self, *, name: str) -> tuple[LabelSet, ImportReport]:
        used = [part for unit in self.samples.units for part in self._parts_of(unit)]
        identity = label_set_id(request=self._request, parts=used)
        check_experiment_name(self.cache, name=name, label_set=identity)
        with hold_requests(self.cache, requests=[self._request]):
            self.cache.add_request(self.request)
            self._make_parts(num_parts=len(used))
            label_set = commit_label_set(
                self.cache,
                identity=identity,
                name=name,
                request=self.request,
                parts=self._committed(used),
                num_views=len(self._epochs),
                classes=self.samples.classes,
                source=self.samples.source,
            )
        return label_set, ImportReport(
            num_parts=len(used),
            num_reused_parts=self.num_reused,
            num_rows=label_set.manifest.num_rows,
            num_dead_letters=label_set.manifest.num_dead_letters,
            num_clipped=self.num_clipped,
            num_unused=self.num_unused,
            num_doubled=self.num_doubled,
        )

    def _parts_of(self, unit: ImportedUnit) -> Iterator[UsedPart]:
        for first in range(0, len(self._epochs), _EPOCHS_PER_PART):
            part = PartSpec(
                request=self._request,
                unit_digest=unit.digest,
                first_view=first,
                num_views=min(_EPOCHS_PER_PART, len(self._epochs) - first),
            )
            yield UsedPart(unit_name=unit.name, part=part, first_view=part.first_view, num_views=part.num_views)

    def _make_parts(self, *, num_parts: int) -> None:
        parts = {unit.name: list(self._parts_of(unit)) for unit in self.samples.units}
        num_dead = done = 0
        for group in range(-(-len(self._epochs) // _EPOCHS_PER_PART)):
            epochs = self._epochs[group * _EPOCHS_PER_PART : (group + 1) * _EPOCHS_PER_PART]
            with ExitStack() as stack:
                files = [stack.enter_context(EpochRecords(self.folder, epoch=epoch)) for epoch in epochs]
                places = [self._find(records, epoch=epoch) for epoch, records in zip(epochs, files, strict=True)]
                for unit in self.samples.units:
                    part = parts[unit.name][group].part
                    record = self.cache.find_part(part)
                    self.num_reused += record is not None
                    if record is None:
                        data, made = self._make_part(part, unit=unit, files=files, places=places)
                        record = self.cache.commit_part(data, record=made)
                    num_dead += len(record.dead_letters)
                    self._check_limit(num_dead, example=record.dead_letters[0].reason if record.dead_letters else "")
                    done += 1
                    self.report("parts", done, num_parts)

    def _committed(self, used: Sequence[UsedPart]) -> Iterator[tuple[UsedPart, PartRecord]]:
        for part in used:
            record = self.cache.find_part(part.part)
            if record is None:
                raise MismatchError(
                    f"part {part.part.name} vanished from {self.cache.store.url} while labels were imported; import them again"
                )
            yield part, record

    def _find(self, records: EpochRecords, *, epoch: int) -> Places:
        places = records.find(self.samples.names)
        num_missing = int((places.records < 0).sum())
        if num_missing == len(places.records):
            theirs, ours = records.first_key(), self.samples.names[0].as_py() if len(self.samples.names) else None
            raise MismatchError(
                f"epoch {epoch} of {self.folder.store.url} names none of the source's {len(places.records):,} samples: its keys "
                f"are such as {theirs!r}, the source's such as {ours!r}; --keys says how keys name samples (name, stem, position)"
            )
        self.num_unused += places.num_unused
        self.num_doubled += places.num_doubled
        self.num_missing += num_missing
        self._check_limit(self.num_missing, example=f"epoch {epoch} has no record of it")
        return places

    def _check_limit(self, num_dead: int, *, example: str) -> None:
        if num_dead > self.dead_letter_limit * self._num_rows_asked:
            raise DeadLetterLimitError(
                f"{num_dead:,} or more of {self._num_rows_asked:,} labels in {self.folder.store.url} are missing or are no "
                f"distribution, such as: {example}. The limit is {self.dead_letter_limit:g}: the folder may be of other samples, "
                "another K or number of classes, or damaged. Raise --dead-letter-limit if it is right so"
            )

    def _make_part(
        self, part: PartSpec, *, unit: ImportedUnit, files: Sequence[EpochRecords], places: Sequence[Places]
    ) -> tuple[bytes, PartRecord]:
        span = slice(unit.first, unit.first + unit.num_samples)
        labels = self.samples.labels[span]
        table = SampleTable(keys=tuple(self.samples.keys[span].to_pylist()), labels=labels)
        maker = PartMaker(
            writer=PartWriter(part=part, target=self.request.soft_labels, samples=table),
            target=self.request.soft_labels,
            sums=np.zeros(self.request.soft_labels.num_classes),
        )
        for offset, (records, place) in enumerate(zip(files, places, strict=True)):
            view = part.first_view + offset
            maker.add_view(records, view=view, epoch=self._epochs[view], places=place.records[span])
        self.num_clipped += maker.num_clipped
        return maker.writer.finish(
            unit_name=unit.name,
            class_means=maker.sums / max(maker.statistics.num_rows, 1),
            dead_letters=tuple(maker.dead_letters),
            statistics=maker.statistics,
            provenance={
                "imported": "TinyViT logits folder",
                "python": platform.python_version(),
                "decant": version("decant"),
                "numpy": version("numpy"),
            },
        )
