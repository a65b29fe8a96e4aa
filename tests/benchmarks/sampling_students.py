"""Students small enough to train many times: what their gradients and their learning make of stored targets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tests.benchmarks.sampling_targets import FULL, StoredTargets, Way, store

CONTEXT = 8
_EMBEDDING = 32
_HIDDEN = 256


class NeighbourModel(nn.Module):
    """The next token from the last `CONTEXT` ones: embeddings side by side, one hidden layer."""

    def __init__(self, num_classes: int, *, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding = nn.Embedding(num_classes, _EMBEDDING)
            self.hidden = nn.Linear(CONTEXT * _EMBEDDING, _HIDDEN)
            self.head = nn.Linear(_HIDDEN, num_classes)

    def forward(self, contexts: Tensor) -> Tensor:
        """Return logits [rows, classes] of contexts [rows, CONTEXT]."""
        found: Tensor = self.head(nn.functional.gelu(self.hidden(self.embedding(contexts).flatten(1))))
        return found


@dataclass(frozen=True, kw_only=True)
class TextBlock:
    """Positions of some sequences.

    Attributes:
        contexts: int64 [rows, CONTEXT].
        next_tokens: int64 [rows].
        teacher_logits: float32 [rows, classes].
    """

    contexts: Tensor
    next_tokens: Tensor
    teacher_logits: Tensor


def text_block(tokens: npt.NDArray[np.int64], *, logits: Callable[[npt.NDArray[np.int64]], Tensor]) -> TextBlock:
    """Return the positions of sequences [sequences, tokens] that have a next token."""
    padded = np.pad(tokens, ((0, 0), (CONTEXT - 1, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, CONTEXT, axis=1)[:, :-1]
    return TextBlock(
        contexts=torch.from_numpy(windows.reshape(-1, CONTEXT).copy()),
        next_tokens=torch.from_numpy(tokens[:, 1:].reshape(-1)),
        teacher_logits=logits(tokens)[:, :-1].flatten(0, 1).clone(),
    )


@dataclass(frozen=True, kw_only=True)
class Gradient:
    """A gradient against that of all classes.

    Attributes:
        angle: degrees.
        norm_ratio: its norm over that of all classes.
    """

    angle: float
    norm_ratio: float


def compare_gradients(gradients: dict[str, Tensor], *, reference: Tensor) -> dict[str, Gradient]:
    """Return angles and ratios of flat gradients."""
    found = {}
    for name, gradient in gradients.items():
        cosine = float(torch.dot(gradient, reference) / (gradient.norm() * reference.norm()))
        ratio = float(gradient.norm() / reference.norm())
        found[name] = Gradient(angle=math.degrees(math.acos(max(-1.0, min(1.0, cosine)))), norm_ratio=ratio)
    return found


def batch_gradients(
    student: nn.Module, *, blocks: Sequence[TextBlock], stored: Mapping[str, Sequence[StoredTargets]], num_first: int
) -> tuple[dict[str, Gradient], dict[str, Gradient]]:
    """Return the gradient with respect to all parameters, for every way of storing targets: of two batches.

    Args:
        stored: the targets of every block by way; those of all classes are among them.
        num_first: blocks of the smaller batch, which the first ones are; the other batch is all blocks.
    """
    parameters = list(student.parameters())
    size = sum(parameter.numel() for parameter in parameters)
    sums = {name: torch.zeros(size, dtype=torch.float64) for name in stored}
    found = []
    for index, block in enumerate(blocks):
        logits = student(block.contexts)
        for name, targets in stored.items():
            gradient = torch.autograd.grad(targets[index].loss(logits), parameters, retain_graph=True)
            sums[name] += torch.cat([part.flatten() for part in gradient]).double()
        if index + 1 in (num_first, len(blocks)):
            others = {name: gradient for name, gradient in sums.items() if name != FULL.name}
            found.append(compare_gradients(others, reference=sums[FULL.name]))
    return found[0], found[-1]


def hidden_states(logits: npt.NDArray[np.float32], *, width: int) -> npt.NDArray[np.float64]:
    """Return float64 [rows, width] and a constant column: a linear head's inputs, as far as its logits tell them."""
    centred = logits.astype(np.float64) - logits.mean(axis=0)
    states, scales, _ = np.linalg.svd(centred, full_matrices=False)
    kept = states[:, :width] * scales[:width]
    return np.concatenate([kept / kept.std(), np.ones((len(kept), 1))], axis=1)


