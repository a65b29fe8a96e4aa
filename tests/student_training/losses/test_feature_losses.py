"""Losses between vectors, attentions and relations, against the same in plain loops; gradients by differences."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from student_training.losses.attention import attention_scores, map_kl, score_mse, visible_keys
from student_training.losses.relations import relation_kl, relation_scores, symmetric_scores
from student_training.losses.vectors import cosine_rows, mae_rows, mse_rows

LENGTHS = (4, 1, 3)
MASK = torch.arange(4)[None] < torch.tensor(LENGTHS)[:, None]


def vectors(*shape, seed=0):
    return torch.tensor(np.random.default_rng(seed).normal(size=shape))


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (mse_rows, lambda s, t: ((s - t) ** 2).mean()),
        (mae_rows, lambda s, t: np.abs(s - t).mean()),
        (cosine_rows, lambda s, t: 1 - s @ t / np.linalg.norm(s) / np.linalg.norm(t)),
    ],
)
def test_rows_of_vectors(function, expected):
    student, teacher = vectors(5, 7), vectors(5, 7, seed=1)
    rows = [expected(s, t) for s, t in zip(student.numpy(), teacher.numpy(), strict=True)]
    torch.testing.assert_close(function(student, teacher=teacher), torch.tensor(np.array(rows)))
    student.requires_grad_()
    teacher.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: function(s, teacher=teacher), (student,))
    function(student, teacher=teacher).sum().backward()
    assert teacher.grad is None
    half = function(student.bfloat16(), teacher=teacher.to(torch.float16))
    assert half.dtype == torch.float32


def scores_by_loops(query, key, *, heads, key_heads):
    width = query.shape[2] // heads
    out = torch.zeros(len(query), heads, query.shape[1], query.shape[1], dtype=query.dtype)
    for b, h, i, j in np.ndindex(*out.shape):
        q = query[b, i, h * width : (h + 1) * width]
        other = h * key_heads // heads
        out[b, h, i, j] = q @ key[b, j, other * width : (other + 1) * width] / width**0.5
    return out


@pytest.mark.parametrize("key_heads", [4, 2, 1])
def test_scores_of_shared_key_heads(key_heads):
    query, key = vectors(2, 3, 8), vectors(2, 3, 2 * key_heads, seed=1)
    found = attention_scores(query, key=key, num_heads=4, num_key_value_heads=key_heads)
    torch.testing.assert_close(found, scores_by_loops(query, key, heads=4, key_heads=key_heads))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("function", [score_mse, map_kl])
def test_attention_by_loops(function, causal):
    student, teacher = vectors(3, 2, 4, 4), vectors(3, 2, 4, 4, seed=1)
    found = function(student, teacher_scores=teacher, visible=visible_keys(MASK, causal=causal))
    assert found.shape == (3, 4)
    for b, length in enumerate(LENGTHS):
        for i in range(length):
            keys = slice(0, i + 1 if causal else length)
            s, t = student[b, :, i, keys], teacher[b, :, i, keys]
            if function is score_mse:
                expected = (s - t).square().mean()
            else:
                p = t.softmax(dim=1)
                expected = (p * (p.log() - s.log_softmax(dim=1))).sum(dim=1).mean()
            torch.testing.assert_close(found[b, i], expected)
    assert found.isfinite().all()


@pytest.mark.parametrize("function", [score_mse, map_kl])
def test_gradients_of_attention(function):
    student, teacher = vectors(3, 2, 4, 4).requires_grad_(), vectors(3, 2, 4, 4, seed=1)
    visible = visible_keys(MASK, causal=True)
    assert torch.autograd.gradcheck(lambda s: function(s, teacher_scores=teacher, visible=visible)[MASK], (student,))
    # What cannot be seen has no gradient, whatever it is.
    (gradient,) = torch.autograd.grad(function(student * 1e4, teacher_scores=teacher, visible=visible).sum(), student)
    assert gradient.isfinite().all()
    assert not gradient[~visible.expand_as(gradient)].any()


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4), heads=st.integers(1, 3), padding=st.integers(0, 2))
def test_stored_triangles_become_the_relations_they_are_of(lengths, heads, padding):
    size = max(lengths) + padding
    hidden = vectors(len(lengths), size, 4 * heads)
    dense = relation_scores(hidden, num_relation_heads=heads)
    mask = torch.arange(size)[None] < torch.tensor(lengths)[:, None]
    pairs, sequence, position = [], [], []
    for row, length in enumerate(lengths):
        for i in range(length):
            for j in range(i + 1):
                pairs.append(dense[row, :, i, j])
                sequence.append(row)
                position.append(i)
    found = symmetric_scores(
        torch.stack(pairs),
        sequence=torch.tensor(sequence),
        position=torch.tensor(position),
        num_sequences=len(lengths),
        num_tokens=size,
    )
    both = (mask[:, None, :, None] & mask[:, None, None, :]).expand_as(dense)
    torch.testing.assert_close(found[both].double(), dense[both], rtol=1e-6, atol=1e-6)
    other = relation_scores(vectors(len(lengths), size, 2 * heads, seed=1), num_relation_heads=heads)
    torch.testing.assert_close(
        relation_kl(other, teacher_scores=found.double(), attention_mask=mask)[mask],
        relation_kl(other, teacher_scores=dense, attention_mask=mask)[mask],
        rtol=1e-5,
        atol=1e-6,
    )


def test_relations_of_itself_cost_nothing_at_any_number_of_heads():
    hidden = vectors(3, 4, 12)
    for heads in (1, 2, 3, 6):
        scores = relation_scores(hidden, num_relation_heads=heads)
        losses = relation_kl(scores, teacher_scores=scores, attention_mask=MASK)
        torch.testing.assert_close(losses[MASK], torch.zeros(int(MASK.sum()), dtype=torch.float64))
