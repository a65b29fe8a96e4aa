"""Which labels teach what the teacher's whole distribution teaches, and at how many bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from tests.benchmarks.labels import text_logits
from tests.benchmarks.report import Cell, Goal, Report, Table
from tests.benchmarks.sampling_students import (
    Gradient,
    Learned,
    NeighbourModel,
    TextBlock,
    batch_gradients,
    hidden_states,
    learn,
    linear_gradients,
    text_block,
)
from tests.benchmarks.sampling_targets import DRAWN, FULL, StoredTargets, Way, ranked_ways, store
from tests.benchmarks.story_teacher import StoryTeacher, load_teacher

_ANGLE_LIMIT = 5.0
_RANKED = ranked_ways((12, 50, 300))
_LEARNT = (FULL, *DRAWN[:2], *DRAWN[3:4], *ranked_ways((12,)), *ranked_ways((50, 300))[::3])
_STATES = 64
_RS_KD = DRAWN[0].name
_THRESHOLD = DRAWN[1].name

_METHOD = """\
The gradient of a cross entropy is (s - t) times what the student's logits depend on: linear in the target t. Labels whose expected
value is the teacher's distribution give the full gradient and noise that averages out over a batch; labels that leave classes out give
another gradient, however large the batch. The angle is that of the gradient of ONE batch with respect to ALL parameters of a student to
the gradient that the whole distribution gives, the norm ratio theirs; so the angle of drawn labels depends on the batch, and on how far
the student is: near its goal little is left to point at. The batch has {num_positions:,} positions (the paper's have several hundred
thousand, too); "a third" is the angle of the first {num_first:,} of them, from which the trained student learned. All labels go through
extraction, codec and the losses that training uses; bytes are of their blocks, token ids not counted. "All classes" is the float16 of the dense codec, and the reference.

Stories: {story}. Student: the last 8 tokens, embeddings side by side, one hidden layer of 256. Text: drawn from the teacher, {train:,}
positions to learn from and {held:,} held back. "Untrained" is the student at its random start, "trained" after {num_steps} steps on
all classes. Large vocabulary: {large}; a linear student on the teacher's own hidden states (its logits are linear in them, so their
singular vectors are), each of the {large_rows} rows drawn {repeats} times, which is the noise of {large_positions:,} positions.

