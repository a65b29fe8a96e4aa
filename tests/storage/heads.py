"""Heads of teachers, made of random numbers."""

from __future__ import annotations

import numpy as np

from storage.heads import Activation, FrozenHead, HeadSpec, LayerNorm, Linear, RmsNorm, Scale, SoftCap

MASKED_LM = HeadSpec(
    reads="every",
    operations=(
        Linear(inputs=6, outputs=6, bias=True),
        Activation(name="gelu"),
        LayerNorm(width=6, eps=1e-12, bias=True),
        Linear(inputs=6, outputs=11, bias=True),
    ),
)
CAUSAL_LM = HeadSpec(
    reads="every",
    operations=(
        RmsNorm(width=5, eps=1e-6),
        Linear(inputs=5, outputs=9, bias=False),
        Scale(factor=0.25),
        SoftCap(cap=30.0),
    ),
)
CLASSIFIER = HeadSpec(
    reads="first",
    operations=(
        LayerNorm(width=4, eps=1e-5, bias=False),
        Linear(inputs=4, outputs=7, bias=False),
        Activation(name="tanh"),
        Linear(inputs=7, outputs=2, bias=True),
    ),
)
HEADS = (MASKED_LM, CAUSAL_LM, CLASSIFIER)


def make_head(spec=MASKED_LM, *, seed=0):
    rng = np.random.default_rng(seed)
    return FrozenHead(
        spec=spec, tensors={name: rng.normal(size=shape).astype(np.float32) for name, shape in spec.tensors.items()}
    )
