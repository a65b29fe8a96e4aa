"""What every teacher is once it is loaded: a spec, its own preprocessing, and logits for batches of rendered views."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pipelines.teachers.outputs import FeatureShape, VectorOutputs, Wanted
from pipelines.teachers.picture_networks import PictureNetwork, shape_of
from storage.errors import TeacherError
from storage.hashing import canonical_json
from storage.specs import EvaluationView, Normalization, Size, TeacherSpec

if TYPE_CHECKING:
    import torch

Network: TypeAlias = "Callable[[torch.Tensor], Any]"
"""Normalised pictures [B, 3, H, W] in the dtype of the weights to logits [B, C]; what it gives is checked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocessing:
    """What a teacher was made to see: its evaluation view, and what it does to the pixels of any view."""

    view: EvaluationView
    normalization: Normalization

    @property
    def input_size(self) -> Size:
        """Height and width the teacher suggests for other views."""
        return self.view.size


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Teacher:
    """A loaded teacher: eval mode, no gradients, weights on the device in the dtype of `spec.precision`.

    Attributes:
        name: what the config calls it, for messages and reports.
        spec: identity of the labels it gives.
        preprocessing: its own evaluation preprocessing.
        class_names: names in the order of the logits, where the model's config holds them.
        device: where it runs and where its logits are.
        dtype: dtype of weights and arithmetic.
        network: the forward pass.
        vector_network: the same for vectors; None of a teacher that gives logits only.
        lock: one batch at a time: an engine may work on several units in one process, and a batch takes all threads or the GPU.
    """

    name: str
    spec: TeacherSpec
    preprocessing: Preprocessing
    class_names: tuple[str, ...] | None
    device: torch.device
    dtype: torch.dtype
    network: Network
    vector_network: PictureNetwork | None = None
    lock: Any = field(default_factory=threading.RLock, repr=False)

    def vectors(self, views: npt.NDArray[np.uint8], *, wanted: Wanted) -> VectorOutputs:
        """Return hidden states, attention vectors or embeddings of rendered views.

        Args:
            views: uint8 [B, H, W, 3].

        Raises:
            TeacherError: the batch has another dtype or shape, the forward pass fails, or this teacher gives logits only.
        """
        if self.vector_network is None:
            raise TeacherError(f"teacher {self.name} ({self.spec.kind}) gives logits only. Choose soft_labels as the target")
        network = self.vector_network
        with self.lock:
            raw = run_on_views(
                lambda inputs: network.run(inputs, wanted=wanted),
                views,
                normalization=self.spec.normalization,
                device=self.device,
                dtype=self.dtype,
                name=self.name,
            )
        return VectorOutputs(raw=raw)

    def vector_shape(self) -> FeatureShape:
        """Return what vectors the teacher gives, as two grey pictures show."""
        model = self.spec.architecture
        if self.vector_network is None:
            return NO_VECTORS
        grey = np.full((2, *self.preprocessing.input_size, 3), 128, np.uint8)
        everything = Wanted(hidden=True, attention_layers=frozenset({1}), embedding=True)
        try:
            return shape_of(self.vectors(grey, wanted=everything).raw, model=model)
        except TeacherError as error:
            why = f"a first look at them failed: {error}"
            return NO_VECTORS.model_copy(update={"why_no_hidden": why, "why_no_attention": why})

    def logits(self, views: npt.NDArray[np.uint8]) -> torch.Tensor:
        """Return the logits of rendered views.

        Args:
            views: uint8 [B, H, W, 3].

        Returns:
            float32 [B, num_classes] on `device`: an ordinary tensor without gradient, fit to stand in a loss.

        Raises:
            TeacherError: the batch has another dtype or shape, or the forward pass fails.
        """
        with self.lock:
            return run_network(
                self.network,
                views,
                normalization=self.spec.normalization,
                device=self.device,
                dtype=self.dtype,
                name=self.name,
            )


NO_VECTORS = FeatureShape(
    num_layers=None,
    width=None,
    embedding_width=None,
    why_no_attention="its network gives logits only. Choose soft_labels as the target",
    why_no_hidden="its network gives logits only. Choose soft_labels as the target",
)
"""Of a teacher that gives logits only."""


def run_network(
    network: Network,
    views: npt.NDArray[np.uint8],
    *,
    normalization: Normalization,
    device: torch.device,
    dtype: torch.dtype,
    name: str,
) -> torch.Tensor:
    """Normalise views uint8 [B, H, W, 3] on the device, run the network, return float32 logits [B, C].

    Raises:
        TeacherError: wrong input, wrong output, out of memory, or anything the network raises.
    """
    output = run_on_views(network, views, normalization=normalization, device=device, dtype=dtype, name=name)
    return _as_logits(output, views, device=device, dtype=dtype, name=name)


