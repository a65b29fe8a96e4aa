"""The samples of a source unit of pictures on their way to a teacher: read, counted, rendered, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import numpy.typing as npt

from pipelines.label_task import LabelTask
from pipelines.rendering import RenderedSample, SampleRenderer, map_ahead
from storage.config import GenerationConfig
from storage.errors import SourceError
from storage.samples import SampleTable
from storage.sources import UnitDigest
from storage.sources.base import NO_LABEL, Sample, Source
from storage.specs import RequestSpec


@dataclass(kw_only=True)
class Reading:
    """The samples of a unit as they pass by; each is counted, also one that is not wanted."""

    num_samples: int
    wanted: npt.NDArray[np.bool_]
    labels: npt.NDArray[np.int64]
    keys: list[str] = field(default_factory=list)
    digest: UnitDigest = field(default_factory=UnitDigest)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    too_many: bool = False

    @classmethod
    def of(cls, task: LabelTask, *, wanted: npt.NDArray[np.bool_] | None = None) -> Reading:
        """Return one of the unit of a task.

        Args:
            wanted: bool [samples]; None: all.
        """
        return cls(
            num_samples=task.num_samples,
            wanted=np.ones(task.num_samples, dtype=np.bool_) if wanted is None else wanted,
            labels=np.full(task.num_samples, NO_LABEL, dtype=np.int64),
        )

    def finish(self, task: LabelTask) -> SampleTable:
        """Return keys and hard labels of the unit, once it was read to its end.

        Raises:
            SourceError: it is not what was indexed.
        """
        short = len(self.keys) != task.num_samples
        if self.too_many or short or self.digest.hexdigest() != task.part.unit_digest:
            raise unit_changed(task, unreadable=self.unreadable)
        return SampleTable(keys=tuple(self.keys), labels=self.labels)

    def watch(self, samples: Iterator[Sample]) -> Iterator[Sample]:
        """Yield the samples that are wanted; ends early where there are more than there should be."""
        for sample in samples:
            if sample.position >= self.num_samples:
                self.too_many = True
                return
            self.digest.add(sample)
            self.keys.append(sample.key)
            self.labels[sample.position] = sample.label
            if sample.error is not None:
                self.unreadable.append((sample.key, sample.error))
            if self.wanted[sample.position]:
                yield sample


def rendered_batches(
    source: Source,
    task: LabelTask,
    *,
    reading: Reading,
    request: RequestSpec,
    config: GenerationConfig,
    block_rows: tuple[int, ...],
) -> Iterator[list[RenderedSample]]:
    """Yield the rendered views of a unit, a batch of samples at a time.

    Args:
        block_rows: samples of a block of each target.
    """
    renderer = SampleRenderer(
        view=request.rendered_view(),
        first_view=task.part.first_view,
        num_views=task.part.num_views,
        max_pixels=config.max_image_pixels,
        block_rows=block_rows,
    )
    rendered = map_ahead(
        renderer, reading.watch(source.read(task.unit)), threads=config.decode_threads, ahead=2 * config.batch_size
    )
    while batch := list(islice(rendered, config.batch_size)):
        yield batch


def unit_changed(task: LabelTask, *, unreadable: list[tuple[str, str]]) -> SourceError:
    """Return the error of a unit that no longer holds what was indexed.

    Args:
        unreadable: key and reason of every sample that could not be read.
    """
    lost = f"; {len(unreadable)} samples cannot be read, first {unreadable[0][0]!r}: {unreadable[0][1]}" if unreadable else ""
    return SourceError(
        f"unit {task.unit.name!r} changed since it was indexed (its content no longer has digest {task.part.unit_digest[:16]}"
        f"{lost}); no label was stored for it. Run decant label again once the source is at rest"
    )
