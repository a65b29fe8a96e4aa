"""One forward pass for several targets of pictures: each takes its own from what the network gave of the same views."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pipelines.teachers.base import Teacher, check_logits
from pipelines.teachers.outputs import RawOutputs, VectorOutputs, Wanted

if TYPE_CHECKING:
    import torch


@dataclass(kw_only=True, eq=False)
class SharedPass:
    """A teacher that remembers the last batch.

    Attributes:
        wanted: all that targets ask for.
    """

    teacher: Teacher
    wanted: Wanted
    _views: npt.NDArray[np.uint8] | None = field(default=None, repr=False)
    _outputs: RawOutputs | None = field(default=None, repr=False)

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.teacher.device

    def forget(self) -> None:
        """Let go of the last batch."""
        self._views = self._outputs = None

    def _of(self, views: npt.NDArray[np.uint8]) -> RawOutputs:
        if self._outputs is None or self._views is None or not np.array_equal(self._views, views):
            # Before the next pass takes its memory; and a batch that fails leaves nothing behind.
            self.forget()
            self._outputs = self._run(views)
            self._views = views
        return self._outputs

    def _run(self, views: npt.NDArray[np.uint8]) -> RawOutputs:
        if self.wanted == Wanted(labels=True):
            return RawOutputs(logits=self.teacher.logits(views))
        return self.teacher.vectors(views, wanted=self.wanted).raw

    def logits(self, views: npt.NDArray[np.uint8]) -> torch.Tensor:
        """Return the logits of rendered views. See `Teacher.logits`."""
        return check_logits(self._of(views).logits, views, teacher=self.teacher)

    def vectors(self, views: npt.NDArray[np.uint8], *, wanted: Wanted) -> VectorOutputs:
        """Return what one target wants of rendered views, and nothing else. See `Teacher.vectors`."""
        raw = self._of(views)
        return VectorOutputs(
            raw=RawOutputs(
                hidden=raw.hidden if wanted.hidden else (),
                attention=raw.attention if wanted.attention_layers else None,
                embedding=raw.embedding if wanted.embedding else None,
            )
        )
