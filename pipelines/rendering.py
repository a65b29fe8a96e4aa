"""Samples to rendered views, in threads ahead of the teacher."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

from storage.block_fields import DIGEST_STRIDE
from storage.errors import SampleError
from storage.failure_trace import short_traceback, without_addresses
from storage.images import decode_image
from storage.parts import DeadLetter
from storage.sources.base import Sample
from storage.specs import ViewSpec
from storage.views import draw_view_params, render, view_digest

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderedSample:
    """The views of one sample, or why there are none.

    Attributes:
        views: uint8 [views, height, width, 3]; None for a dead letter.
        digests: uint64 [views], 0 where the sample's position is not one whose digest is stored.
    """

    sample: Sample
    views: npt.NDArray[np.uint8] | None
    digests: npt.NDArray[np.uint64]
    dead_letter: DeadLetter | None


@dataclass(frozen=True, kw_only=True)
class SampleRenderer:
    """Decodes a sample once and renders a range of its views."""

    view: ViewSpec
    first_view: int
    num_views: int
    max_pixels: int
    block_rows: tuple[int, ...]
    """Samples of one block of each target: digests are stored of every `DIGEST_STRIDE`-th sample of each block."""

    def __call__(self, sample: Sample) -> RenderedSample:
        """Return the views of a sample; a bad one comes back as a dead letter."""
        digests = np.zeros(self.num_views, dtype=np.uint64)
        if sample.data is None:
            return self._dead(sample, digests, stage="read", reason=sample.error or "no bytes")
        try:
            image = decode_image(sample.data, max_pixels=self.max_pixels)
        except SampleError as error:
            return self._dead(sample, digests, stage="decode", reason=str(error), error=error)
        views = np.empty((self.num_views, *self.view.size, 3), dtype=np.uint8)
        for index in range(self.num_views):
            params = draw_view_params(
                self.view, key=sample.key, view_index=self.first_view + index, width=image.width, height=image.height
            )
            try:
                views[index] = render(image, params, interpolation=self.view.interpolation)
            except (SampleError, ValueError, MemoryError, OSError) as error:
                return self._dead(sample, digests, stage="render", reason=f"{type(error).__name__}: {error}", error=error)
            if any(sample.position % rows % DIGEST_STRIDE == 0 for rows in self.block_rows):
                digests[index] = view_digest(views[index])
        return RenderedSample(sample=sample, views=views, digests=digests, dead_letter=None)

    def _dead(
        self,
        sample: Sample,
        digests: npt.NDArray[np.uint64],
        *,
        stage: Literal["read", "decode", "render"],
        reason: str,
        error: Exception | None = None,
    ) -> RenderedSample:
        letter = DeadLetter(
            key=sample.key,
            position=sample.position,
            view=None,
            stage=stage,
            reason=without_addresses(reason),
            traceback="" if error is None else short_traceback(error),
        )
        return RenderedSample(sample=sample, views=None, digests=digests, dead_letter=letter)


def map_ahead(function: Callable[[T], R], items: Iterable[T], *, threads: int, ahead: int) -> Iterator[R]:
    """Yield `function` of every item in order, at most `ahead` of them computed or waiting before they are asked for."""
    with ThreadPoolExecutor(max_workers=threads) as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