def check_logits(output: Any, views: npt.NDArray[np.uint8], *, teacher: Teacher) -> torch.Tensor:
    """Return as `Teacher.logits` does what a pass for vectors and labels gave for logits.

    Raises:
        TeacherError: they are none.
    """
    return _as_logits(output, views, device=teacher.device, dtype=teacher.dtype, name=teacher.name)


def _as_logits(output: Any, views: npt.NDArray[np.uint8], *, device: torch.device, dtype: torch.dtype, name: str) -> torch.Tensor:
    import torch

    if not isinstance(output, torch.Tensor) or output.ndim != 2 or len(output) != len(views):
        got = f"a tensor of shape {list(output.shape)}" if isinstance(output, torch.Tensor) else type(output).__name__
        raise TeacherError(
            f"teacher {name} returned {got} for {_batch(views, device=device, dtype=dtype)}; it must return logits [batch, "
            "classes]. Wrap the model so that its forward returns only those"
        )
    # Cloned outside of inference mode: an inference tensor could not be saved for a student's backward pass.
    logits: torch.Tensor = output.float().clone()
    return logits


def _batch(views: npt.NDArray[np.uint8], *, device: torch.device, dtype: torch.dtype) -> str:
    return (
        f"a batch of {len(views)} views of {views.shape[1]} x {views.shape[2]} (height x width, {_dtype_name(dtype)}, {device})"
    )


def run_on_views(
    network: Callable[[torch.Tensor], Any],
    views: npt.NDArray[np.uint8],
    *,
    normalization: Normalization,
    device: torch.device,
    dtype: torch.dtype,
    name: str,
) -> Any:
    """Normalise views uint8 [B, H, W, 3] on the device and return what the network gives.

    Raises:
        TeacherError: wrong input, out of memory, or anything the network raises.
    """
    import torch

    if views.dtype != np.uint8 or views.ndim != 4 or views.shape[-1] != 3:
        raise TeacherError(
            f"teacher {name} was given views of dtype {views.dtype} and shape {list(views.shape)}; it takes rendered views, "
            "uint8 [batch, height, width, 3], and normalises them itself"
        )
    batch = _batch(views, device=device, dtype=dtype)
    try:
        with torch.inference_mode(), _full_precision(device):
            # torch.tensor copies: rendered batches may be read-only, which torch.from_numpy does not take.
            pixels = torch.tensor(np.ascontiguousarray(views), device=device)
            # In torchvision's order (divide, subtract, divide), so that the plain pipeline gives the same bits.
            inputs = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).div_(255)
            inputs.sub_(_per_channel(normalization.mean, device=device)).div_(_per_channel(normalization.std, device=device))
            return network(inputs.to(dtype))
    except torch.OutOfMemoryError as error:
        raise TeacherError(
            f"teacher {name} ran out of memory on {batch}: nothing was labelled. Lower generation.batch_size, or set "
            "teacher.precision: bf16"
        ) from error
    except Exception as error:
        raise TeacherError(
            f"teacher {name} failed on {batch}: {describe(error)}. Check that the model takes views of this size (views.size, or "
            "the model's own img_size in teacher.kwargs) and this precision (teacher.precision: fp32 always works)"
        ) from error


def canonical_architecture(name: str, arguments: Mapping[str, Any]) -> str:
    """Return an architecture name with its arguments, equal for equal arguments in any order.

    Raises:
        TeacherError: the arguments are not JSON data.
    """
    try:
        return f"{name}{canonical_json(dict(arguments)).decode()}" if arguments else name
    except (TypeError, ValueError) as error:
        raise TeacherError(
            f"teacher.kwargs of {name} cannot be part of an identity: {error}. Use numbers, strings, booleans, null, lists and "
            "maps"
        ) from error


def describe(error: Exception) -> str:
    """Return type and message of a foreign exception on one line, to stand inside a sentence."""
    return f"{type(error).__name__}: {' '.join(str(error).split()).rstrip('.')}"


def _per_channel(values: tuple[float, ...], *, device: torch.device) -> torch.Tensor:
    import torch

    return torch.tensor(values, dtype=torch.float32, device=device).view(1, -1, 1, 1)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _full_precision(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Keep cuDNN from rounding float32 convolutions to TF32 and from choosing kernels that differ between runs."""
    import torch

    if device.type != "cuda":
        return contextlib.nullcontext()
    flags: contextlib.AbstractContextManager[None] = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    return flags
