"""Weights: one hash for one function, and no partial load."""

from __future__ import annotations

import argparse
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from pipelines.teachers.weights import load_weights, read_checkpoint, weights_sha256
from storage.errors import TeacherError


def small_state() -> dict[str, torch.Tensor]:
    return {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor(3), "c": torch.tensor([1.5, -2.0], dtype=torch.bfloat16)}


def test_hash_is_frozen() -> None:
    assert weights_sha256(small_state()) == "fc7811452dd9b97fd469c2f25d873c886583e4aecd47597d36d76937a29d96cd"


def test_hash_ignores_order_layout_and_gradients() -> None:
    state = small_state()
    assert weights_sha256(OrderedDict(reversed(state.items()))) == weights_sha256(state)
    pixels = torch.arange(120.0).reshape(2, 3, 4, 5)
    assert weights_sha256({"w": pixels.to(memory_format=torch.channels_last)}) == weights_sha256({"w": pixels})
    assert weights_sha256({"w": torch.arange(240.0)[::2]}) == weights_sha256({"w": torch.arange(0.0, 240.0, 2.0)})
    assert weights_sha256({"w": torch.nn.Parameter(pixels)}) == weights_sha256({"w": pixels})


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state | {"b": state["b"] + 1e-6 * torch.tensor([0, 0, 1.0])},
        lambda state: state | {"b": state["b"].reshape(3, 2)},
        lambda state: state | {"a": state["a"].to(torch.int32)},
        lambda state: state | {"d": torch.empty(0)},
        lambda state: {"b2" if name == "b" else name: tensor for name, tensor in state.items()},
        lambda state: {name: tensor for name, tensor in state.items() if name != "a"},
    ],
)
def test_hash_sees_every_change(change: Callable[[Any], Any]) -> None:
    assert weights_sha256(change(small_state())) != weights_sha256(small_state())


def test_hash_of_a_module_covers_persistent_buffers_only() -> None:
    module = torch.nn.BatchNorm1d(3)
    before = weights_sha256(module)
    module.register_buffer("cache", torch.ones(2), persistent=False)
    assert weights_sha256(module) == before == weights_sha256(module.state_dict())
    module.running_mean += 1
    assert weights_sha256(module) != before


WRAPPINGS = {
    "plain": lambda state: state,
    "model": lambda state: {"model": state, "epoch": 3, "optimizer": {"state": {0: torch.ones(1)}, "lr": 0.1}},
    "timm": lambda state: {"state_dict": state, "args": argparse.Namespace(lr=0.1, model="x"), "metric": 71.5},
    "ema": lambda state: {"model_ema": state, "epoch": 1},
    "parallel": lambda state: {"model": {f"module.{name}": tensor for name, tensor in state.items()}},
    "compiled": lambda state: {f"module._orig_mod.{name}": tensor for name, tensor in state.items()},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_wrappers_of_training_scripts_are_taken_off(tmp_path: Path, wrapping: str) -> None:
    torch.save(WRAPPINGS[wrapping](small_state()), tmp_path / "weights.pth")
    assert weights_sha256(read_checkpoint(str(tmp_path / "weights.pth"))) == weights_sha256(small_state())


def test_safetensors_and_torch_files_hold_the_same(tmp_path: Path, save_state: Callable[..., str]) -> None:
    hashes = {
        weights_sha256(read_checkpoint(save_state(small_state(), tmp_path / name))) for name in ("a.safetensors", "a.pt", "a.bin")
    }
    assert hashes == {weights_sha256(small_state())}


def test_checkpoint_with_two_sets_of_weights_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": small_state(), "state_dict_ema": small_state()}, tmp_path / "best.pt")
    with pytest.raises(
        TeacherError, match=r"holds 2 sets of weights \(state_dict, state_dict_ema\).*\['state_dict_ema'\], new_path\)"
    ):
        read_checkpoint(str(tmp_path / "best.pt"))


@pytest.mark.parametrize(
    ("content", "said"),
    [({"epoch": 3, "loss": 0.5}, "entries epoch, loss"), ([1, 2], "a list"), ({}, "a dict"), (torch.ones(2), "a Tensor")],
)
def test_file_without_a_state_dict_is_refused(tmp_path: Path, content: object, said: str) -> None:
    torch.save(content, tmp_path / "odd.pt")
    with pytest.raises(TeacherError, match=f"holds no state dict but {said}"):
        read_checkpoint(str(tmp_path / "odd.pt"))


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    torch.save({"model": small_state(), "extra": Bomb(tmp_path / "ran")}, tmp_path / "bomb.pt")
    with pytest.raises(TeacherError, match=r"could run code.*convert it once"):
        read_checkpoint(str(tmp_path / "bomb.pt"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt"])
@pytest.mark.parametrize("kept_share", [0.0, 0.5, 0.98])
def test_truncated_file_is_refused(tmp_path: Path, save_state: Callable[..., str], name: str, kept_share: float) -> None:
    path = tmp_path / name
    save_state({"w": torch.randn(500)}, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept_share * len(data))])
    with pytest.raises(TeacherError, match=r"teacher\.checkpoint .*weights.* cannot be read"):
        read_checkpoint(str(path))


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "best_model.safetensors").touch()
    with pytest.raises(TeacherError, match=r"does not exist. Did you mean .*best_model.safetensors\?"):
        read_checkpoint(str(tmp_path / "best-model.safetensors"))
    with pytest.raises(TeacherError, match=r"neither does the folder"):
        read_checkpoint(str(tmp_path / "nowhere" / "x.pt"))
    with pytest.raises(TeacherError, match=r"is a folder; give the weights file"):
        read_checkpoint(str(tmp_path))


