"""Vectors: bytes a number, what storing them loses, and how fast they are read."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors.numpy
import torch

from pipelines.teachers.heads import frozen_head
from storage.features import FeatureRows
from storage.specs import FeatureCodecSpec, Float16Codec, HiddenStatesSpec, Int8Codec
from storage.target_blocks import decode_target_block, encode_target_block
from storage.text.token_rows import TokenRows, offsets_of
from student_training.heads import HeadModule
from tests.benchmarks.report import Cell, Goal, Report, Table
from tests.benchmarks.story_teacher import StoryTeacher, load_teacher
from tests.benchmarks.timing import one_thread, rates, round_robin

_CODECS: dict[str, FeatureCodecSpec] = {
    "decant float16": Float16Codec(),
    "decant int8": Int8Codec(),
    "decant int8, groups of 64": Int8Codec(group=64),
}
_NPY, _SAFETENSORS = "float16, .npy", "float16, safetensors"
_INT8_SHARE = 0.52
_INT8_ERROR = 0.01
_DECODED_LIMIT = 500.0
_HEAD_KL_LIMIT = 1e-5
_OUTLIERS = (77, 300, 588)
_MEGABYTE = 1e6

_METHOD = """\
Hidden states of all layers of {origin}, on {num_tokens:,} tokens of text that it wrote; and {made_tokens:,} tokens of MADE states {made_width} wide, normal
but for {num_outliers} channels that are 30 times larger in every row, as BERT's are. Bytes are of one target block with its header, less the
token ids, over those of the same numbers as float16 in a .npy file. The error is the norm of what was read less what the model gave,
over the norm of the latter; worst: of the layer where it is largest. The states that enter the first layer are left out: they are rows of
a table, and compress to nothing.

Speed: megabytes of float32 a CPU second, from bytes in memory to float32 arrays, on one thread, of the made states; medians of
{num_passes} passes, all in turn. Decant checks and decompresses every block; the others check nothing. Decant's float16 rows need not become
float32 on the CPU; "as it is stored" leaves that to the device.

