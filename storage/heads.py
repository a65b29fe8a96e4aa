"""A teacher's frozen head: what turns its last hidden state into logits, as data. Stored once beside many hidden states.

Last hidden states and the head take the place of logits over a whole vocabulary, at the size of the hidden states, and nothing is
lost but their rounding. A head is a short list of operations with their tensors: no code, no pickle. Bytes in docs/format.md.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError, model_validator

from storage.blocks import decode_block, encode_block
from storage.codecs.columns import Bytes, pack, unpack
from storage.errors import FormatError, NewerReleaseError
from storage.hashing import canonical_json
from storage.specs import Spec

Shape = tuple[int, ...]
ActivationName = Literal["gelu", "gelu_tanh", "relu", "silu", "tanh"]
_Width = Annotated[int, Field(ge=1, le=2**32)]
MAX_HEAD_VALUES = 1 << 30
_MAX_OPERATIONS = 16


class Linear(Spec):
    """x @ weight.T + bias."""

    kind: Literal["linear"] = "linear"
    inputs: _Width
    outputs: _Width
    bias: bool


class Activation(Spec):
    """A function of each number; gelu is the one with the error function, gelu_tanh its approximation."""

    kind: Literal["activation"] = "activation"
    name: ActivationName


class LayerNorm(Spec):
    """(x - mean) / sqrt(variance + eps) * weight + bias."""

    kind: Literal["layer_norm"] = "layer_norm"
    width: _Width
    eps: float = Field(gt=0)
    bias: bool


class RmsNorm(Spec):
    """x / sqrt(mean of squares + eps) * weight."""

    kind: Literal["rms_norm"] = "rms_norm"
    width: _Width
    eps: float = Field(gt=0)


class Scale(Spec):
    """x * factor."""

    kind: Literal["scale"] = "scale"
    factor: float


class SoftCap(Spec):
    """cap * tanh(x / cap)."""

    kind: Literal["soft_cap"] = "soft_cap"
    cap: float = Field(gt=0)


Operation = Annotated[Linear | Activation | LayerNorm | RmsNorm | Scale | SoftCap, Field(discriminator="kind")]


class HeadSpec(Spec):
    """The operations of a head, in order; their widths fit together."""

    version: Literal[1] = 1
    reads: Literal["every", "first"]
    """The hidden state of every token, or that of the first one of a sample."""
    operations: tuple[Operation, ...] = Field(min_length=1, max_length=_MAX_OPERATIONS)

    @model_validator(mode="after")
    def _check(self) -> HeadSpec:
        width: int | None = None
        for operation in self.operations:
            if isinstance(operation, Linear | LayerNorm | RmsNorm):
                given = operation.inputs if isinstance(operation, Linear) else operation.width
                if width not in (None, given):
                    raise ValueError(f"a {operation.kind} of {given} inputs behind {width} outputs")
                width = operation.outputs if isinstance(operation, Linear) else given
        if not isinstance(self.operations[0], Linear | LayerNorm | RmsNorm):
            raise ValueError("a head begins with a linear or a norm, which say how wide its input is")
        num_values = sum(math.prod(shape) for shape in self.tensors.values())
        if num_values > MAX_HEAD_VALUES:
            raise ValueError(f"a head of {num_values:,} numbers, more than {MAX_HEAD_VALUES:,}")
        return self

    @property
    def tensors(self) -> dict[str, Shape]:
        """Names of the tensors, in order, with their shapes."""
        found: dict[str, Shape] = {}
        for index, operation in enumerate(self.operations):
            if isinstance(operation, Linear):
                found[f"{index}.weight"] = (operation.outputs, operation.inputs)
                width = operation.outputs
            elif isinstance(operation, LayerNorm | RmsNorm):
                width = operation.width
                found[f"{index}.weight"] = (width,)
            if isinstance(operation, Linear | LayerNorm) and operation.bias:
                found[f"{index}.bias"] = (width,)
        return found

    @property
    def width(self) -> int:
        """Channels of the hidden states it reads."""
        first = self.operations[0]
        assert isinstance(first, Linear | LayerNorm | RmsNorm)
        return first.inputs if isinstance(first, Linear) else first.width

    @property
    def num_outputs(self) -> int:
        """Logits it gives."""
        last = [operation for operation in self.operations if isinstance(operation, Linear)]
        return last[-1].outputs if last else self.width


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FrozenHead:
    """A head.

    Attributes:
        tensors: float32 by the names of `spec.tensors`.
    """

    spec: HeadSpec
    tensors: Mapping[str, npt.NDArray[np.float32]]

    def sha256(self) -> str:
        """Return its digest: over its spec and all numbers, whatever they are compressed with."""
        hasher = hashlib.sha256(canonical_json(self.spec.to_json()))
        for name in self.spec.tensors:
            hasher.update(np.ascontiguousarray(self.tensors[name], dtype="<f4").data)
        return hasher.hexdigest()

    def check(self) -> None:
        """Refuse what is no head.

        Raises:
            FormatError: tensors that are not those of the spec, or hold NaN or infinities.
        """
        shapes = {name: values.shape for name, values in self.tensors.items()}
        if shapes != self.spec.tensors:
            raise FormatError(f"a head with tensors {shapes}, whose operations ask for {self.spec.tensors}")
        for name, values in self.tensors.items():
            if values.dtype != np.float32 or not np.isfinite(values).all():
                raise FormatError(f"tensor {name} of a head is {values.dtype}, or holds NaN or an infinity")


def apply_head(head: FrozenHead, hidden: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """Return float32 [rows, outputs], the logits of hidden states [rows, width]: the reference for faster ways to do it."""
    values = hidden.astype(np.float32)
    for index, operation in enumerate(head.spec.operations):
        weight, bias = head.tensors.get(f"{index}.weight"), head.tensors.get(f"{index}.bias")
        match operation:
            case Linear():
                assert weight is not None
                values = values @ weight.T
            case Activation():
                values = apply_activation(operation.name, values)
            case LayerNorm():
                centred = values - values.mean(axis=1, keepdims=True)
                values = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + np.float32(operation.eps)) * weight
            case RmsNorm():
                values = values / np.sqrt((values**2).mean(axis=1, keepdims=True) + np.float32(operation.eps)) * weight
            case Scale():
                values = values * np.float32(operation.factor)
            case SoftCap():
                values = np.float32(operation.cap) * np.tanh(values / np.float32(operation.cap))
        if bias is not None:
            values = values + bias
    return values


_erf = np.vectorize(math.erf, otypes=[np.float32])
_ACTIVATIONS: dict[ActivationName, Any] = {
    "gelu": lambda x: x * (1 + _erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + np.float32(0.044715) * x**3))) / 2,
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x * (1 + np.tanh(x / 2)) / 2,
    "tanh": np.tanh,
}


def apply_activation(name: ActivationName, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return float32, an activation of each number."""
    found: npt.NDArray[np.float32] = _ACTIVATIONS[name](values).astype(np.float32)
    return found


