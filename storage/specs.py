"""What a label is true of: frozen, hashed descriptions of views, targets, teachers and parts.

Everything here is identity. How to run (workers, devices) lives in `storage.config`; what was measured lives in part records.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from storage.errors import MismatchError
from storage.hashing import fingerprint

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
Size = tuple[Annotated[int, Field(ge=1, le=16384)], Annotated[int, Field(ge=1, le=16384)]]


class Spec(BaseModel):
    """A frozen, strict description whose fingerprint depends on its fields and nothing else."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form that is hashed and stored."""
        return self.model_dump(mode="json")

    def fingerprint(self) -> str:
        """Return the sha256 of the canonical JSON form."""
        return fingerprint(self.to_json())


class EvaluationView(Spec):
    """The teacher's own evaluation preprocessing: resize, then centre crop. Every sample has one such view.

    Rendered by `storage.views`; `renderer` is the version of that code.
    """

    kind: Literal["evaluation"] = "evaluation"
    renderer: Literal[1] = 1
    size: Size
    """Height and width of the rendered view, in pixels."""
    resize: Literal["shorter_edge", "squash"] = "shorter_edge"
    """`shorter_edge`: keep the aspect ratio, smallest size that covers `resize_size`; `squash`: to exactly `resize_size`."""
    resize_size: Size
    interpolation: Interpolation = "bicubic"


class RandomResizedCropView(Spec):
    """TinyViT's setting: views drawn by a counter-based generator from (seed, sample key, view index).

    `torchvision.transforms.RandomResizedCrop` in distribution: area share uniform in `scale`, log aspect ratio uniform in
    log `ratio`, ten tries, then the largest central crop inside `ratio`; then a horizontal flip.
    """

    kind: Literal["random_resized_crop"] = "random_resized_crop"
    renderer: Literal[1] = 1
    size: Size
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (0.75, 4 / 3)
    flip_probability: float = Field(default=0.5, ge=0, le=1)
    interpolation: Interpolation = "bicubic"
    seed: int = Field(default=0, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _check_ranges(self) -> RandomResizedCropView:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale {list(self.scale)} must hold 0 < low <= high <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio {list(self.ratio)} must hold 0 < low <= high")
        return self


ViewSpec = Annotated[EvaluationView | RandomResizedCropView, Field(discriminator="kind")]


class ImportedView(Spec):
    """Views that other code drew and rendered, of which only the labels were kept: nobody can render them here.

    TinyViT stores the seed of its own augmentation code, not the parameters; `files_sha256` covers those seeds.
    """

    kind: Literal["imported"] = "imported"
    layout: Literal["tinyvit"] = "tinyvit"
    """The files the labels came in."""
    size: Size
    """Height and width of the teacher's input in pixels, as stated by whoever imported the labels."""
    epochs: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)
    """The epoch that each view was, in the order of views."""
    files_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """sha256 over names, sizes and sha256 of all key and value files."""


class ExactCodec(Spec):
    """Class ids by rank and float16 log-probabilities: codec KL about 1e-7."""

    kind: Literal["exact"] = Field(default="exact", description="float16 log-probabilities.")
    version: Literal[1] = Field(default=1, description="Version of the encoding.")


class CompactCodec(Spec):
    """Class ids as a set and probabilities on a square-root grid of `levels` steps (u8).

    q = round(levels * sqrt(p)); classes with q = 0 fall to the rest. KL-optimal uniform grid at temperature 1.
    """

    kind: Literal["compact"] = Field(default="compact", description="Square-root grid.")
    version: Literal[1] = Field(default=1, description="Version of the encoding.")
    levels: int = Field(
        default=255, ge=1, le=255, description="Steps of the grid: more keep smaller probabilities and cost more bytes."
    )


CodecSpec = Annotated[ExactCodec | CompactCodec, Field(discriminator="kind")]

QUALITY_CAP = 255
"""Most classes a row may keep when a quality level takes the place of K."""


class SoftLabelsSpec(Spec):
    """Sparse soft labels: probabilities of some classes and the rest mass of all others.

    With `k`, the k most probable classes are kept. Without (`k` null, compact codec only), the grid decides: every class that
    reaches half a level is kept, at most `QUALITY_CAP`; `codec.levels` is then the quality level.
    """

    kind: Literal["soft_labels"] = "soft_labels"
    num_classes: int = Field(ge=1, le=2**32)
    k: int | None = Field(ge=1, le=65535)
    codec: CodecSpec
    generation_temperature: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _check_k(self) -> SoftLabelsSpec:
        if self.k is None and self.codec.kind != "compact":
            raise ValueError(
                "k may be left out only with the compact codec, whose grid then decides; give k or codec.kind: compact"
            )
        if self.k is not None and self.k > self.num_classes:
            raise ValueError(f"k {self.k} is larger than the number of classes {self.num_classes}; lower k")
        return self

    @property
    def max_entries(self) -> int:
        """Most classes a row can keep."""
        return min(self.k if self.k is not None else QUALITY_CAP, self.num_classes)


TargetSpec = SoftLabelsSpec


class Normalization(Spec):
    """(pixels / 255 - mean) / std, per channel; what a network does to a rendered view first."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class TeacherSpec(Spec):
    """A teacher as the bytes of its labels depend on it: function, weights, precision. Not library, device or file format."""

    kind: Literal["timm", "transformers", "factory"]
    architecture: str
    """Architecture name with its arguments, canonical."""
    weights_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """sha256 over (name, dtype, shape, bytes) of every tensor in name order."""
    num_classes: int = Field(ge=1, le=2**32)
    normalization: Normalization
    precision: Literal["fp32", "bf16", "fp16"]


class ImportedTeacher(Spec):
    """A teacher that somebody else ran: a name as stated by whoever imported its labels. Weights and precision are not known."""

    kind: Literal["imported"] = "imported"
    architecture: str = Field(min_length=1)
    num_classes: int = Field(ge=1, le=2**32)


class RequestSpec(Spec):
    """What labels are asked for, apart from the samples and the number of views: the identity shared by all parts of a run."""

    format: Literal[1] = 1
    teacher: Annotated[TeacherSpec | ImportedTeacher, Field(discriminator="kind")]
    view: Annotated[EvaluationView | RandomResizedCropView | ImportedView, Field(discriminator="kind")]
    target: TargetSpec

    def rendered_view(self) -> ViewSpec:
        """Return the view, which can be rendered here.

        Raises:
            MismatchError: the labels were imported, and their views cannot.
        """
        if isinstance(self.view, ImportedView):
            raise MismatchError(
                f"the labels of {self.teacher.architecture} were imported ({self.view.layout}): their views were drawn by other "
                "code and cannot be rendered here"
            )
        return self.view


class PartSpec(Spec):
    """Identity of one part: a request, the content of one source unit, and a contiguous range of view indices."""

    request: str = Field(pattern="^[0-9a-f]{64}$")
    """Fingerprint of the `RequestSpec`."""
    unit_digest: str = Field(pattern="^[0-9a-f]{64}$")
    first_view: int = Field(ge=0)
    num_views: int = Field(ge=1)

    @property
    def name(self) -> str:
        """Name of the part inside its request's folder."""
        return f"{self.unit_digest[:32]}.v{self.first_view:05d}-{self.first_view + self.num_views:05d}"
