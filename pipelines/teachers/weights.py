"""Weights: the hash that identifies them whatever file they came from, and loading that is never silently partial."""

from __future__ import annotations

import argparse
import hashlib
import pickle
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from pipelines.teachers.base import describe
from storage.errors import TeacherError
from storage.hashing import canonical_json
from storage.naming import nearest

if TYPE_CHECKING:
    import torch

_WRAPPERS = ("state_dict", "model", "model_state_dict", "state_dict_ema", "model_ema")
"""Names under which training scripts store a state dict beside their own state."""
_PREFIXES = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before every name."""
_NUM_SHOWN = 3


def weights_sha256(weights: torch.nn.Module | Mapping[str, torch.Tensor]) -> str:
    """Return the sha256 over (name, dtype, shape, bytes) of every tensor in name order, 64 hex digits.

    Of a module: parameters and persistent buffers. The same for every file format, memory layout and device.
    """
    import torch

    state = weights.state_dict() if isinstance(weights, torch.nn.Module) else weights
    result = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        result.update(canonical_json([name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]))
        result.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return result.hexdigest()


def read_checkpoint(path: str) -> dict[str, torch.Tensor]:
    """Read a state dict from a local safetensors or torch file, without the wrappers of training scripts.

    Torch files are read with weights_only, so a checkpoint cannot run code.

    Raises:
        TeacherError: the file is missing, unreadable or unsafe, or does not hold exactly one state dict.
    """
    file = Path(path)
    if not file.is_file():
        raise TeacherError(f"teacher.checkpoint {path} {_why_no_file(file)}")
    state = _unwrap(_read(file), path=path)
    for prefix in _PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def load_weights(module: torch.nn.Module, state: Mapping[str, torch.Tensor], *, checkpoint: str, name: str) -> None:
    """Copy a state dict into a module whose tensors it must match exactly, by name and shape.

    What does not match as it lies is put into timm's names by timm's own filter of the model, where it has one. What may be
    missing are counters of batch norms (`num_batches_tracked`, which old checkpoints lack and inference ignores), and tensors
    that the module shares with one that is there.

    Raises:
        TeacherError: a tensor is missing, unexpected or of another shape; the module is left as it was.
    """
    own = module.state_dict()
    state = _with_shared(own, state)
    if not _fits(own, state):
        state = _in_names_of_timm(module, state) or state
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    reshaped = [key for key in own if key in state and own[key].shape != state[key].shape]
    if missing or unexpected or reshaped:
        shapes = [f"{key} is {list(state[key].shape)} in the checkpoint, {list(own[key].shape)} in the model" for key in reshaped]
        found = [
            f"{len(keys)} {what} ({_first(keys)})"
            for what, keys in (
                ("of another shape", shapes),
                ("missing in the checkpoint", missing),
                ("unexpected in it", unexpected),
            )
            if keys
        ]
        cause = _likely_cause(own, state, missing=missing, unexpected=unexpected, reshaped=reshaped)
        raise TeacherError(f"checkpoint {checkpoint} does not fit {name}, so nothing was loaded: {'; '.join(found)}. {cause}")
    module.load_state_dict({key: state.get(key, own[key]) for key in own})


def _with_shared(own: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Return a state with the tensors that a file names once and the module twice, as heads tied to embeddings."""
    present = {tensor.data_ptr(): key for key, tensor in own.items() if key in state and tensor.numel()}
    twins = {key: present.get(tensor.data_ptr()) for key, tensor in own.items() if key not in state}
    shared = {key: state[twin] for key, twin in twins.items() if twin is not None and own[twin].shape == own[key].shape}
    return {**state, **shared}