@pytest.fixture
def resnet() -> torch.nn.Module:
    return timm.create_model("test_resnet", num_classes=10)


def refuse(module: torch.nn.Module, state: dict[str, torch.Tensor]) -> str:
    before = weights_sha256(module)
    with pytest.raises(TeacherError, match=r"checkpoint best.pt does not fit test_resnet, so nothing was loaded") as caught:
        load_weights(module, state, checkpoint="best.pt", name="test_resnet")
    assert weights_sha256(module) == before
    return str(caught.value)


def test_exact_state_is_loaded(resnet: torch.nn.Module) -> None:
    state = {name: torch.full_like(tensor, 2) for name, tensor in resnet.state_dict().items()}
    load_weights(resnet, state, checkpoint="best.pt", name="test_resnet")
    assert weights_sha256(resnet) == weights_sha256(state)


def test_other_number_of_classes_is_named(resnet: torch.nn.Module) -> None:
    message = refuse(resnet, timm.create_model("test_resnet", num_classes=37).state_dict())
    assert "2 of another shape (fc.weight is [37, 96] in the checkpoint, [10, 96] in the model" in message
    assert "set teacher.num_classes: 37 (the model was built for 10)" in message


def test_missing_and_unexpected_tensors_are_named(resnet: torch.nn.Module) -> None:
    state = dict(resnet.state_dict())
    state["fc.scale"] = state.pop("fc.bias")
    message = refuse(resnet, state)
    assert "1 missing in the checkpoint (fc.bias)" in message
    assert "1 unexpected in it (fc.scale)" in message
    assert "another variant of the architecture" in message


def test_long_lists_are_cut(resnet: torch.nn.Module) -> None:
    state = {name: tensor for name, tensor in resnet.state_dict().items() if not name.startswith("layer1")}
    assert "layer1.0.conv1.weight, layer1.0.bn1.weight, layer1.0.bn1.bias, and " in refuse(resnet, state)


def test_other_architecture_is_named(resnet: torch.nn.Module) -> None:
    message = refuse(resnet, timm.create_model("test_vit", num_classes=10).state_dict())
    assert "No name is shared: the checkpoint is of another architecture" in message


def test_outer_module_is_named(resnet: torch.nn.Module) -> None:
    message = refuse(resnet, {f"backbone.{name}": tensor for name, tensor in resnet.state_dict().items()})
    assert "begins with 'backbone.': save the inner model's state dict" in message


def test_other_input_size_is_named() -> None:
    module = timm.create_model("test_vit", img_size=32)
    with pytest.raises(TeacherError, match=r"pos_embed is .*Likely the input size: set the model's img_size"):
        load_weights(module, timm.create_model("test_vit", img_size=64).state_dict(), checkpoint="best.pt", name="test_vit")


def test_counters_of_batch_norms_may_be_missing(resnet: torch.nn.Module) -> None:
    state = {name: tensor for name, tensor in resnet.state_dict().items() if "num_batches_tracked" not in name}
    assert len(state) < len(resnet.state_dict())
    before = weights_sha256(resnet)
    load_weights(resnet, state, checkpoint="best.pt", name="test_resnet")
    assert weights_sha256(resnet) == before
