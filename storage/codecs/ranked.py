"""What a teacher step hands to a codec: the most probable classes by rank."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from storage.errors import FormatError

_SUM_TOLERANCE = 0.01
"""Wide enough for a float32 softmax over 2^32 classes, far from what unnormalised scores sum to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankedLabels:
    """Most probable classes of some rows, as they leave the device.

    Attributes:
        class_ids: uint32 [rows, entries], most probable first.
        log_probs: float32 [rows, entries], descending, at the generation temperature.
        log_rest: float32 [rows], log of the mass of all other classes; -inf where there is none.
    """

    class_ids: npt.NDArray[np.uint32]
    log_probs: npt.NDArray[np.float32]
    log_rest: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.log_rest)

    def check(self, *, num_classes: int) -> None:
        """Refuse rows that are not a distribution.

        Raises:
            FormatError: NaN, a log-probability above 0, values that rise, an id outside the classes, or probabilities and rest
                that do not sum to 1.
        """
        if np.isnan(self.log_probs).any() or np.isnan(self.log_rest).any():
            raise FormatError("log-probabilities hold NaN; such rows must become dead letters before they are encoded")
        if (self.log_probs > 1e-4).any() or (self.log_rest > 1e-4).any():
            raise FormatError("log-probabilities above 0: these are logits or unnormalised scores, not log-probabilities")
        if (self.log_probs[:, 1:] > self.log_probs[:, :-1]).any():
            raise FormatError("log-probabilities rise along a row; classes must come most probable first")
        if self.class_ids.size and int(self.class_ids.max()) >= num_classes:
            raise FormatError(f"class id {int(self.class_ids.max())} is outside the {num_classes} classes")
        sums = np.exp(self.log_probs).sum(axis=1) + np.exp(self.log_rest)
        if (np.abs(sums - 1) > _SUM_TOLERANCE).any():
            worst = float(sums[np.abs(sums - 1).argmax()])
            raise FormatError(f"probabilities and rest of a row sum to {worst:.4g}, not 1: these are not log-probabilities")