def _fits(own: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> bool:
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    return not missing and all(key in own and own[key].shape == state[key].shape for key in state)


def _in_names_of_timm(module: torch.nn.Module, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor] | None:
    """Return weights in a model's original format as timm names them; None where timm does not know how, or would alter them."""
    convert = getattr(sys.modules[type(module).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return None
    try:
        converted = convert(dict(state), module)
    except Exception:  # filters meet weights of any other model
        return None
    if not _is_state(converted) or not _fits(module.state_dict(), converted):
        return None
    # Filters also resample positions to other sizes of pictures, which would be another teacher: only names and axes may differ.
    given = {tensor.untyped_storage().data_ptr() for tensor in state.values()}
    altered = [one for one in converted.values() if one.untyped_storage().data_ptr() not in given and bool(one.any())]
    return None if altered else dict(converted)


def _read(file: Path) -> object:
    import safetensors
    import safetensors.torch
    import torch

    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load_file(file, device="cpu")
        # timm's training script stores its arguments as a Namespace, which holds nothing but them.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise TeacherError(
            f"teacher.checkpoint {file} cannot be read as plain tensors: it is damaged, not a checkpoint, or holds Python "
            "objects that could run code. If you trust it, convert it once: safetensors.torch.save_file(torch.load(path, "
            "weights_only=False)[...], 'weights.safetensors'). torch says: "
            f"{str(error).splitlines()[0] if str(error) else error!r}"
        ) from error
    except (safetensors.SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise TeacherError(
            f"teacher.checkpoint {file} cannot be read: {describe(error)}. Copy it again, or give another file"
        ) from error


def _unwrap(loaded: object, *, path: str) -> dict[str, torch.Tensor]:
    if _is_state(loaded):
        return dict(loaded)
    entries: Mapping[Any, Any] = loaded if isinstance(loaded, Mapping) else {}
    states = [key for key in _WRAPPERS if _is_state(entries.get(key))]
    if len(states) == 1:
        return dict(entries[states[0]])
    if states:
        raise TeacherError(
            f"teacher.checkpoint {path} holds {len(states)} sets of weights ({', '.join(states)}) and does not say which is the "
            f"teacher. Keep that one: torch.save(torch.load(path, weights_only=True)['{states[-1]}'], new_path)"
        )
    content = f"entries {_first([str(key) for key in entries])}" if entries else f"a {type(loaded).__name__}"
    raise TeacherError(
        f"teacher.checkpoint {path} holds no state dict but {content}. Save one: torch.save(model.state_dict(), path)"
    )


def _is_state(value: object) -> TypeGuard[Mapping[str, torch.Tensor]]:
    import torch

    return isinstance(value, Mapping) and bool(value) and all(isinstance(tensor, torch.Tensor) for tensor in value.values())


def _why_no_file(file: Path) -> str:
    if file.is_dir():
        return "is a folder; give the weights file inside it"
    if not file.parent.is_dir():
        return f"does not exist, and neither does the folder {file.parent}; give the path of a local file"
    similar = nearest(file.name, (entry.name for entry in file.parent.iterdir()))
    return "does not exist" + (f". Did you mean {file.parent / similar}?" if similar else "; give the path of a local file")


def _likely_cause(
    own: Mapping[str, torch.Tensor],
    state: Mapping[str, torch.Tensor],
    *,
    missing: list[str],
    unexpected: list[str],
    reshaped: list[str],
) -> str:
    if len(missing) == len(own) or (missing and len(unexpected) == len(state)):
        prefix = next(iter(state)).split(".")[0] + "."
        if all(key.startswith(prefix) for key in state) and state.keys() & {prefix + key for key in own}:
            return f"Every name in the checkpoint begins with {prefix!r}: save the inner model's state dict."
        return "No name is shared: the checkpoint is of another architecture; check teacher.name."
    first_axis = {(state[key].shape[:1], own[key].shape[:1]) for key in reshaped if state[key].shape[1:] == own[key].shape[1:]}
    if len(first_axis) == 1 and not (missing or unexpected):
        theirs, ours = first_axis.pop()
        return f"Likely the number of classes: set teacher.num_classes: {theirs[0]} (the model was built for {ours[0]})."
    if any("pos" in key for key in reshaped):
        return "Likely the input size: set the model's img_size in teacher.kwargs to the one it was trained with."
    return "Likely another variant of the architecture: check teacher.name and teacher.kwargs."


def _first(items: list[str]) -> str:
    shown = ", ".join(items[:_NUM_SHOWN])
    return f"{shown}, and {len(items) - _NUM_SHOWN} more" if len(items) > _NUM_SHOWN else shown
