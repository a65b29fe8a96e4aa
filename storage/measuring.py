"""What storing did to rows: codec KL, mass kept, agreement with hard labels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from storage.codecs import DrawnLabels, UnstoredLabels
from storage.codecs.divergence import codec_kl
from storage.parts import PartStatistics
from storage.soft_labels import SoftLabels
from storage.sources.base import NO_LABEL
from storage.specs import CompactCodec, SoftLabelsSpec


def measure(rows: UnstoredLabels, stored: SoftLabels, *, labels: npt.NDArray[np.int64], target: SoftLabelsSpec) -> PartStatistics:
    """Return what storing did to some rows. Of drawn labels, the class drawn most often counts as the most probable one.

    Args:
        labels: int64 [rows], hard labels, NO_LABEL where there is none.
    """
    if not len(rows):
        return PartStatistics()
    kl = codec_kl(rows, stored)
    kept = (stored.probs > 0).sum(axis=1)
    labelled = labels != NO_LABEL
    top_ids = rows.top_ids() if isinstance(rows, DrawnLabels) else rows.class_ids[:, 0]
    capped = target.k is None and isinstance(target.codec, CompactCodec)
    return PartStatistics(
        num_rows=len(rows),
        codec_kl_sum=float(kl.sum()),
        codec_kl_max=float(kl.max()),
        mass_kept_sum=float((1 - stored.rest.astype(np.float64)).sum()),
        entries_sum=int(kept.sum()),
        num_empty_rows=int((kept == 0).sum()),
        num_full_rows=int((kept == target.max_entries).sum()) if capped else 0,
        num_labelled_rows=int(labelled.sum()),
        num_agreeing_rows=int((top_ids == labels)[labelled].sum()),
    )
