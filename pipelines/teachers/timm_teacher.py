"""Teachers from timm, by model name or hub tag."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.teachers.assembly import assemble_teacher
from pipelines.teachers.base import Teacher, canonical_architecture, describe
from pipelines.teachers.picture_networks import TimmNetwork
from pipelines.teachers.preprocessing import timm_preprocessing
from pipelines.teachers.weights import load_weights, read_checkpoint
from storage.config import TeacherConfig
from storage.errors import TeacherConfigError, TeacherError
from storage.naming import did_you_mean

_OWN_FIELDS = {"pretrained": "checkpoint", "checkpoint_path": "checkpoint", "num_classes": "num_classes"}
"""Arguments of timm.create_model that have a field of their own in the config."""
_NOT_OF_THE_NETWORK = {
    *_OWN_FIELDS,
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "cache_dir",
    "scriptable",
    "exportable",
    "no_jit",
    "device",
    "dtype",
}
"""Arguments of timm.create_model that do not reach the network; what they change of the preprocessing is in its own spec."""


def load_timm_teacher(config: TeacherConfig) -> Teacher:
    """Load a timm model with its pretrained weights, or with those of `config.checkpoint`.

    The preprocessing is what timm resolves from the model's pretrained_cfg; `kwargs.pretrained_cfg_overlay` changes it.

    Raises:
        TeacherError: unknown name, weights that cannot be had or do not fit, preprocessing that cannot be expressed.
    """
    from timm.data.config import resolve_data_config

    state = read_checkpoint(config.checkpoint) if config.checkpoint is not None else None
    module = _create(config, pretrained=state is None)
    if state is not None and config.checkpoint is not None:
        load_weights(module, state, checkpoint=config.checkpoint, name=config.name)
    pretrained_cfg: Mapping[str, Any] = module.pretrained_cfg
    if module.num_classes == 0:
        raise TeacherError(
            f"timm model {config.name} gives features, not classes: it cannot give soft labels. Choose a model with a "
            "classifier, or give its checkpoint and teacher.num_classes"
        )
    data_config = resolve_data_config(_requested_size(config), model=module)
    return assemble_teacher(
        module,
        config=config,
        architecture=canonical_architecture(
            pretrained_cfg.get("architecture") or config.name,
            _network_arguments(module, config=config),
        ),
        preprocessing=timm_preprocessing(data_config, name=config.name),
        class_names=tuple(pretrained_cfg["label_names"]) if pretrained_cfg.get("label_names") else None,
        vector_network=TimmNetwork(module=module),
    )


def _create(config: TeacherConfig, *, pretrained: bool) -> Any:
    import timm

    for argument, field in _OWN_FIELDS.items():
        if argument in config.kwargs:
            raise TeacherError(f"teacher.kwargs.{argument} would hide what the teacher is: use teacher.{field} instead")
    _check_name(config.name)
    # A pretrained head keeps its own classes: timm would put a random one in the place of a head of another size.
    num_classes = None if pretrained else config.num_classes
    try:
        return timm.create_model(config.name, pretrained=pretrained, num_classes=num_classes, **config.kwargs)
    except Exception as error:
        remedy = (
            "If the weights cannot be downloaded from here, give a local file: teacher.checkpoint: /path/to/model.safetensors "
            "(and teacher.num_classes where it is not the model's own)"
            if pretrained
            else "Check teacher.name and teacher.kwargs"
        )
        raise TeacherError(f"timm cannot build {config.name}: {describe(error)}. {remedy}") from error


def _network_arguments(module: Any, *, config: TeacherConfig) -> dict[str, Any]:
    """Return what the network was built with: equal for all versions of timm, so that labels outlive an upgrade."""
    built_with = getattr(module, "_model_args", None)
    if built_with is None:
        # timm of before 1.0.31 keeps no account.
        built_with = {**_saved_arguments(config), **config.kwargs}
    return {key: value for key, value in built_with.items() if key not in _NOT_OF_THE_NETWORK and value is not None}


def _saved_arguments(config: TeacherConfig) -> Mapping[str, Any]:
    """Return the arguments that lie beside the weights of a folder or of a model on the hub."""
    from timm.models import load_model_config_from_hf, parse_model_name
    from timm.models._hub import load_model_config_from_path

    source, place = parse_model_name(config.name)
    arguments: Mapping[str, Any] = {}
    if source == "hf-hub":
        _, _, arguments = load_model_config_from_hf(place, cache_dir=config.kwargs.get("cache_dir"))
    elif source:
        _, _, arguments = load_model_config_from_path(place)
    return arguments


def _check_name(name: str) -> None:
    from timm.models import is_model, list_models, list_pretrained, split_model_name_tag

    if ":" in name or "/" in name:
        return
    architecture, tag = split_model_name_tag(name)
    if not is_model(architecture):
        raise TeacherConfigError(f"teacher.name: timm has no model {architecture!r}.{did_you_mean(architecture, list_models())}")
    tagged = list_pretrained(f"{architecture}.*")
    if tag and name not in tagged:
        raise TeacherConfigError(f"teacher.name: timm has no weights {tag!r} of {architecture}.{did_you_mean(name, tagged)}")


def _requested_size(config: TeacherConfig) -> dict[str, Any]:
    """Return timm's size argument: a model built with img_size still carries the size of its pretrained weights."""
    size = config.kwargs.get("img_size")
    if size is None:
        return {}
    height, width = (size, size) if isinstance(size, int) else size
    return {"input_size": (3, height, width)}
