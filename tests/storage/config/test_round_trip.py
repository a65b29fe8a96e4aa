"""Every config that is valid survives being dumped and loaded."""

import json
from typing import Any, Literal, get_args, get_origin

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from storage.config import ExperimentConfig, TrainingConfig, load_config
from storage.config.load import parse_config
from storage.config.schema import members, sections

JSON_VALUES = st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-1, 1) | st.text(max_size=4)


def _sections(model: type[BaseModel]) -> st.SearchStrategy[dict[str, Any]]:
    values = {name: _values(field.annotation, field.metadata) for name, field in model.model_fields.items()}
    # The kind finds the variant of a union, so it is always given.
    required = {name: values.pop(name) for name, field in model.model_fields.items() if field.is_required() or name == "kind"}
    return st.fixed_dictionaries(required, optional=values)


def _values(annotation: Any, constraints: list[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(*(_member_values(member, constraints) for member in members(annotation)))


def _member_values(member: Any, constraints: list[Any]) -> st.SearchStrategy[Any]:
    origin, arguments = get_origin(member), get_args(member)
    bounds = {name: getattr(c, name) for c in constraints for name in ("ge", "gt", "le", "lt") if hasattr(c, name)}
    if member is type(None):
        return st.none()
    if origin is Literal:
        return st.sampled_from(arguments)
    least = {"min_size": next((c.min_length for c in constraints if hasattr(c, "min_length")), 0)}
    if origin is dict and sections(arguments[1]):
        return st.dictionaries(
            _values(str, arguments[0].__metadata__[0].metadata), _values(arguments[1], []), max_size=3, **least
        )
    if origin is dict:
        return st.dictionaries(
            st.text(max_size=4), JSON_VALUES if arguments[1] is Any else _values(arguments[1], []), max_size=3, **least
        )
    if origin is tuple:
        # Positive numbers below the bound of layers: what every list of numbers takes.
        item = {str: st.text(max_size=9), float: st.floats(0.1, 0.9)}.get(arguments[0], st.integers(1, 4096))
        if sections(arguments[0]) or get_origin(arguments[0]) in (Literal, tuple):
            item = _values(arguments[0], [])
        count = (
            {"max_size": 3, **least} if arguments[-1] is Ellipsis else {"min_size": len(arguments), "max_size": len(arguments)}
        )
        return st.lists(item, **count)
    if isinstance(member, type) and issubclass(member, BaseModel):
        return _sections(member)
    if member is bool:
        return st.booleans()
    if member is int:
        return st.integers(bounds.get("ge"), bounds["lt"] - 1 if "lt" in bounds else bounds.get("le"))
    if member is float:
        low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
        return st.floats(low, high, exclude_min="gt" in bounds, exclude_max="lt" in bounds, allow_nan=False, allow_infinity=False)
    pattern = next((c.pattern for c in constraints if getattr(c, "pattern", None)), None)
    return st.from_regex(pattern, fullmatch=True) if pattern else st.text(max_size=9)


def _valid_config(data: dict[str, Any]) -> ExperimentConfig | None:
    """Return None where a check across keys fails; a key by itself is always valid here."""
    try:
        return ExperimentConfig.model_validate_json(json.dumps(data))
    except ValidationError as error:
        if {details["type"] for details in error.errors()} == {"value_error"}:
            return None
        raise


@given(data=_sections(ExperimentConfig))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
def test_a_config_that_is_dumped_and_loaded_is_the_same(data, tmp_path):
    config = _valid_config(data)
    assume(config is not None)
    file = tmp_path / "experiment.yaml"
    file.write_text(json.dumps(config.model_dump(mode="json")), encoding="utf-8")
    assert load_config(file) == config
    assert parse_config(config.model_dump(mode="json"), origin="dump") == config


@pytest.mark.parametrize(
    "data",
    [
        {"name": "least"},
        {"name": "source", "source": {"kind": "image_folder", "path": "pictures"}},
        {"name": "source", "source": {"kind": "webdataset", "path": ["{00..09}.tar", "more/*.tar"]}},
        {"name": "source", "source": {"kind": "parquet", "path": "s3://bucket/train.parquet"}},
        {"name": "teacher", "teacher": {"kind": "timm", "name": "vit_base_patch16_224"}},
        {"name": "views", "views": {"kind": "random_resized_crop"}},
        {"name": "exact", "target": {"codec": {"kind": "exact"}}},
        {"name": "sampled", "target": {"codec": {"kind": "sampled"}}},
        {"name": "targets", "targets": {"a": {}, "b": {"kind": "hidden_states", "layers": [1, 4]}}},
        *(
            {"name": "texts", "source": {"kind": kind, "path": "texts"}, "views": {"kind": views}}
            for kind in ("text", "jsonl", "delimited")
            for views in ("tokens", "masked_tokens")
        ),
        *(
            {
                "name": "training",
                "cache": "cache",
                "teacher": {"kind": "timm", "name": "vit_base_patch16_224"},
                "training": {
                    "output": "runs/x",
                    "source": {"kind": "image_folder", "path": "pictures"},
                    "student": {"name": "vit_tiny_patch16_224"},
                    "targets": {"kind": kind},
                    "evaluation": {"source": {"kind": "image_folder", "path": "pictures"}},
                },
            }
            for kind in ("cached", "hard", "live")
        ),
    ],
)
def test_defaults_that_are_written_out_change_nothing(data):
    config = parse_config(data, origin="test")
    assert parse_config(config.model_dump(mode="json"), origin="dump") == config


def test_lists_become_tuples_and_integers_become_numbers():
    training = {
        "output": "runs/x",
        "source": {"kind": "image_folder", "path": ["a", "b"]},
        "student": {"name": "vit_tiny_patch16_224"},
        "targets": {"kind": "hard"},
        "optimizer": {"learning_rate": 1},
        "preprocessing": {"size": [32, 48]},
    }
    config = parse_config({"name": "x", "training": training}, origin="test")
    assert isinstance(config.training, TrainingConfig)
    assert config.training.source is not None
    assert config.training.source.path == ("a", "b")
    assert config.training.preprocessing.size == (32, 48)
    assert type(config.training.optimizer.learning_rate) is float
