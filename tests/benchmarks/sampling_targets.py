"""Ways to store a teacher's distribution, as a student meets them: through the codec, under a policy for the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipelines.extraction import extract
from storage import codecs
from storage.blocks import encode_block
from storage.codecs.columns import Bytes
from storage.random import label_uniforms
from storage.soft_labels import SoftLabels
from storage.specs import CompactCodec, DenseCodec, SampledCodec, SoftLabelsSpec, ThresholdCodec
from student_training.losses.soft_labels import bucket_rest_kl, densify, renormalized_kl, uniform_rest_kl

_POLICIES = {"renormalize": "renormalised", "uniform": "rest spread evenly", "bucket": "rest as a bucket"}


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a distribution is stored and what becomes of its rest."""

    name: str
    codec: CompactCodec | DenseCodec | SampledCodec | ThresholdCodec
    k: int | None = None
    rest: str = "renormalize"

    def spec(self, num_classes: int) -> SoftLabelsSpec:
        """Return what is asked of the codec."""
        return SoftLabelsSpec(num_classes=num_classes, k=self.k, codec=self.codec)

    @property
    def is_drawn(self) -> bool:
        """Whether another seed would give other labels."""
        return isinstance(self.codec, SampledCodec | ThresholdCodec)


FULL = Way(name="all classes (dense)", codec=DenseCodec())
DRAWN = (
    Way(name="sampled, 50 draws (RS-KD)", codec=SampledCodec()),
    *(Way(name=f"threshold, levels {levels}", codec=ThresholdCodec(levels=levels)) for levels in (7, 8, 16, 32)),
)


def ranked_ways(ks: Sequence[int]) -> tuple[Way, ...]:
    """Return the most probable classes, with every policy for the rest."""
    return tuple(
        Way(name=f"top {k}, {words}", codec=CompactCodec(), k=k, rest=policy) for k in ks for policy, words in _POLICIES.items()
    )


@dataclass(frozen=True, kw_only=True)
class StoredTargets:
    """A block of rows as it is stored."""

    way: Way
    spec: SoftLabelsSpec
    streams: Mapping[str, Bytes]
    num_rows: int

    @property
    def num_bytes(self) -> int:
        """Bytes of the block, header included."""
        return len(encode_block({"target": self.spec.to_json()}, self.streams))

    def read(self) -> SoftLabels:
        """Return the rows."""
        return codecs.decode(self.streams, num_rows=self.num_rows, spec=self.spec)

    def loss(self, student_logits: Tensor) -> Tensor:
        """Return KL of the stored rows to a student, mean over rows."""
        rows = self.read()
        ids, probs, rest = torch.from_numpy(rows.class_ids), torch.from_numpy(rows.probs), torch.from_numpy(rows.rest)
        match self.way.rest:
            case "renormalize":
                return renormalized_kl(student_logits, class_ids=ids, probs=probs).mean()
            case "uniform":
                return uniform_rest_kl(student_logits, class_ids=ids, probs=probs, rest=rest).mean()
            case _:
                return bucket_rest_kl(student_logits, class_ids=ids, probs=probs, rest=rest).mean()

    def dense(self) -> npt.NDArray[np.float64]:
        """Return float64 [rows, classes], what the loss makes of the rows.

        Raises:
            ValueError: the rest is a bucket, which is no distribution over classes.
        """
        if self.way.rest == "bucket":
            raise ValueError(f"{self.way.name} is no distribution over classes")
        rows = self.read()
        found = densify(
            torch.from_numpy(rows.class_ids),
            probs=torch.from_numpy(rows.probs),
            rest=torch.from_numpy(rows.rest),
            num_classes=rows.num_classes,
            rest_policy="uniform" if self.way.rest == "uniform" else "renormalize",
        )
        dense: npt.NDArray[np.float64] = found.numpy()
        return dense


def store(logits: Tensor, *, way: Way, key: str, seed: int = 0) -> StoredTargets:
    """Return rows of logits [rows, classes] as the pipeline extracts and stores them.

    Args:
        key: of the sample that the rows are positions of; with the seed it decides what is drawn.
    """
    codec = way.codec
    if isinstance(codec, SampledCodec | ThresholdCodec):
        codec = codec.model_copy(update={"seed": seed})
    spec = SoftLabelsSpec(num_classes=logits.shape[1], k=way.k, codec=codec)
    uniforms = None
    if isinstance(codec, SampledCodec | ThresholdCodec):
        uniforms = label_uniforms(codec, key=key, view_index=0, positions=np.arange(len(logits)))
    rows = extract(logits, spec=spec, alive=np.ones(len(logits), dtype=np.bool_), uniforms=uniforms).rows
    return StoredTargets(way=way, spec=spec, streams=codecs.encode(rows, spec=spec), num_rows=len(logits))
