"""From a config and a teacher to the request that is hashed."""

from __future__ import annotations

import pytest

from pipelines.request import check_classes, resolve_request
from pipelines.teacher_memo import TeacherFacts
from storage.errors import ConfigError
from storage.specs import EvaluationView, Normalization, RandomResizedCropView, TeacherSpec
from tests.pipelines.support import colour_teacher, config_of, experiment, folder_source

EVALUATION = EvaluationView(size=(32, 24), resize_size=(36, 27), interpolation="bilinear")


def facts(*, num_classes=5, class_names=None):
    spec = TeacherSpec(
        kind="timm",
        architecture="some",
        weights_sha256="a" * 64,
        num_classes=num_classes,
        normalization=Normalization(mean=(0.5,), std=(0.5,)),
        precision="fp32",
    )
    return TeacherFacts(spec=spec, evaluation=EVALUATION, class_names=class_names)


def request(*, num_classes=5, **sections):
    data = experiment(cache="cache", source=folder_source("pictures"), teacher=colour_teacher(), **sections)
    return resolve_request(config_of(data), facts=facts(num_classes=num_classes))


def test_what_the_config_leaves_open_comes_from_the_teacher():
    view = request(views={"kind": "random_resized_crop", "count": 4}).view
    assert view == RandomResizedCropView(size=(32, 24), interpolation="bilinear")
    assert request(views={"kind": "evaluation"}).view == EVALUATION


def test_what_the_config_says_is_kept():
    section = {
        "size": [8, 16],
        "scale": [0.5, 0.6],
        "ratio": [0.9, 1.1],
        "flip_probability": 0.25,
        "interpolation": "lanczos",
        "seed": 9,
    }
    view = request(views={"kind": "random_resized_crop", "count": 4, **section}).view
    assert {name: value for name, value in view.to_json().items() if name in section} == section


def test_the_target_is_over_the_teachers_classes():
    target = request(num_classes=7, target={"k": 3, "codec": {"kind": "exact"}, "generation_temperature": 2.0}).target
    assert (target.num_classes, target.k, target.codec.kind, target.generation_temperature) == (7, 3, "exact", 2.0)


def test_neither_the_number_of_views_nor_how_it_runs_is_identity():
    one, other = (
        request(views=count, generation={"batch_size": batch, "views_per_part": 1 + count, "workers": count})
        for count, batch in ((1, 8), (3, 64))
    )
    assert one.fingerprint() == other.fingerprint()


@pytest.mark.parametrize(
    "sections",
    [
        {"views": {"kind": "evaluation"}},
        {"views": {"kind": "random_resized_crop", "seed": 1}},
        {"views": {"kind": "random_resized_crop", "interpolation": "bicubic"}},
        {"target": {"k": 3}},
        {"target": {"k": 2, "codec": {"kind": "exact"}}},
        {"target": {"k": 2, "generation_temperature": 1.5}},
    ],
)
def test_whatever_changes_the_labels_is_identity(sections):
    plain = {"views": {"kind": "random_resized_crop"}, "target": {"k": 2}}
    assert request(**{**plain, **sections}).fingerprint() != request(**plain).fingerprint()


def test_k_may_be_all_classes_and_no_more():
    assert request(target={"k": 5}).target.max_entries == 5
    with pytest.raises(ConfigError, match=r"target.k: 6 is larger than the teacher's 5 classes; give at most 5, or k: null"):
        request(target={"k": 6})


def test_class_lists_that_go_together_are_taken():
    check_classes(facts(num_classes=2), source_classes=None)
    check_classes(facts(num_classes=2), source_classes=("a", "b"))
    check_classes(facts(num_classes=3), source_classes=("a", "b"))
    check_classes(facts(num_classes=2, class_names=("a", "b")), source_classes=("a", "b"))
    # ImageNet has two classes called crane.
    check_classes(facts(num_classes=3, class_names=("crane", "ox", "crane")), source_classes=("ox", "crane"))
    check_classes(facts(num_classes=2, class_names=("tench", "goldfish")), source_classes=("n01440764", "n01443537"))


def test_more_classes_than_outputs_are_refused():
    with pytest.raises(ConfigError, match="the source has 3 classes, the teacher 2 outputs: hard labels above 1 have no output"):
        check_classes(facts(num_classes=2), source_classes=("a", "b", "c"))


def test_the_same_classes_in_another_order_are_refused():
    names = ("a", "c", "b")
    with pytest.raises(ConfigError, match="class 1 is 'b' in the source and 'c' in the teacher. Give source.classes in the"):
        check_classes(facts(num_classes=3, class_names=names), source_classes=("a", "b", "c"))


def test_dense_labels_of_more_classes_than_a_block_holds_are_refused_with_their_key():
    assert request(num_classes=838_860, target={"k": None, "codec": {"kind": "dense"}}).target.num_classes == 838_860
    with pytest.raises(
        ConfigError, match=r"^target\.codec\.kind: dense keeps 900,000 probabilities .* choose threshold or sampled"
    ):
        request(num_classes=900_000, target={"k": None, "codec": {"kind": "dense"}})
