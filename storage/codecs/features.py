"""Codecs of vectors: rows of tensors to named byte streams and back. Pure numpy; compression and checksums are the block's."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from storage.codecs import float16, int8
from storage.codecs.columns import Bytes
from storage.errors import FormatError
from storage.features import FeatureRows
from storage.specs import FeaturesSpec, Int8Codec


def encode(rows: FeatureRows, *, spec: FeaturesSpec) -> dict[str, Bytes]:
    """Return the byte streams of a block of rows, `<tensor>/<stream>`.

    Raises:
        FormatError: tensors that are not those of this spec, NaN, infinities, or numbers that the codec cannot hold.
    """
    shapes = {name: values.shape for name, values in rows.tensors.items()}
    num_rows = len(rows) if rows.tensors else 0
    expected = {name: (num_rows, width) for name, width in spec.tensors.items()}
    if shapes != expected:
        raise FormatError(f"tensors {shapes}; the spec asks for {expected}")
    return {
        f"{name}/{stream}": data
        for name in spec.tensors
        for stream, data in _encode_tensor(rows.tensors[name], spec=spec, name=name).items()
    }


def _encode_tensor(values: npt.NDArray[np.floating], *, spec: FeaturesSpec, name: str) -> dict[str, Bytes]:
    if isinstance(spec.codec, Int8Codec):
        return int8.encode(values, group=spec.codec.group, name=name)
    return float16.encode(values, name=name)


def _tensor_lengths(num_rows: int, *, spec: FeaturesSpec, width: int) -> dict[str, int]:
    if isinstance(spec.codec, Int8Codec):
        return int8.stream_lengths(num_rows, width=width, group=spec.codec.group)
    return float16.stream_lengths(num_rows, width=width)


def stream_lengths(num_rows: int, *, spec: FeaturesSpec) -> dict[str, int]:
    """Return the bytes each stream of `num_rows` rows has; a reader allocates no more."""
    return {
        f"{name}/{stream}": length
        for name, width in spec.tensors.items()
        for stream, length in _tensor_lengths(num_rows, spec=spec, width=width).items()
    }


def decode(streams: Mapping[str, Bytes], *, num_rows: int, spec: FeaturesSpec) -> FeatureRows:
    """Return the rows of a block: float32 of the int8 codec, float16 of the float16 one.

    Raises:
        FormatError: streams that `encode` cannot have made.
    """
    tensors: dict[str, npt.NDArray[np.floating]] = {}
    try:
        for name, width in spec.tensors.items():
            mine = {stream: streams[f"{name}/{stream}"] for stream in _tensor_lengths(num_rows, spec=spec, width=width)}
            if isinstance(spec.codec, Int8Codec):
                tensors[name] = int8.decode(mine, num_rows=num_rows, width=width, group=spec.codec.group, name=name)
            else:
                tensors[name] = float16.decode(mine, num_rows=num_rows, width=width, name=name)
    except KeyError as error:
        raise FormatError(f"stream {error} is missing; the block holds {sorted(streams)}") from error
    return FeatureRows(tensors=tensors)
