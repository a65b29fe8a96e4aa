"""Where a config leaves the size of pictures open, the student says it; one nobody knows is named as such."""

from __future__ import annotations

import pytest

from storage.errors import ConfigError
from student_training.student_views import student_view
from tests.student_training.support import make_config


def config_of(folder, **student):
    return make_config(folder / "pictures", folder / "run", student=student)


def test_the_size_is_that_of_the_student(tmp_path):
    for name, size in (("resnet18", (224, 224)), ("resnet18.a1_in1k", (224, 224)), ("test_vit", (160, 160))):
        config = config_of(tmp_path, name=name)
        assert student_view(config, config.training).size == size


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnet18x", r"training.student.name: timm .* has no model 'resnet18x'. Did you mean 'resnet18'\?"),
        ("resnet18.bogus", r"training.student.name: timm .* has no weights 'bogus' of resnet18\. .*Or leave out \.bogus"),
        ("hf-hub:somebody/something", "training.preprocessing.size: is needed"),
    ],
)
def test_a_name_nobody_knows_is_named(tmp_path, name, said):
    config = config_of(tmp_path, name=name)
    with pytest.raises(ConfigError, match=said):
        student_view(config, config.training)
