"""What is particular to teachers from a user's own code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.teachers import Teacher, load_teacher
from storage.config import TeacherConfig
from storage.errors import TeacherError

CODE = """
import timm
import torch

PREPROCESSING = {"input_size": (3, 16, 16), "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "crop_pct": 1.0}

class Pool(torch.nn.Module):
    def __init__(self, num_classes=2, scale=1.0, mode="logits"):
        super().__init__()
        self.head = torch.nn.Linear(3, num_classes)
        torch.nn.init.constant_(self.head.weight, scale)
        torch.nn.init.zeros_(self.head.bias)
        self.mode = mode

    def forward(self, pixels):
        logits = self.head(pixels.mean((2, 3)))
        return {
            "logits": lambda: logits,
            "infinite": lambda: logits / 0,
            "tuple": lambda: (logits, logits),
            "map": lambda: logits[:, :, None],
            "one row": lambda: logits[:1],
            "numpy": lambda: logits.cpu().numpy(),
            "float32 constant": lambda: logits @ torch.eye(logits.shape[1]),
        }[self.mode]()

def described(names=None, **kwargs):
    return Pool(**kwargs), PREPROCESSING | ({"label_names": names} if names else {})

def carrying(**kwargs):
    module = Pool(**kwargs)
    module.pretrained_cfg = PREPROCESSING
    return module

def from_timm():
    return timm.create_model("test_resnet", num_classes=4)

def undescribed():
    return Pool()

def misspelt():
    return Pool(), PREPROCESSING | {"crop_percent": 0.9}

def wrong():
    return "a string"

def broken():
    raise RuntimeError("no such file: weights.bin")

LIMIT = 3
"""


@pytest.fixture(autouse=True)
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "decant_own_models"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "pools.py").write_text(CODE)
    (package / "needy.py").write_text("import decant_not_installed")
    (package / "typo.py").write_text("1 +")
    monkeypatch.syspath_prepend(tmp_path)


def load(factory: str, **fields: Any) -> Teacher:
    name = factory if ":" in factory else f"decant_own_models.pools:{factory}"
    return load_teacher(TeacherConfig(kind="factory", name=name, device="cpu", **fields))


def test_description_may_come_with_the_module_or_on_it() -> None:
    beside, on = load("described"), load("carrying")
    assert beside.preprocessing == on.preprocessing
    assert beside.preprocessing.input_size == (16, 16)
    assert beside.spec.weights_sha256 == on.spec.weights_sha256
    assert load("from_timm").preprocessing.input_size == (160, 160)


def test_identity_is_name_arguments_and_weights() -> None:
    spec = load("described", kwargs={"scale": 2.0, "num_classes": 3}).spec
    assert spec.architecture == 'decant_own_models.pools:described{"num_classes":3,"scale":2.0}'
    assert spec == load("described", kwargs={"num_classes": 3, "scale": 2.0}).spec
    assert spec.num_classes == 3


def test_class_names_come_from_the_description() -> None:
    assert load("described", kwargs={"names": ["cat", "dog"]}).class_names == ("cat", "dog")
    with pytest.raises(TeacherError, match="names 3 classes but gives 2 logits"):
        load("described", kwargs={"names": ["cat", "dog", "eel"]})


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("decant_own_models.pools", r"must be written package\.module:factory"),
        ("decant_own_models.pool:described", r"no module decant_own_models\.pool\. Did you mean 'decant_own_models\.pools'\?"),
        ("decant_own_model.pools:described", r"no module decant_own_model\. Did you mean 'decant_own_models'\?.*PYTHONPATH"),
        ("qqzzqq:x", r"there is no module qqzzqq\. Install the package"),
        ("decant_own_models.pools:describe", r"holds nothing callable under 'describe'\. Did you mean 'described'\?"),
        ("decant_own_models.pools:LIMIT", r"holds a int, not a callable, under 'LIMIT'"),
        ("decant_own_models.needy:x", r"importing decant_own_models\.needy needs decant_not_installed; install it"),
        ("decant_own_models.typo:x", r"importing decant_own_models\.typo failed: SyntaxError"),
    ],
)
def test_name_that_cannot_be_imported_is_explained(name: str, said: str) -> None:
    with pytest.raises(TeacherError, match=said):
        load_teacher(TeacherConfig(kind="factory", name=name, device="cpu"))


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("undescribed", r"does not say what pictures its network takes\. Return \(module, \{'input_size'"),
        ("misspelt", r"no entry 'crop_percent'\. Did you mean 'crop_pct'\?"),
        ("wrong", r"returned str; it must return a torch\.nn\.Module"),
        ("broken", r"failed with kwargs \{\}: RuntimeError: no such file: weights\.bin"),
    ],
)
def test_factory_that_gives_no_teacher_is_explained(factory: str, said: str) -> None:
    with pytest.raises(TeacherError, match=said):
        load(factory)


def test_unknown_argument_is_explained() -> None:
    with pytest.raises(TeacherError, match=r"failed with kwargs \{'sacle': 2\}: TypeError"):
        load("described", kwargs={"sacle": 2})


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("tuple", "returned tuple"),
        ("map", r"returned a tensor of shape \[2, 2, 1\]"),
        ("one row", r"returned a tensor of shape \[1, 2\]"),
        ("numpy", "returned ndarray"),
    ],
)
def test_network_that_does_not_give_logits_is_refused(mode: str, said: str) -> None:
    with pytest.raises(TeacherError, match=rf"{said} for a batch of 2 views .* it must return logits \[batch, classes\]"):
        load("described", kwargs={"mode": mode})


def test_network_that_is_bound_to_float32_is_refused_in_another_precision() -> None:
    load("described", kwargs={"mode": "float32 constant"})
    with pytest.raises(TeacherError, match=r"failed on a batch of 2 views .*bfloat16.*fp32 always works"):
        load("described", kwargs={"mode": "float32 constant"}, precision="bf16")


def test_weights_that_fp16_cannot_hold_are_refused() -> None:
    with pytest.raises(TeacherError, match=r"beyond 65504 in head\.weight: in fp16 they would become infinite"):
        load("described", kwargs={"scale": 1e5}, precision="fp16")
    assert load("described", kwargs={"scale": 1e5}, precision="bf16").spec.precision == "bf16"


def test_logits_that_are_not_finite_are_refused() -> None:
    with pytest.raises(TeacherError, match="gives logits that are not finite for a grey picture"):
        load("described", kwargs={"mode": "infinite"})


def test_arguments_that_are_not_json_are_refused() -> None:
    with pytest.raises(TeacherError, match=r"teacher\.kwargs of .* cannot be part of an identity"):
        load("described", kwargs={"names": {"cat", "dog"}})