def linear_gradients(
    logits: npt.NDArray[np.float32], *, states: npt.NDArray[np.float64], ways: Sequence[Way], num_repeats: int, num_steps: int
) -> dict[str, Gradient]:
    """Return gradients of a linear student on a teacher's hidden states, after some steps towards the full distribution.

    The gradient of a row's cross entropy is (s - t) h, linear in the target t. So each row is drawn `num_repeats` times and the
    targets are averaged: as much noise as a batch of that many times more rows has.
    """
    full = torch.softmax(torch.from_numpy(logits).double(), dim=1).numpy()
    inputs = torch.from_numpy(states)
    weights = torch.zeros(states.shape[1], logits.shape[1], dtype=torch.float64)
    step = 1.0 / float((inputs**2).sum(dim=1).mean())
    for _ in range(num_steps):
        student = torch.softmax(inputs @ weights, dim=1)
        weights -= step * inputs.T @ (student - torch.from_numpy(full)) / len(inputs)
    student = torch.softmax(inputs @ weights, dim=1)

    def gradient(targets: npt.NDArray[np.float64]) -> Tensor:
        return (inputs.T @ (student - torch.from_numpy(targets))).flatten()

    gradients = {}
    for way in ways:
        repeats = num_repeats if way.is_drawn else 1
        rows = torch.from_numpy(logits)
        if way.rest == "bucket":
            gradients[way.name] = (inputs.T @ bucket_gradient(store(rows, way=way, key="row"), student=student)).flatten()
            continue
        targets = sum(store(rows, way=way, key=f"repeat {index}").dense() for index in range(repeats)) / repeats
        gradients[way.name] = gradient(np.asarray(targets))
    return compare_gradients(gradients, reference=gradient(full))


def bucket_gradient(targets: StoredTargets, *, student: Tensor) -> Tensor:
    """Return float64 [rows, classes], the gradient of the loss with respect to the logits of a student's distribution."""
    logits = student.log().requires_grad_()
    (found,) = torch.autograd.grad(targets.loss(logits) * len(logits), logits)
    return found


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What a student came to.

    Attributes:
        cross_entropy: nats a token, against the text held back.
        kl: nats a token, KL(teacher || student) there.
    """

    cross_entropy: float
    kl: float


def learn(
    *,
    targets: Sequence[StoredTargets] | None,
    blocks: Sequence[TextBlock],
    held_back: Sequence[TextBlock],
    num_steps: int,
    seed: int,
    learning_rate: float = 3e-3,
) -> tuple[NeighbourModel, Learned]:
    """Train a student, a block a step, every pass in another order, and measure it on text held back.

    Args:
        targets: of every block; None: the tokens of the text themselves.
    """
    student = NeighbourModel(blocks[0].teacher_logits.shape[1], seed=seed)
    optimizer = torch.optim.AdamW(student.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=learning_rate, total_steps=num_steps)
    rng = np.random.default_rng(seed)
    order: list[int] = []
    for _ in range(num_steps):
        order = order or rng.permutation(len(blocks)).tolist()
        index = order.pop()
        logits = student(blocks[index].contexts)
        loss = nn.functional.cross_entropy(logits, blocks[index].next_tokens) if targets is None else targets[index].loss(logits)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return student, measure(student, held_back=held_back)


@torch.inference_mode()
def measure(student: nn.Module, *, held_back: Sequence[TextBlock]) -> Learned:
    """Return how well a student knows text held back."""
    cross_entropy, kl = [], []
    for block in held_back:
        log_q = student(block.contexts).log_softmax(dim=1)
        log_p = block.teacher_logits.log_softmax(dim=1)
        cross_entropy.append(float(nn.functional.nll_loss(log_q, block.next_tokens)))
        kl.append(float((log_p.exp() * (log_p - log_q)).sum(dim=1).mean()))
    return Learned(cross_entropy=float(np.mean(cross_entropy)), kl=float(np.mean(kl)))
