"""What is read beside caches' labels, broken: memos of sources and teachers, token stores, TinyViT's logits folders."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np

from pipelines.teacher_memo import AnyTeacherFacts, KnownTokenizer, TeacherFacts, TeacherMemo, TextTeacherFacts
from pipelines.teachers.text_base import NetworkShape
from storage.cache import Cache
from storage.config import TeacherConfig
from storage.errors import FormatError
from storage.hashing import canonical_json, seal, unseal
from storage.interchange import import_tinyvit
from storage.sources import SourceMemo, index_source
from storage.specs import EvaluationView
from storage.text.token_store import TokenBlock, TokenStore, write_token_store
from tests.reliability.fuzz_cache_files import bytes_of, forms_of, mutated_form
from tests.reliability.fuzz_target import Reading, Target
from tests.reliability.mutation import mutated, replaced
from tests.storage.caches import Labeller, make_request
from tests.storage.interchange.label_sets import draw_records, write_epoch
from tests.storage.targets import make_tokens
from tests.storage.text_caches import make_text_request

_TINYVIT_CLASSES, _TINYVIT_K = 20, 4


def other_targets(labeller: Labeller, folder: Path) -> Iterator[Target]:
    """Yield the targets; what they break lies in a folder."""
    yield _source_memos(labeller, folder / "memo.parquet")
    yield from _teacher_memos(folder / "teacher")
    yield _token_stores(folder / "tokens")
    yield _tinyvit(folder / "logits")


def _source_memos(labeller: Labeller, file: Path) -> Target:
    memo = SourceMemo(str(file))
    index_source(labeller.source, memo=memo)

    def prepare(made: bytes) -> Reading:
        file.write_bytes(made)
        return lambda: list(memo.entries())

    return Target(name="source memos: bytes", seeds=(file.read_bytes(),), change=mutated, prepare=prepare, weight=1)


def _facts() -> Iterator[tuple[TeacherConfig, AnyTeacherFacts]]:
    """Yield facts of a teacher of pictures and of one of texts, as loading them would give."""
    text = make_text_request()
    pictures = TeacherFacts(
        spec=make_request().teacher, evaluation=EvaluationView(size=(8, 8), resize_size=(9, 9)), class_names=("ant", "bee")
    )
    texts = TextTeacherFacts(
        spec=text.teacher,
        shape=NetworkShape(num_layers=2, width=8, embedding_width=8, num_outputs=40, per_token=True, max_length=64),
        positions="masked",
        class_names=None,
        tokenizer=KnownTokenizer(
            sha256="70" * 32, vocabulary_size=40, mask_id=3, separator_id=None, num_special_tokens=2, knows_words=True
        ),
        head_sha256="a0" * 32,
    )
    yield TeacherConfig(kind="timm", name="test_vit"), pictures
    yield TeacherConfig(kind="masked_lm", name="bert"), texts


def _teacher_memos(folder: Path) -> Iterator[Target]:
    folder.mkdir()
    memory = Cache.at("memory://fuzz-teachers")
    memos = TeacherMemo(memory)
    seeds: list[tuple[TeacherConfig, str, bytes]] = []
    for config, facts in _facts():
        files = folder / config.kind
        files.mkdir()
        (files / "weights").write_bytes(b"these stand for a teacher's weights")
        changes = {"name": str(files)} if config.of_text else {"checkpoint": str(files / "weights")}
        known = config.model_copy(update=changes)
        memos.remember(known, facts=facts)
        (name,) = set(memory.store.names("teachers")) - {name for _, name, _ in seeds}
        seeds.append((known, name, memory.store.read(name)))

    def found(config: TeacherConfig, name: str, data: bytes) -> Reading:
        def read() -> object:
            memory.store.write(name, data)
            # One that is damaged counts as none.
            if (facts := memos.find(config)) is None:
                raise FormatError("none")
            return facts

        return read

    yield Target(
        name="teacher memos: bytes, seal right or not",
        seeds=tuple((config, name, form) for config, name, data in seeds for form in forms_of(data)),
        change=lambda made, rng: (made[0], made[1], mutated_form(made[2], rng)),
        prepare=lambda made: found(made[0], made[1], bytes_of(made[2])),
        weight=2,
    )
    yield Target(
        name="teacher memos: values, seal right",
        seeds=tuple((config, name, json.loads(unseal(data) or b"")) for config, name, data in seeds),
        change=lambda made, rng: (made[0], made[1], replaced(made[2], rng)),
        prepare=lambda made: found(made[0], made[1], seal(canonical_json(made[2]))),
        weight=2,
    )


def _changed_files(made: dict[str, bytes], rng: random.Random) -> dict[str, bytes]:
    """Return files of which one has other bytes, is gone, or is another one's."""
    name = rng.choice(sorted(made))
    match rng.randrange(10):
        case 0:
            return {other: data for other, data in made.items() if other != name} or made
        case 1:
            return {**made, name: made[rng.choice(sorted(made))]}
    return {**made, name: mutated(made[name], rng)}