Head: the last hidden state is stored, and the logits are rebuilt from it with the teacher's own head, stored once. KL is
KL(teacher || rebuilt) over the whole vocabulary, in nats; bytes are a position's, beside those of its float16 logits.
"""


@dataclass(frozen=True, kw_only=True)
class _Size:
    num_sequences: int
    sequence_tokens: int
    made_tokens: int
    made_width: int
    num_passes: int


_FULL = _Size(num_sequences=62, sequence_tokens=128, made_tokens=4000, made_width=768, num_passes=9)
_QUICK = _Size(num_sequences=4, sequence_tokens=16, made_tokens=64, made_width=640, num_passes=1)


@dataclass(frozen=True, kw_only=True)
class _Stored:
    """One layout's bytes of some states, and what they lost.

    Attributes:
        share: bytes, over those of a .npy file of float16.
        errors: relative, of each layer.
    """

    share: float
    errors: list[float]


def run(*, quick: bool, folder: Path, say: Callable[[str], None]) -> Report:
    """Measure the sizes, errors and speeds of all layouts on the same states."""
    del folder
    size = _QUICK if quick else _FULL
    teacher = load_teacher()
    say(f"{size.num_sequences} sequences of {teacher.origin}")
    tokens = teacher.write(num_sequences=size.num_sequences, num_tokens=size.sequence_tokens, seed=1)
    states, logits = _states(teacher, tokens)
    made = _made_states(size)
    made_tokens = np.zeros((size.made_tokens // 8, 8), dtype=np.int64)
    say("bytes and errors")
    real = {name: _measure(name, states, tokens=tokens) for name in (*_CODECS, _NPY, _SAFETENSORS)}
    on_made = {name: _measure(name, made, tokens=made_tokens) for name in (*_CODECS, _NPY, _SAFETENSORS)}
    say("speed")
    speeds = _race(made, tokens=made_tokens, num_passes=size.num_passes, say=say)
    say("head")
    head_rows, head_kl = _head(teacher, states=states, logits=logits, tokens=tokens)
    int8 = real["decant int8"]
    goals = (
        Goal(what="int8: bytes, over those of float16", measured=int8.share, limit=_INT8_SHARE),
        Goal(what="int8: relative error, all layers", measured=_mean(int8.errors), limit=_INT8_ERROR),
        Goal(what="int8: relative error, worst layer", measured=max(int8.errors), limit=_INT8_ERROR),
        *(
            Goal(what=f"{name}: read, float32", measured=speeds[name], limit=_DECODED_LIMIT, at_most=False, unit="MB/s")
            for name in ("decant float16", "decant int8")
        ),
        Goal(what="logits rebuilt from float16 states: KL", measured=head_kl["decant float16"], limit=_HEAD_KL_LIMIT, unit="nat"),
    )
    return Report(
        name="features",
        title="Hidden states: bytes, errors, speed",
        method=_METHOD.format(
            origin=teacher.origin,
            num_tokens=tokens.size,
            made_tokens=size.made_tokens,
            made_width=size.made_width,
            num_outliers=len(_OUTLIERS),
            num_passes=size.num_passes,
        ),
        tables=(
            _sizes_table(f"Real: {teacher.origin}", real),
            _sizes_table("Made, with outliers", on_made),
            _speed_table(speeds),
            head_rows,
        ),
        goals=goals,
        quick=quick,
    )


@torch.inference_mode()
def _states(teacher: StoryTeacher, tokens: npt.NDArray[np.int64]) -> tuple[FeatureRows, torch.Tensor]:
    """Return hidden states of all layers, [tokens, width] each, and logits [tokens, vocabulary]."""
    given = teacher.model(torch.from_numpy(tokens), output_hidden_states=True)
    states = given.hidden_states
    rows = {f"hidden.{layer}": states[layer].reshape(-1, states[layer].shape[-1]).numpy() for layer in range(1, len(states))}
    return FeatureRows(tensors=rows), given.logits.reshape(-1, given.logits.shape[-1])


def _made_states(size: _Size) -> FeatureRows:
    values = np.random.default_rng(768).standard_normal((size.made_tokens, size.made_width), dtype=np.float32)
    values[:, _OUTLIERS] *= 30
    return FeatureRows(tensors={"hidden.12": values})


def _spec(states: FeatureRows, codec: FeatureCodecSpec) -> HiddenStatesSpec:
    layers = tuple(int(name.removeprefix("hidden.")) for name in states.tensors)
    width = next(iter(states.tensors.values())).shape[1]
    return HiddenStatesSpec(layers=layers, tokens="all", width=width, codec=codec)


def _encode(states: FeatureRows, *, codec: FeatureCodecSpec, tokens: npt.NDArray[np.int64]) -> bytes:
    sequences = _sequences(tokens)
    return encode_target_block(
        states,
        target=_spec(states, codec),
        view=0,
        first_sample=0,
        present=np.ones(len(sequences), dtype=np.bool_),
        key_hash=0,
        tokens=sequences,
        vocabulary_size=512,
    )


def _sequences(tokens: npt.NDArray[np.int64]) -> TokenRows:
    return TokenRows(
        offsets=offsets_of(np.full(len(tokens), tokens.shape[1], dtype=np.int64)), token_ids=tokens.reshape(-1).astype(np.uint32)
    )


def _to_npy(states: FeatureRows) -> list[bytes]:
    files = []
    for values in states.tensors.values():
        file = io.BytesIO()
        np.save(file, values.astype(np.float16))
        files.append(file.getvalue())
    return files


def _to_safetensors(states: FeatureRows) -> bytes:
    data: bytes = safetensors.numpy.save({name: values.astype(np.float16) for name, values in states.tensors.items()})
    return data


def _read_ours(data: bytes, *, is_float32: bool = True) -> int:
    block = decode_target_block(data, origin="the benchmark")
    assert isinstance(block.values, FeatureRows)
    tensors = block.values.tensors.values()
    return sum((values.astype(np.float32, copy=False) if is_float32 else values).size for values in tensors)


def _read_npy(files: list[bytes]) -> int:
    return sum(np.load(io.BytesIO(data)).astype(np.float32).size for data in files)


def _read_safetensors(data: bytes) -> int:
    return sum(values.astype(np.float32).size for values in safetensors.numpy.load(data).values())


def _measure(name: str, states: FeatureRows, *, tokens: npt.NDArray[np.int64]) -> _Stored:
    plain_bytes = sum(map(len, _to_npy(states)))
    if name in _CODECS:
        data = _encode(states, codec=_CODECS[name], tokens=tokens)
        num_bytes = _bytes_of_values(data)
        found = decode_target_block(data, origin="the benchmark").values
        assert isinstance(found, FeatureRows)
        tensors = found.tensors
    elif name == _NPY:
        num_bytes, tensors = plain_bytes, {key: values.astype(np.float16) for key, values in states.tensors.items()}
    else:
        data = _to_safetensors(states)
        num_bytes, tensors = len(data), safetensors.numpy.load(data)
    errors = [_relative_error(values, tensors[key]) for key, values in states.tensors.items()]
    return _Stored(share=num_bytes / plain_bytes, errors=errors)


def _bytes_of_values(block: bytes) -> int:
    """Return the bytes of a block less those of its tokens."""
    header_bytes = int.from_bytes(block[8:12], "little")
    streams = json.loads(block[12 : 12 + header_bytes])["streams"]
    return len(block) - sum(stored for name, _, stored in streams if name.startswith(("tokens", "token_checksums", "lengths")))


def _relative_error(values: npt.NDArray[np.floating], found: npt.NDArray[np.floating]) -> float:
    exact = values.astype(np.float64)
    return float(np.linalg.norm(found.astype(np.float64) - exact) / np.linalg.norm(exact))


def _race(states: FeatureRows, *, tokens: npt.NDArray[np.int64], num_passes: int, say: Callable[[str], None]) -> dict[str, float]:
    """Return megabytes of float32 a CPU second."""
    blocks = {name: _encode(states, codec=codec, tokens=tokens) for name, codec in _CODECS.items()}
    contestants: dict[str, Callable[[], int]] = {name: partial(_read_ours, data) for name, data in blocks.items()}
    contestants["decant float16, as it is stored"] = partial(_read_ours, blocks["decant float16"], is_float32=False)
    contestants[_NPY] = partial(_read_npy, _to_npy(states))
    contestants[_SAFETENSORS] = partial(_read_safetensors, _to_safetensors(states))
    with one_thread():
        passes = round_robin(
            contestants, num_passes=num_passes, on_pass=lambda index: say(f"speed: pass {index + 1} of {num_passes}")
        )
    return {name: 4 * rates(measured).per_cpu_second / _MEGABYTE for name, measured in passes.items()}


def _head(
    teacher: StoryTeacher, *, states: FeatureRows, logits: torch.Tensor, tokens: npt.NDArray[np.int64]
) -> tuple[Table, dict[str, float]]:
    """Return what logits from stored states and the head are worth, and their KL by codec."""
    module = HeadModule(frozen_head(teacher.model, num_outputs=teacher.num_classes, name="the benchmark"))
    name, values = list(states.tensors.items())[-1]
    last = FeatureRows(tensors={name: values})
    wanted = logits.log_softmax(dim=1)
    rows: list[tuple[Cell, ...]] = []
    found: dict[str, float] = {}
    for layout, codec in _CODECS.items():
        data = _encode(last, codec=codec, tokens=tokens)
        stored = decode_target_block(data, origin="the benchmark").values
        assert isinstance(stored, FeatureRows)
        with torch.inference_mode():
            rebuilt = module(torch.from_numpy(stored.tensors[name].astype(np.float32))).log_softmax(dim=1)
        kl = (wanted.exp() * (wanted - rebuilt)).sum(dim=1).mean().item()
        found[layout] = max(kl, 0.0)
        rows.append((layout, len(data) / tokens.size, found[layout]))
    rows.append(("float16 logits", 2.0 * teacher.num_classes, None))
    columns = ("layout", "bytes a position", "KL(teacher || rebuilt), nat")
    title = f"Logits over {teacher.num_classes:,} tokens from stored states {values.shape[1]} wide"
    return Table(title=title, columns=columns, rows=tuple(rows)), found


def _mean(errors: list[float]) -> float:
    return sum(errors) / len(errors)


def _sizes_table(title: str, stored: dict[str, _Stored]) -> Table:
    rows = tuple((name, 2 * one.share, one.share, _mean(one.errors), max(one.errors)) for name, one in stored.items())
    columns = ("layout", "bytes a number", "over float16", "relative error, mean", "relative error, worst layer")
    return Table(title=title, columns=columns, rows=rows)


def _speed_table(speeds: dict[str, float]) -> Table:
    rows = tuple((name, rate) for name, rate in speeds.items())
    return Table(title="Reading, made states", columns=("layout", "MB of float32 a CPU second"), rows=rows)
