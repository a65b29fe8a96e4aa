"""Whether a label set serves a config: every field that differs is named, with both values."""

from __future__ import annotations

import json

import pytest

from storage.config import ExperimentConfig
from storage.errors import MismatchError
from storage.serving import served_picture_target, served_target
from storage.specs import CompactCodec, SoftLabelsSpec
from tests.storage.caches import make_labeller, make_request

VIEWS = {"kind": "random_resized_crop", "count": 2}
TARGET = {"k": 3, "codec": {"kind": "compact"}, "generation_temperature": 1.0}


@pytest.fixture(scope="module")
def label_set(tmp_path_factory):
    return make_labeller(tmp_path_factory.mktemp("serving")).label()


def config(*, views=VIEWS, target=TARGET):
    return ExperimentConfig.model_validate_json(json.dumps({"name": "test", "views": views, "target": target}))


def problems(label_set, *, sections=None, **options):
    """Lines of the message between the first and the last."""
    try:
        served_target(label_set, config=config(**options), sections=sections)
    except MismatchError as error:
        first, *lines, last = str(error).splitlines()
        assert first == f"label set 'tiny' ({label_set.manifest.id}) does not serve this config:"
        assert "Run decant label with this config, or name another label set" in last
        return [line.strip() for line in lines]
    return []


def test_the_config_of_the_labels_is_served(label_set):
    assert problems(label_set) == []
    given = {
        "size": [8, 8],
        "scale": [0.08, 1.0],
        "ratio": [0.75, 4 / 3],
        "flip_probability": 0.5,
        "interpolation": "bicubic",
        "seed": 0,
    }
    assert problems(label_set, views={**VIEWS, **given}) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"count": 3}, "views.count: the config asks for 3, the label set holds 2"),
        ({"size": [8, 9]}, "views.size: the config asks for (8, 9), the label set holds (8, 8)"),
        ({"scale": [0.5, 1.0]}, "views.scale: the config asks for (0.5, 1.0), the label set holds (0.08, 1.0)"),
        ({"ratio": [1.0, 1.0]}, "views.ratio: the config asks for (1.0, 1.0), the label set holds (0.75, 1.3333333333333333)"),
        ({"flip_probability": 0.0}, "views.flip_probability: the config asks for 0.0, the label set holds 0.5"),
        ({"interpolation": "box"}, "views.interpolation: the config asks for 'box', the label set holds 'bicubic'"),
        ({"seed": 1}, "views.seed: the config asks for 1, the label set holds 0"),
    ],
)
def test_every_field_of_the_views_counts(label_set, changes, said):
    assert problems(label_set, views={**VIEWS, **changes}) == [said]
    assert problems(label_set, views={**VIEWS, **changes}, sections={"target"}) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"k": 4}, "target: the label set cannot serve the config's: target.k is 3, less than 4"),
        ({"k": 11}, "target.k: the config asks for 11, the label set holds 10 classes"),
        ({"k": None}, "target: the label set cannot serve the config's: it keeps the top 3 classes, not every one above a level"),
        (
            {"codec": {"kind": "exact"}},
            "target: the label set cannot serve the config's: its compact codec has rounded the probabilities that the exact one keeps",
        ),
        (
            {"generation_temperature": 2.0},
            "target: the label set cannot serve the config's: target.generation_temperature is 1.0, not 2.0",
        ),
    ],
)
def test_every_field_of_the_target_counts(label_set, changes, said):
    assert problems(label_set, target={**TARGET, **changes}) == [said]
    assert problems(label_set, target={**TARGET, **changes}, sections={"views"}) == []


def test_all_differences_are_said_at_once(label_set):
    found = problems(label_set, views={**VIEWS, "count": 5, "seed": 9}, target={**TARGET, "k": 4})
    assert [line.split(":")[0] for line in found] == ["views.count", "views.seed", "target"]


def test_a_wider_label_set_serves_a_narrower_target(label_set):
    narrower = {**TARGET, "k": 2, "codec": {"kind": "compact", "levels": 100}}
    asked = SoftLabelsSpec(num_classes=10, k=2, codec=CompactCodec(levels=100))
    assert served_target(label_set, config=config(target=narrower)) == asked
    assert served_target(label_set, config=config(target=narrower), sections={"views"}) == label_set.manifest.request.target


def test_evaluation_views_and_random_views_do_not_serve_each_other(label_set, tmp_path):
    found = problems(label_set, views={"kind": "evaluation"})
    assert found[0] == "views.kind: the config asks for 'evaluation', the label set holds 'random_resized_crop'"
    assert found[1] == "views.count: the config asks for 1, the label set holds 2"
    evaluated = make_labeller(tmp_path, request=make_request(num_views=1)).label(num_views=1)
    assert problems(evaluated, views={"kind": "evaluation"}) == []
    asked = problems(evaluated, views={**VIEWS, "count": 1})
    assert asked[0] == "views.kind: the config asks for 'random_resized_crop', the label set holds 'evaluation'"
    assert "views.scale: the config asks for (0.08, 1.0), the label set holds None" in asked


def test_targets_of_any_kind(label_set):
    """By name, narrowed; what is of another kind, or of other views, is refused."""
    stored = label_set.manifest.request.target

    def experiment(*, views=VIEWS, **targets):
        return ExperimentConfig.model_validate_json(json.dumps({"name": "test", "views": views, "targets": targets}))

    def served(config, *, name="labels", sections=None):
        return served_picture_target(label_set, config=config, name=name, sections=sections)

    assert served(experiment(labels=TARGET)) == stored
    assert served(experiment(labels={**TARGET, "k": 2})).k == 2
    assert served(experiment(labels=TARGET), name="not there") == stored
    with pytest.raises(
        MismatchError, match="targets.labels: the label set cannot serve the config's: it holds soft_labels, not emb"
    ):
        served(experiment(labels={"kind": "embeddings"}))
    with pytest.raises(MismatchError, match="views.seed: the config asks for 1, the label set holds 0"):
        served(experiment(views={**VIEWS, "seed": 1}, labels=TARGET))
    assert served(experiment(views={**VIEWS, "seed": 1}, labels={"kind": "embeddings"}), sections=set()) == stored
