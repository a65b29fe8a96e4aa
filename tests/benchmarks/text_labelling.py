"""Labelling texts with `decant label` against a loop written by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from storage.cache import Cache
from storage.label_set import LabelSet
from storage.soft_labels import SoftLabels
from storage.streams.text_stream import TextLabelStream
from tests.benchmarks.children import Child, decant, write_config
from tests.benchmarks.conditions import usable_cores
from tests.benchmarks.report import Cell, Goal, Report, Table

_GOAL = 0.95
_K = 64
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_TOLERANCE = 2e-3
"""Largest difference of a stored probability from that of a forward pass over one sequence: batches round otherwise."""

_METHOD = """\
Sequences a second from the first document's read to the last label's commit, start-up left out: {num_documents} documents of {length}
tokens, a BERT of 4 layers and width 256 with random weights over {vocabulary:,} tokens in float32, 15 % of tokens masked, top-{k} at
masked tokens, batches of {batch_size}, one process with {cores} torch threads. Decant: `decant label`, {num_units} units, exact codec,
into a new cache every time. The loop by hand: transformers only; whole batches through the fast tokenizer, the head at masked tokens
alone, softmax and top-k, results kept in memory, nothing stored. {num_repeats} repeats, in turn; medians. Before they count, Decant's
labels are compared with a forward pass over what it stored of the text.
"""


@dataclass(frozen=True, kw_only=True)
class _Size:
    num_documents: int
    unit_size: int
    batch_size: int
    length: int
    vocabulary: int
    width: int
    layers: int
    num_repeats: int


_FULL = _Size(num_documents=1024, unit_size=256, batch_size=32, length=128, vocabulary=30522, width=256, layers=4, num_repeats=3)
_QUICK = _Size(num_documents=24, unit_size=8, batch_size=4, length=16, vocabulary=200, width=16, layers=1, num_repeats=1)


def run(*, quick: bool, folder: Path, say: Callable[[str], None]) -> Report:
    """Measure both in turn."""
    size = _QUICK if quick else _FULL
    say(f"writing {size.num_documents} documents and a teacher")
    _write_teacher(folder / "teacher", size=size)
    documents = _write_documents(folder / "documents.txt", size=size)
    found: dict[str, list[tuple[float, float | None]]] = {"decant label": [], "by hand": []}
    for repeat in range(size.num_repeats):
        runs: dict[str, Callable[[], tuple[float, float | None]]] = {
            "decant label": lambda repeat=repeat: _run_decant(folder, documents, repeat=repeat, size=size),
            "by hand": lambda: _run_by_hand(folder, documents, size=size),
        }
        names = list(runs) if repeat % 2 == 0 else list(reversed(runs))
        for name in names:
            found[name].append(runs[name]())
            say(f"repeat {repeat + 1} of {size.num_repeats}: {name}: {found[name][-1][0]:.1f} sequences/s")
    _check(folder)
    return _report(found, size=size, quick=quick)


def _write_teacher(folder: Path, *, size: _Size) -> None:
    words = [f"w{index}" for index in range(size.vocabulary - len(_SPECIAL))]
    ids = {token: index for index, token in enumerate((*_SPECIAL, *words))}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(token, ids[token]) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **dict(zip(names, _SPECIAL, strict=True))).save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertForMaskedLM(
            BertConfig(
                vocab_size=size.vocabulary,
                hidden_size=size.width,
                num_hidden_layers=size.layers,
                num_attention_heads=4,
                intermediate_size=4 * size.width,
                max_position_embeddings=size.length,
            )
        )
    model.save_pretrained(folder)


def _write_documents(path: Path, *, size: _Size) -> Path:
    words = np.random.default_rng(0).integers(size.vocabulary - len(_SPECIAL), size=(size.num_documents, size.length - 2))
    path.write_text("".join(" ".join(f"w{word}" for word in document) + "\n" for document in words.tolist()))
    return path


def _run_decant(folder: Path, documents: Path, *, repeat: int, size: _Size) -> tuple[float, float | None]:
    config: dict[str, Any] = {
        "name": "benchmark",
        "cache": str(folder / f"cache-{repeat}"),
        "source": {"kind": "text", "path": str(documents), "unit_size": size.unit_size},
        "teacher": {"kind": "masked_lm", "name": str(folder / "teacher"), "device": "cpu"},
        "views": {"kind": "masked_tokens", "length": size.length, "layout": "truncate"},
        "target": {"k": _K, "codec": {"kind": "exact"}},
        "generation": {"batch_size": size.batch_size},
    }
    finished = decant("label", str(write_config(folder / f"decant-{repeat}.yaml", config)))
    figures = finished.output
    if figures["num_rows"] != size.num_documents:
        raise AssertionError(f"decant label stored {figures['num_rows']} of {size.num_documents} sequences")
    rate = float(figures["rows_per_second"])
    return rate, finished.wall_seconds - size.num_documents / rate


def _run_by_hand(folder: Path, documents: Path, *, size: _Size) -> tuple[float, float | None]:
    child = Child(
        "tests.benchmarks.peers.bare_text_loop",
        [
            f"--documents={documents}",
            f"--model={folder / 'teacher'}",
            f"--k={_K}",
            f"--length={size.length}",
            f"--batch-size={size.batch_size}",
            f"--torch-threads={usable_cores()}",
        ],
    )
    if child.wait_for_line().strip() != "ready":
        raise RuntimeError("the loop by hand did not start")
    child.send_line("go")
    figures = child.finish().output
    return figures["num_rows"] / figures["seconds"], None


def _check(folder: Path) -> None:
    """Compare labels with forward passes over what is stored of the text.

    Raises:
        AssertionError: they differ by more than rounding; the rates would mean nothing.
    """
    stream = TextLabelStream({"labels": LabelSet.open(Cache.at(str(folder / "cache-0")), name_or_id="benchmark")})
    num_rows = min(4, int(stream.block_rows(epoch=0)[0]))
    rows = stream.read(epoch=0, block_ids=np.zeros(num_rows, dtype=np.int64), rows=np.arange(num_rows))
    stored = rows.targets["labels"].values
    assert isinstance(stored, SoftLabels)
    assert rows.tokens.masks is not None
    model = BertForMaskedLM.from_pretrained(folder / "teacher").eval()
    seen, places = rows.tokens.inputs().astype(np.int64), rows.tokens.masks
    live = []
    for index in range(num_rows):
        ids = torch.from_numpy(seen[rows.tokens.offsets[index] : rows.tokens.offsets[index + 1]])
        positions = places.positions[places.offsets[index] : places.offsets[index + 1]]
        with torch.inference_mode():
            live.append(model(ids[None]).logits[0, positions].softmax(dim=1).numpy())
    chosen = np.take_along_axis(np.concatenate(live), stored.class_ids, axis=1)
    worst = float(np.abs(chosen - stored.probs).max())
    if worst > _TOLERANCE:
        raise AssertionError(f"a stored probability differs by {worst} from that of a forward pass")


def _report(found: dict[str, list[tuple[float, float | None]]], *, size: _Size, quick: bool) -> Report:
    middle = {name: median(rate for rate, _ in runs) for name, runs in found.items()}
    rows: list[tuple[Cell, ...]] = []
    for name, runs in found.items():
        rates = [rate for rate, _ in runs]
        starts = [start for _, start in runs if start is not None]
        rows.append(
            (name, middle[name], min(rates), max(rates), middle[name] / middle["by hand"], median(starts) if starts else None)
        )
    return Report(
        name="text_labelling",
        title="Labelling texts",
        method=_METHOD.format(
            **{name: getattr(size, name) for name in ("num_documents", "length", "vocabulary", "batch_size", "num_repeats")},
            k=_K,
            num_units=-(-size.num_documents // size.unit_size),
            cores=usable_cores(),
        ),
        tables=(
            Table(
                title="Sequences a second",
                columns=("way", "median", "slowest", "fastest", "of the loop by hand", "start-up, s"),
                rows=tuple(rows),
            ),
        ),
        goals=(
            Goal(
                what="decant label: share of the loop by hand",
                measured=middle["decant label"] / middle["by hand"],
                limit=_GOAL,
                at_most=False,
            ),
        ),
        quick=quick,
    )
