"""Is the config's teacher the one that made a label set; and how far its labels may be apart today."""

from __future__ import annotations

from typing import Any

from storage.errors import MismatchError
from storage.label_set import LabelSet
from storage.specs import CompactCodec, RelationsSpec, SampledCodec, SoftLabelsSpec, TargetSpec, ThresholdCodec

_TEACHER_TOLERANCE = {"fp32": 0.002, "fp16": 0.01, "bf16": 0.06}
"""Largest total variation of a row between two machines at each precision, with room. Measured between an x86 CPU and an H200 and
between batch sizes, on four networks (resnet10t, resnet50, vit_small, tiny_vit_21m), it was 3e-6, 2e-3 and 2e-2."""
_EXACT_STEP = 0.0005
"""What float16 log-probabilities may round by: 2^-11 m exp(-m) is at most 1.8e-4 an entry."""
_VECTOR_TOLERANCE = {"fp32": 0.001, "fp16": 0.02, "bf16": 0.2}
"""Largest relative distance of a vector at each precision, rounding of the codec taken off. What was measured, and the factor
between that and this: docs/audit.md."""
_RELATIONS_FACTOR = 4
"""Dot products of vectors that are off: few numbers a row, and many of them near zero."""


def check_teacher(label_set: LabelSet, *, made_now: dict[str, Any]) -> None:
    """Refuse a teacher that did not make a label set.

    Args:
        made_now: the JSON form of the config's teacher.

    Raises:
        MismatchError: every field that differs, with both values.
    """
    made = label_set.manifest.request.teacher.to_json()
    differing = [
        f"  teacher.{name}: the labels are of {made[name]!r}, the config's is {made_now.get(name)!r}"
        for name in made
        if made[name] != made_now.get(name)
    ]
    if differing:
        raise MismatchError(
            f"label set {label_set.manifest.name!r} ({label_set.manifest.id}) is of another teacher than the config's:\n"
            + "\n".join(differing)
            + "\nGive the config the teacher that made these labels, or name another label set"
        )


def default_threshold(target: TargetSpec, *, precision: str) -> float:
    """Return the largest distance of a row that another device or library version explains.

    That is total variation of soft labels, relative distance of vectors, from which the codec's rounding is taken off.

    Of soft labels the teacher's share is set by its precision, the codec's by one entry that rounds to the other side: a step of
    the compact grid moves a probability p by 2 sqrt(p) / levels; a class that is drawn once more moves one share.
    """
    if not isinstance(target, SoftLabelsSpec):
        return _VECTOR_TOLERANCE[precision] * (_RELATIONS_FACTOR if isinstance(target, RelationsSpec) else 1)
    match target.codec:
        case CompactCodec():
            step = 2 / target.codec.levels
        case SampledCodec():
            step = 2 / target.codec.draws
        case ThresholdCodec():
            step = 2 / target.codec.levels**2
        case _:
            step = _EXACT_STEP
    return min(_TEACHER_TOLERANCE[precision] + step, 1.0)
