"""Views of pictures where no teacher has said which: the config's, at the student's size."""

from __future__ import annotations

import timm

from storage.config import ExperimentConfig, TrainingConfig
from storage.config.labels import EvaluationViewsConfig, RandomViewsConfig
from storage.errors import ConfigError
from storage.specs import EvaluationView, RandomResizedCropView, Size, ViewSpec
from student_training.students import check_name

OTHER_VIEWS = "imported labels: the student sees one fixed view of each picture, not the views that the teacher saw"


def student_view(config: ExperimentConfig, training: TrainingConfig) -> ViewSpec:
    """Return the views of a run without labels: the config's, at the student's input size where it leaves that open.

    Raises:
        ConfigError: they are of texts, or nothing says how large pictures are.
    """
    views, preprocessing = config.views, training.preprocessing
    size = preprocessing.size or getattr(views, "size", None) or _default_size(training)
    interpolation = preprocessing.interpolation or "bicubic"
    if views.of_text:
        raise ConfigError(f"views.kind: {views.kind} is of texts; a student of pictures needs evaluation or random_resized_crop")
    if isinstance(views, EvaluationViewsConfig):
        fraction = preprocessing.crop_fraction or 1.0
        return EvaluationView(
            size=size, resize_size=(int(size[0] / fraction), int(size[1] / fraction)), interpolation=interpolation
        )
    assert isinstance(views, RandomViewsConfig)
    return RandomResizedCropView(
        size=size,
        scale=views.scale,
        ratio=views.ratio,
        flip_probability=views.flip_probability,
        interpolation=views.interpolation or interpolation,
        seed=views.seed,
    )


def _default_size(training: TrainingConfig) -> Size:
    given = training.picture_student.kwargs.get("img_size")
    if isinstance(given, int):
        return (given, given)
    check_name(training.picture_student.name)
    known = timm.get_pretrained_cfg(training.picture_student.name, allow_unregistered=True)
    if known is None:
        raise ConfigError(
            f"training.preprocessing.size: is needed, since timm does not know the input size of {training.picture_student.name}"
        )
    _, height, width = known.input_size
    return (height, width)
