"""What storing did to the values of some sequences."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from storage.codecs.values import TargetValues, UnstoredValues
from storage.features import FeatureRows
from storage.measuring import measure
from storage.parts import PartStatistics
from storage.soft_labels import SoftLabels
from storage.sources.base import NO_LABEL
from storage.specs import SoftLabelsSpec, TargetSpec
from storage.text.token_rows import TokenRows


def measure_values(
    values: UnstoredValues,
    stored: TargetValues,
    *,
    target: TargetSpec,
    num_samples: int,
    labels: npt.NDArray[np.int64],
) -> PartStatistics:
    """Return statistics of a block: a row is a sample, a position a token that has values.

    Args:
        num_samples: samples that are present.
        labels: int64 [value rows], the class that is right for each, NO_LABEL where none is known.
    """
    per_sample = isinstance(target, SoftLabelsSpec) and target.positions == "view"
    if isinstance(values, FeatureRows):
        assert isinstance(stored, FeatureRows)
        measured = _squared_errors(values, stored)
        per_sample = len(values) == num_samples
    else:
        assert isinstance(target, SoftLabelsSpec)
        assert isinstance(stored, SoftLabels)
        measured = measure(values, stored, labels=labels, target=target)
    return measured.model_copy(update={"num_rows": num_samples, "num_positions": 0 if per_sample else len(values)})


def _squared_errors(values: FeatureRows, stored: FeatureRows) -> PartStatistics:
    error = total = 0.0
    for name, given in values.tensors.items():
        exact = given.astype(np.float64)
        apart = stored.tensors[name].astype(np.float64)
        apart -= exact
        # In place: rows of relations are many.
        error += float(np.square(apart, out=apart).sum())
        total += float(np.square(exact, out=exact).sum())
    return PartStatistics(squared_error_sum=error, squared_sum=total)


def true_classes(tokens: TokenRows, *, target: TargetSpec, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return int64 [value rows], what is right where it is known: the text's own tokens, or the labels of whole sequences.

    Args:
        labels: int64 [sequences], hard labels.
    """
    if not isinstance(target, SoftLabelsSpec):
        return np.zeros(0, dtype=np.int64)
    match target.positions:
        case "view":
            return labels
        case "masked":
            return tokens.token_ids[tokens.masked_items()].astype(np.int64)
        case "next":
            first = np.zeros(len(tokens.token_ids), dtype=np.bool_)
            first[tokens.offsets[:-1]] = True
            return tokens.token_ids[~first].astype(np.int64)
        case _:
            return np.full(len(tokens.token_ids), NO_LABEL, dtype=np.int64)
