"""Whether labels that came different ways are the same labels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def dense(class_ids: npt.NDArray[np.integer], probs: npt.NDArray[np.floating], *, num_classes: int) -> npt.NDArray[np.float64]:
    """Return float64 [rows, num_classes], 0 where a class is not kept; unused entries hold 0 and add nothing."""
    rows = np.broadcast_to(np.arange(len(probs))[:, None], probs.shape)
    values = np.zeros((len(probs), num_classes))
    np.add.at(values, (rows, class_ids.astype(np.int64)), probs)
    return values


def differing_rows(
    stored: npt.NDArray[np.float64], exact: npt.NDArray[np.float64], *, levels: int | None
) -> npt.NDArray[np.bool_]:
    """Return bool [rows], where stored probabilities differ from exact ones by more than their codec's rounding.

    Args:
        stored: [rows, classes], as `dense` gives them.
        exact: likewise.
        levels: of the compact codec; None: the exact codec.
    """
    if levels is None:
        # Half a step of float16 in log p, and the sum's rounding.
        allowed = exact * (1e-3 + 2.0**-11 * -np.log(np.where(exact > 0, exact, 1.0)))
        return (np.abs(stored - exact) > allowed).any(axis=1)
    # Half a step of the grid in sqrt(p); dividing by the sum of all rounded classes moves the large ones by up to as much.
    return (np.abs(np.sqrt(stored) - np.sqrt(exact)) > 1 / levels).any(axis=1)
