"""What is asked for, and which part of it one tar holds."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from storage.errors import MismatchError
from storage.specs.base import Spec
from storage.specs.features import AttentionSpec, EmbeddingsSpec, HiddenStatesSpec, RelationsSpec
from storage.specs.image_views import EvaluationView, ImportedView, RandomResizedCropView, ViewSpec
from storage.specs.soft_labels import SoftLabelsSpec
from storage.specs.teachers import ImportedTeacher, TeacherSpec, TextTeacherSpec
from storage.specs.text_views import MaskedTokensView, TextViewSpec, TokensView

TargetSpec = Annotated[
    SoftLabelsSpec | HiddenStatesSpec | AttentionSpec | RelationsSpec | EmbeddingsSpec, Field(discriminator="kind")
]

AnyView = Annotated[
    EvaluationView | RandomResizedCropView | ImportedView | TokensView | MaskedTokensView, Field(discriminator="kind")
]


class RequestSpec(Spec):
    """What labels are asked for, apart from the samples and the number of views: the identity shared by all parts of a run."""

    format: Literal[1] = 1
    teacher: Annotated[TeacherSpec | TextTeacherSpec | ImportedTeacher, Field(discriminator="kind")]
    view: AnyView
    target: TargetSpec

    def rendered_view(self) -> ViewSpec:
        """Return the view, which is of pictures and can be rendered here.

        Raises:
            MismatchError: the labels were imported and their views cannot, or they are of texts.
        """
        if isinstance(self.view, TokensView | MaskedTokensView):
            raise MismatchError(
                f"the labels of {self.teacher.architecture} are of texts ({self.view.kind}); pictures were asked for"
            )
        if isinstance(self.view, ImportedView):
            raise MismatchError(
                f"the labels of {self.teacher.architecture} were imported ({self.view.layout}): their views were drawn by other "
                "code and cannot be rendered here"
            )
        return self.view

    def text_view(self) -> TextViewSpec:
        """Return the view, which is of texts.

        Raises:
            MismatchError: it is of pictures.
        """
        if not isinstance(self.view, TokensView | MaskedTokensView):
            raise MismatchError(
                f"the labels of {self.teacher.architecture} are of pictures ({self.view.kind}); texts were asked for"
            )
        return self.view

    @property
    def why_wrong(self) -> str | None:
        """What is known to be wrong with the values of such labels, whole as their bytes are; None: nothing."""
        summed = isinstance(self.target, HiddenStatesSpec) and self.target.tokens == "mean" and self.target.mean_version is None
        if not summed or isinstance(self.view, TokensView | MaskedTokensView):
            return None
        return "holds the sum over tokens where their mean was asked for: the release that made it divided by nothing"

    @property
    def soft_labels(self) -> SoftLabelsSpec:
        """The target, which is soft labels.

        Raises:
            MismatchError: it is another.
        """
        if not isinstance(self.target, SoftLabelsSpec):
            raise MismatchError(
                f"soft labels were asked for; the target of these labels is {self.target.kind}. Choose a label set of soft labels"
            )
        return self.target


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
