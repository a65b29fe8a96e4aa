"""Views of pictures."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from storage.specs.base import Spec

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
Size = tuple[Annotated[int, Field(ge=1, le=16384)], Annotated[int, Field(ge=1, le=16384)]]


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
