"""Teachers of texts from a factory: what `text_factory` configs of tests name."""

from __future__ import annotations

from pathlib import Path

import torch

VOCABULARY = 17
MI = 7
"""The token `mi` of `tests.pipelines.text.models.word_piece`."""


class Touchy(torch.nn.Module):
    """Logits that depend on the token alone; NaN where it is `mi`, unless a file says that the mood is good."""

    def __init__(self, mood):
        super().__init__()
        self._mood = Path(mood)
        self.table = torch.nn.Parameter(torch.linspace(-3, 3, VOCABULARY * VOCABULARY).reshape(VOCABULARY, VOCABULARY).sin())

    def forward(self, input_ids, attention_mask):
        logits = self.table[input_ids]
        if not self._mood.exists():
            logits = torch.where((input_ids == MI)[:, :, None], torch.nan, logits)
        return logits


def touchy_teacher(mood):
    """A teacher that labels every token."""
    return Touchy(mood), {"positions": "all", "max_length": 32}