Learning: {num_steps} steps of a block of {block_rows:,} positions each, AdamW; {num_seeds} start(s), and the same starts, blocks and order
for all. Measured on text held back: cross entropy of its tokens, and KL(teacher || student).
"""


@dataclass(frozen=True, kw_only=True)
class _Size:
    num_blocks: int = 32
    num_more_blocks: int = 64
    num_held_back: int = 6
    block_sequences: int = 32
    num_tokens: int = 129
    num_steps: int = 160
    num_seeds: int = 1
    large_rows: int = 512
    num_repeats: int = 32


_QUICK = _Size(
    num_blocks=2,
    num_more_blocks=2,
    num_held_back=1,
    block_sequences=4,
    num_tokens=17,
    num_steps=3,
    num_seeds=1,
    large_rows=24,
    num_repeats=2,
)


def run(*, quick: bool, folder: Path, say: Callable[[str], None]) -> Report:
    """Measure gradients, then let students learn."""
    size = _QUICK if quick else _Size()
    teacher = load_teacher()
    say(f"text by {teacher.origin}")
    all_blocks, held_back = _text(teacher, size=size)
    blocks = all_blocks[: size.num_blocks]
    ways = (*DRAWN, *_RANKED)
    say("storing")
    stored = _store_all(all_blocks, ways=(*ways, FULL))
    say("gradients of an untrained student")
    untrained = NeighbourModel(teacher.num_classes, seed=0)
    _, at_start = batch_gradients(untrained, blocks=all_blocks, stored=stored, num_first=size.num_blocks)
    learned: dict[str, Learned] = {}
    for way in (None, *_LEARNT):
        name = "hard labels" if way is None else way.name
        say(f"learning from {name}")
        learned[name] = _learn(None if way is None else stored[way.name], blocks=blocks, held_back=held_back, size=size)
    say("gradients of a trained student")
    trained = _trained(stored[FULL.name], blocks=blocks, size=size)
    third, after = batch_gradients(trained, blocks=all_blocks, stored=stored, num_first=size.num_blocks)
    say("gradients over a large vocabulary")
    large = text_logits().first(size.large_rows)
    states = hidden_states(large.values.astype(np.float32), width=min(_STATES, size.large_rows // 2))
    large_gradients = linear_gradients(
        large.values.astype(np.float32), states=states, ways=ways, num_repeats=size.num_repeats, num_steps=20
    )
    num_learned, num_positions = (sum(len(block.next_tokens) for block in some) for some in (blocks, all_blocks))
    return Report(
        name="sampling",
        title="Drawn labels",
        method=_METHOD.format(
            num_positions=num_positions,
            num_first=num_learned,
            story=teacher.origin,
            train=num_learned,
            held=sum(len(block.next_tokens) for block in held_back),
            num_steps=size.num_steps,
            large=large.origin,
            large_rows=len(large.values),
            repeats=size.num_repeats,
            large_positions=len(large.values) * size.num_repeats,
            block_rows=len(blocks[0].next_tokens),
            num_seeds=size.num_seeds,
        ),
        tables=(
            _gradient_table(ways, stored=stored, at_start=at_start, third=third, after=after),
            _large_table(ways, logits=torch.from_numpy(large.values.astype(np.float32)), gradients=large_gradients),
            _learning_table(learned, stored=stored),
        ),
        goals=_goals(at_start, after=after, learned=learned),
        quick=quick,
    )


def _goals(at_start: dict[str, Gradient], *, after: dict[str, Gradient], learned: dict[str, Learned]) -> tuple[Goal, ...]:
    angles = [
        Goal(
            what=f"{name}, {state} student: angle to the full gradient",
            measured=found[name].angle,
            limit=_ANGLE_LIMIT,
            unit="deg",
        )
        for name in (_RS_KD, _THRESHOLD)
        for state, found in (("untrained", at_start), ("trained", after))
    ]
    return (
        *angles,
        Goal(
            what="sampled, 50 draws: KL on text held back, over that of hard labels",
            measured=learned[_RS_KD].kl / learned["hard labels"].kl,
            limit=1.0,
        ),
        Goal(
            what="threshold, levels 7: KL on text held back, over that of hard labels",
            measured=learned[_THRESHOLD].kl / learned["hard labels"].kl,
            limit=1.0,
        ),
    )


def _text(teacher: StoryTeacher, *, size: _Size) -> tuple[list[TextBlock], list[TextBlock]]:
    """Return blocks to learn from and blocks held back."""
    num_blocks = size.num_blocks + size.num_more_blocks + size.num_held_back
    tokens = teacher.write(num_sequences=num_blocks * size.block_sequences, num_tokens=size.num_tokens, seed=0)
    blocks = [text_block(part, logits=teacher.logits) for part in np.split(tokens, num_blocks)]
    return blocks[size.num_held_back :], blocks[: size.num_held_back]


def _store_all(blocks: Sequence[TextBlock], *, ways: Sequence[Way]) -> dict[str, list[StoredTargets]]:
    """Return the targets of every block by way; what differs only in the policy for the rest is stored once."""
    by_spec: dict[str, list[StoredTargets]] = {}
    found = {}
    for way in ways:
        spec = f"{way.codec} {way.k}"
        if spec not in by_spec:
            by_spec[spec] = [store(block.teacher_logits, way=way, key=f"block {index}") for index, block in enumerate(blocks)]
        found[way.name] = [replace(targets, way=way) for targets in by_spec[spec]]
    return found


def _learn(
    targets: list[StoredTargets] | None, *, blocks: Sequence[TextBlock], held_back: Sequence[TextBlock], size: _Size
) -> Learned:
    runs = [
        learn(targets=targets, blocks=blocks, held_back=held_back, num_steps=size.num_steps, seed=seed)[1]
        for seed in range(size.num_seeds)
    ]
    return Learned(cross_entropy=float(np.mean([one.cross_entropy for one in runs])), kl=float(np.mean([one.kl for one in runs])))


def _trained(targets: list[StoredTargets], *, blocks: Sequence[TextBlock], size: _Size) -> NeighbourModel:
    return learn(targets=targets, blocks=blocks, held_back=blocks[:1], num_steps=size.num_steps, seed=0)[0]


def _bytes(stored: Sequence[StoredTargets]) -> float:
    return sum(one.num_bytes for one in stored) / sum(one.num_rows for one in stored)


def _entries(stored: Sequence[StoredTargets]) -> float:
    return float(np.mean([(one.read().probs > 0).sum() / one.num_rows for one in stored[:4]]))


def _gradient_table(
    ways: Sequence[Way],
    *,
    stored: dict[str, list[StoredTargets]],
    at_start: dict[str, Gradient],
    third: dict[str, Gradient],
    after: dict[str, Gradient],
) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (
            way.name,
            _bytes(stored[way.name]),
            _entries(stored[way.name]),
            at_start[way.name].angle,
            at_start[way.name].norm_ratio,
            after[way.name].angle,
            after[way.name].norm_ratio,
            third[way.name].angle,
        )
        for way in ways
    ]
    columns = ("stories", "bytes", "classes", "untrained: angle", "norm ratio", "trained: angle", "norm ratio", "a third")
    return Table(title="Gradients, small vocabulary", columns=columns, rows=tuple(rows))


def _large_table(ways: Sequence[Way], *, logits: torch.Tensor, gradients: dict[str, Gradient]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for way in ways:
        stored = [store(logits, way=way, key="row")]
        rows.append((way.name, _bytes(stored), _entries(stored), gradients[way.name].angle, gradients[way.name].norm_ratio))
    columns = ("large vocabulary", "bytes", "classes", "angle", "norm ratio")
    return Table(title="Gradients, large vocabulary", columns=columns, rows=tuple(rows))


def _learning_table(learned: dict[str, Learned], *, stored: dict[str, list[StoredTargets]]) -> Table:
    hard = learned["hard labels"]
    rows: list[tuple[Cell, ...]] = [
        (name, _bytes(stored[name]) if name in stored else None, found.cross_entropy, found.kl, found.kl / hard.kl)
        for name, found in learned.items()
    ]
    columns = ("learned from", "bytes", "cross entropy, held back", "KL to teacher, held back", "KL over hard labels'")
    return Table(title="Learning", columns=columns, rows=tuple(rows))