def _write_files(folder: Path, files: dict[str, bytes]) -> None:
    # Anew: what was mapped into memory must not change under whoever maps it.
    shutil.rmtree(folder, ignore_errors=True)
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _token_stores(folder: Path) -> Target:
    blocks = []
    for number, lengths in enumerate(([3, 0, 5], [4, 1])):
        tokens = make_tokens(lengths, masked=False, seed=number)
        blocks.append(
            TokenBlock(
                keys=tuple(f"d{number}-{row}" for row in range(len(lengths))),
                labels=np.arange(len(lengths), dtype=np.int64) - 1,
                tokens=tokens,
                word_starts=np.ones(len(tokens.token_ids), dtype=np.bool_),
            )
        )
    write_token_store(folder, blocks)
    files = {file.name: file.read_bytes() for file in folder.iterdir()}

    def prepare(made: dict[str, bytes]) -> Reading:
        _write_files(folder, made)

        def read() -> object:
            try:
                store = TokenStore(folder)
            except FileNotFoundError as error:  # then it is made anew
                raise FormatError("none") from error
            for block_id in range(len(store.block_rows)):
                block = store.read(block_id)
                assert len(block.keys) == len(block.labels) == len(block.tokens) == store.block_rows[block_id]
                assert block.word_starts is None or len(block.word_starts) == len(block.tokens.token_ids)
                assert len(block.tokens.take(np.arange(len(block.tokens)))) == len(block.keys)
            return None

        return read

    return Target(name="token stores: files", seeds=(files,), change=_changed_files, prepare=prepare, weight=2)


def _tinyvit(folder: Path) -> Target:
    rng = np.random.default_rng(0)
    for epoch in (0, 3):
        packages = []
        for keys in (["b", "a"], ["c"]):
            ids, probs = draw_records(rng, num=len(keys), num_classes=_TINYVIT_CLASSES, k=_TINYVIT_K)
            packages.append((keys, ids, probs))
        write_epoch(folder, epoch=epoch, packages=packages, k=_TINYVIT_K)
    files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    memory: Any = fsspec.filesystem("memory")

    def prepare(made: dict[str, bytes]) -> Reading:
        _write_files(folder, made)
        if memory.exists("/fuzz-tinyvit"):
            memory.rm("/fuzz-tinyvit", recursive=True)

        def read() -> object:
            # Records that are no distributions become dead letters: none may stop what is right.
            return import_tinyvit(
                str(folder),
                Cache.at("memory://fuzz-tinyvit"),
                name="in",
                teacher="clip",
                num_classes=_TINYVIT_CLASSES,
                image_size=(8, 8),
                dead_letter_limit=0.9,
            )

        return read

    return Target(name="TinyViT's logits folders: files", seeds=(files,), change=_changed_files, prepare=prepare, weight=0.7)
