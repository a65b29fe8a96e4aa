"""What a label is true of: frozen, hashed descriptions of views, targets, teachers and parts.

Everything here is identity. How to run (workers, devices) lives in `storage.config`; what was measured lives in part records.
"""

from storage.specs.base import Spec
from storage.specs.features import (
    MAX_TENSORS,
    AttentionSpec,
    EmbeddingsSpec,
    FeatureCodecSpec,
    FeaturesSpec,
    Float16Codec,
    HiddenStatesSpec,
    Int8Codec,
    RelationsSpec,
)
from storage.specs.image_views import EvaluationView, ImportedView, Interpolation, RandomResizedCropView, Size, ViewSpec
from storage.specs.parts import AnyView, PartSpec, RequestSpec, TargetSpec
from storage.specs.soft_labels import (
    QUALITY_CAP,
    CodecSpec,
    CompactCodec,
    DenseCodec,
    ExactCodec,
    Positions,
    SampledCodec,
    SoftLabelsSpec,
    ThresholdCodec,
)
from storage.specs.teachers import ImportedTeacher, Normalization, TeacherSpec, TextTeacherSpec
from storage.specs.text_views import MaskedTokensView, TextViewSpec, TokensView

__all__ = [
    "MAX_TENSORS",
    "QUALITY_CAP",
    "AnyView",
    "AttentionSpec",
    "CodecSpec",
    "CompactCodec",
    "DenseCodec",
    "EmbeddingsSpec",
    "EvaluationView",
    "ExactCodec",
    "FeatureCodecSpec",
    "FeaturesSpec",
    "Float16Codec",
    "HiddenStatesSpec",
    "ImportedTeacher",
    "ImportedView",
    "Int8Codec",
    "Interpolation",
    "MaskedTokensView",
    "Normalization",
    "PartSpec",
    "Positions",
    "RandomResizedCropView",
    "RelationsSpec",
    "RequestSpec",
    "SampledCodec",
    "Size",
    "SoftLabelsSpec",
    "Spec",
    "TargetSpec",
    "TeacherSpec",
    "TextTeacherSpec",
    "TextViewSpec",
    "ThresholdCodec",
    "TokensView",
    "ViewSpec",
]
