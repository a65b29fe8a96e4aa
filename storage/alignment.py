"""Which rows of a target belong to which sample: one rule, enforced when rows are written and when they are read."""

from __future__ import annotations

from typing import assert_never

import numpy as np
import numpy.typing as npt

from storage.errors import FormatError
from storage.specs import Positions, RelationsSpec, SoftLabelsSpec, TargetSpec


def rows_per_sample(
    target: TargetSpec, *, lengths: npt.NDArray[np.int64], mask_counts: npt.NDArray[np.int64] | None
) -> npt.NDArray[np.int64]:
    """Return int64 [samples], the rows that each sample has.

    Args:
        lengths: int64 [samples], tokens (of a picture: patches and class tokens) of each.
        mask_counts: int64 [samples], masked tokens of each; None where nothing is masked.

    Raises:
        FormatError: the target is of masked tokens and there are no masks.
    """
    if not isinstance(target, SoftLabelsSpec):
        if isinstance(target, RelationsSpec):
            return lengths * (lengths + 1) // 2
        return lengths if target.per_token else np.ones_like(lengths)
    match target.positions:
        case "view":
            return np.ones_like(lengths)
        case "all":
            return lengths
        case "next":
            return lengths - 1
        case "masked":
            if mask_counts is None:
                raise FormatError("labels of masked tokens, of sequences without masks")
            return mask_counts
        case _:
            assert_never(target.positions)


def why_one_token_off(teacher_kind: str, *, positions: Positions) -> str | None:
    """Return why rows at some tokens are of other tokens than a student takes them for; None where they are not, as far as known.

    Args:
        teacher_kind: of the teacher whose logits they are; of a factory's nothing is known.
    """
    if teacher_kind == "causal_lm" and positions not in ("next", "view"):
        return f"a causal_lm gives at each token what the next one may be, and positions {positions} are of the token itself"
    if teacher_kind == "masked_lm" and positions == "next":
        return "a masked_lm gives at each token what the token itself may be, and positions next are of the one behind it"
    return None
