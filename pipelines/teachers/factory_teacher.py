"""Teachers from your own code: `package.module:factory`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pipelines.teachers.assembly import assemble_teacher
from pipelines.teachers.base import Teacher, canonical_architecture, describe
from pipelines.teachers.preprocessing import timm_preprocessing
from pipelines.teachers.weights import load_weights, read_checkpoint
from storage.config import TeacherConfig
from storage.errors import TeacherConfigError, TeacherError
from storage.naming import did_you_mean, nearest

if TYPE_CHECKING:
    import torch

_PREPROCESSING = ("input_size", "mean", "std", "crop_pct", "crop_mode", "interpolation", "label_names")


def load_factory_teacher(config: TeacherConfig) -> Teacher:
    """Call `factory(**kwargs)` and load `config.checkpoint` into what it returns, where one is given.

    The factory returns a torch module that maps normalised float [B, 3, H, W] to logits [B, C]; and says what pictures it
    takes, either as `(module, preprocessing)` or by a `pretrained_cfg` on the module: timm's keys `input_size` (3, H, W),
    `mean`, `std`, and optionally `crop_pct`, `crop_mode`, `interpolation` and `label_names`.

    The identity of such a teacher is the dotted name, the kwargs and the weights, not the factory's code: rename the factory
    when its forward pass changes.

    Raises:
        TeacherError: the name cannot be imported, the factory fails or returns something else, the checkpoint does not fit.
    """
    made = call_factory(config)
    module, description = _take_apart(made, name=config.name)
    if config.checkpoint is not None:
        load_weights(module, read_checkpoint(config.checkpoint), checkpoint=config.checkpoint, name=config.name)
    return assemble_teacher(
        module,
        config=config,
        architecture=canonical_architecture(config.name, config.kwargs),
        preprocessing=timm_preprocessing(description, name=config.name),
        class_names=tuple(description["label_names"]) if description.get("label_names") else None,
    )


def call_factory(config: TeacherConfig) -> Any:
    """Return what the factory of a config makes.

    Raises:
        TeacherError: the name cannot be imported, or the factory fails.
    """
    factory = import_factory(config.name)
    try:
        return factory(**config.kwargs)
    except Exception as error:
        raise TeacherError(
            f"teacher factory {config.name} failed with kwargs {config.kwargs}: {describe(error)}. Correct the factory or "
            "teacher.kwargs"
        ) from error


def import_factory(name: str) -> Callable[..., Any]:
    """Return what `package.module:factory` names.

    Raises:
        TeacherError: there is no such thing, or it cannot be imported or called.
    """
    module_name, separator, attribute = name.partition(":")
    if not (separator and module_name and attribute):
        raise TeacherConfigError(
            f"teacher.name: teacher factory {name!r} must be written package.module:factory, for instance my_models.teachers:vit"
        )
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise TeacherError(f"teacher factory {name}: importing {module_name} needs {error.name}; install it") from error
        raise TeacherConfigError(
            f"teacher.name: teacher factory {name}: there is no module {error.name}."
            f"{did_you_mean(error.name, _sibling_modules(error.name))} "
            "Install the package that holds it, or put its folder on PYTHONPATH"
        ) from error
    except Exception as error:
        raise TeacherError(f"teacher factory {name}: importing {module_name} failed: {describe(error)}") from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        what = "nothing callable" if factory is None else f"a {type(factory).__name__}, not a callable,"
        raise TeacherConfigError(
            f"teacher.name: teacher factory {name}: {module_name} holds {what} under {attribute!r}."
            f"{did_you_mean(attribute, names)}"
        )
    return factory


def _sibling_modules(name: str) -> list[str]:
    """Return the modules beside one that does not exist; at the top level, with its hundreds, only the nearest."""
    parent, _, _ = name.rpartition(".")
    if not parent:
        match = nearest(name, (info.name for info in pkgutil.iter_modules()))
        return [] if match is None else [match]
    path = getattr(importlib.import_module(parent), "__path__", [])
    return [f"{parent}.{info.name}" for info in pkgutil.iter_modules(path)]


def _take_apart(made: object, *, name: str) -> tuple[torch.nn.Module, Mapping[str, Any]]:
    import torch

    if isinstance(made, torch.nn.Module):
        description = getattr(made, "pretrained_cfg", None) or getattr(made, "default_cfg", None)
        if not isinstance(description, Mapping):
            raise TeacherError(
                f"teacher factory {name} does not say what pictures its network takes. Return (module, {{'input_size': (3, 224, "
                "224), 'mean': (0.485, 0.456, 0.406), 'std': (0.229, 0.224, 0.225)}), or set module.pretrained_cfg to the same"
            )
        return made, description
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], torch.nn.Module) and isinstance(made[1], Mapping):
        for key in made[1]:
            if key not in _PREPROCESSING:
                raise TeacherError(
                    f"teacher factory {name}: preprocessing has no entry {key!r}.{did_you_mean(key, _PREPROCESSING)}"
                )
        return made
    raise TeacherError(
        f"teacher factory {name} returned {type(made).__name__}; it must return a torch.nn.Module, or (module, preprocessing)"
    )