def encode_head(head: FrozenHead) -> bytes:
    """Return the block of a head. Weights that were float16 or bfloat16 take no more than that: what they leave empty is zero.

    Raises:
        FormatError: it is no head.
    """
    head.check()
    streams: dict[str, Bytes] = {}
    for name in head.spec.tensors:
        patterns = np.ascontiguousarray(head.tensors[name], dtype="<f4").reshape(-1).view(np.uint32)
        streams |= {f"{name}/{index}": plane for index, plane in enumerate(pack(patterns, num_bits=32))}
    return encode_block({"kind": "head", "head": head.spec.to_json()}, streams)


def _read_header(header: dict[str, Any]) -> tuple[HeadSpec, dict[str, int]]:
    if header.get("kind") != "head":
        raise FormatError(f"not a head but a block of {header.get('kind')!r}")
    try:
        spec = HeadSpec.model_validate_json(canonical_json(header.get("head")))
    except (ValidationError, ValueError) as error:
        raise NewerReleaseError(f"a head: {error}; a newer release may have written it: upgrade decant") from error
    return spec, {f"{name}/{index}": math.prod(shape) for name, shape in spec.tensors.items() for index in range(4)}


def decode_head(data: bytes | memoryview, *, origin: str) -> FrozenHead:
    """Return the head of a block.

    Raises:
        FormatError: damage, another version, or anything `encode_head` cannot have written.
    """
    spec, streams = decode_block(data, origin=origin, read_header=_read_header)
    tensors: dict[str, npt.NDArray[np.float32]] = {}
    try:
        for name, shape in spec.tensors.items():
            planes = [streams[f"{name}/{index}"] for index in range(4)]
            tensors[name] = unpack(planes, count=math.prod(shape), num_bits=32).view(np.float32).reshape(shape)
        head = FrozenHead(spec=spec, tensors=tensors)
        head.check()
    except KeyError as error:
        raise FormatError(f"{origin}: stream {error} is missing; the block holds {sorted(streams)}") from error
    except FormatError as error:
        raise FormatError(f"{origin}: {error}") from error
    return head
