"""Specs are identities: what they hash to never changes, and nothing that cannot be is one."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from storage.specs import (
    CompactCodec,
    EvaluationView,
    ExactCodec,
    Float16Codec,
    HiddenStatesSpec,
    PartSpec,
    RandomResizedCropView,
    RequestSpec,
    SoftLabelsSpec,
)
from tests.storage.caches import make_request


def test_fingerprints_never_change():
    # A changed fingerprint makes every cache useless: all would be computed again.
    assert make_request().fingerprint() == "a3923a139fcde010c0574164152250a5b5d1405691f2d77bfb4d1dc707af1528"
    assert (
        make_request(codec=ExactCodec(), num_views=1).fingerprint()
        == "b4179606ec6c86eb6c7f8d0277378fe5bacbd9869ae50f347d0f066dfab9d692"
    )


def test_a_mean_is_told_from_the_sum_that_was_stored_for_it_and_nothing_else_changes():
    mean = HiddenStatesSpec(layers=(3,), tokens="mean", width=4, codec=Float16Codec())
    assert mean.fingerprint() == "c0b74dc3cbbfce53f6bc5fd939797bb258cfb7fc1bb9debeed8fe3c1c5e0d28a"
    assert "mean_version" not in mean.to_json()
    now = HiddenStatesSpec(**{**mean.model_dump(), "codec": Float16Codec(), "mean_version": 2})
    assert now.fingerprint() != mean.fingerprint()
    assert HiddenStatesSpec.model_validate_json(now.model_dump_json()) == now
    with pytest.raises(ValidationError, match="mean_version 2 of tokens: all, which are no mean; leave it out"):
        HiddenStatesSpec(layers=(3,), tokens="all", width=4, codec=Float16Codec(), mean_version=2)


def test_every_field_is_part_of_the_identity():
    base = make_request()
    teacher, view, target = base.teacher, base.view, base.target
    changed = [
        *(
            teacher.model_copy(update=u)
            for u in ({"architecture": "b"}, {"weights_sha256": "0" * 64}, {"precision": "bf16"}, {"kind": "factory"})
        ),
        *(
            view.model_copy(update=u)
            for u in ({"size": (8, 9)}, {"scale": (0.1, 1.0)}, {"ratio": (1.0, 1.0)}, {"flip_probability": 0.0})
        ),
        *(view.model_copy(update=u) for u in ({"interpolation": "box"}, {"seed": 1})),
        *(target.model_copy(update=u) for u in ({"k": 4}, {"codec": ExactCodec()}, {"codec": CompactCodec(levels=9)})),
        target.model_copy(update={"generation_temperature": 2.0}),
    ]
    found = {spec.fingerprint() for spec in changed} | {teacher.fingerprint(), view.fingerprint(), target.fingerprint()}
    assert len(found) == len(changed) + 3


def test_requests_come_back_from_json():
    for request in (make_request(), make_request(codec=ExactCodec()), make_request(k=None), make_request(num_views=1)):
        assert RequestSpec.model_validate_json(request.model_dump_json()) == request


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"num_classes": 10, "k": 11, "codec": ExactCodec()}, "k 11 is larger than the number of classes 10; lower k"),
        ({"num_classes": 10, "k": None, "codec": ExactCodec()}, "k may be left out only with a codec that decides"),
        ({"num_classes": 0, "k": 1, "codec": ExactCodec()}, "num_classes"),
        ({"num_classes": 2**32 + 1, "k": 1, "codec": ExactCodec()}, "num_classes"),
        ({"num_classes": 10, "k": 0, "codec": ExactCodec()}, "k"),
        ({"num_classes": 70_000, "k": 65_536, "codec": ExactCodec()}, "k"),
        ({"num_classes": 10, "k": 3, "codec": ExactCodec(), "generation_temperature": 0.0}, "generation_temperature"),
        ({"num_classes": 10, "k": 3, "codec": ExactCodec(), "generation_temperature": float("inf")}, "generation_temperature"),
        ({"num_classes": 10, "k": "3", "codec": ExactCodec()}, "k"),
        ({"num_classes": 10, "k": 3, "codec": ExactCodec(), "extra": 1}, "extra"),
    ],
)
def test_targets_that_cannot_be_are_refused(values, problem):
    with pytest.raises(ValidationError, match=problem):
        SoftLabelsSpec(**values)


@pytest.mark.parametrize("levels", [0, 256, -1])
def test_levels_are_one_byte(levels):
    with pytest.raises(ValidationError, match="levels"):
        CompactCodec(levels=levels)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (RandomResizedCropView, {"size": (8, 8), "scale": (0.0, 1.0)}),
        (RandomResizedCropView, {"size": (8, 8), "scale": (0.5, 0.4)}),
        (RandomResizedCropView, {"size": (8, 8), "scale": (0.5, 1.1)}),
        (RandomResizedCropView, {"size": (8, 8), "ratio": (0.0, 1.0)}),
        (RandomResizedCropView, {"size": (8, 8), "ratio": (2.0, 1.0)}),
        (RandomResizedCropView, {"size": (0, 8)}),
        (RandomResizedCropView, {"size": (8, 8), "seed": 2**63}),
        (EvaluationView, {"size": (8, 8)}),
        (EvaluationView, {"size": (8, 8), "resize_size": (8, 20_000)}),
    ],
)
def test_views_that_cannot_be_are_refused(kind, values):
    with pytest.raises(ValidationError):
        kind(**values)


@pytest.mark.parametrize(
    ("num_classes", "k", "expected"), [(1000, 10, 10), (1000, None, 255), (100, None, 100), (255, None, 255), (3, 3, 3)]
)
def test_a_row_keeps_no_more_than_its_spec_says(num_classes, k, expected):
    assert SoftLabelsSpec(num_classes=num_classes, k=k, codec=CompactCodec()).max_entries == expected


def test_specs_cannot_be_changed():
    part = PartSpec(request="ab" * 32, unit_digest="cd" * 32, first_view=0, num_views=1)
    with pytest.raises(ValidationError):
        part.num_views = 2
    for values in ({"request": "AB" * 32}, {"unit_digest": "cd"}, {"first_view": -1}, {"num_views": 0}):
        with pytest.raises(ValidationError):
            PartSpec(**{**part.model_dump(), **values})
