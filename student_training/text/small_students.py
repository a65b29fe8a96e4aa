"""Small classifiers with embeddings of their own: a BiLSTM and a convolutional network."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from storage.config.students import BiLstmStudentConfig, TextCnnStudentConfig
from student_training.terms.interface import StudentOutput, StudentShape, Wants
from student_training.text.interface import TextStudent


class _SmallClassifier(TextStudent):
    """Token embeddings, features of a sequence, and a linear head."""

    def __init__(
        self, *, vocabulary_size: int, embedding_width: int, feature_width: int, num_classes: int, dropout: float
    ) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(vocabulary_size, embedding_width)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(feature_width, num_classes)
        self.shape = StudentShape(kind="sequence_classifier", num_classes=num_classes, embedding_width=feature_width)

    def features(self, input_ids: Tensor, *, attention_mask: Tensor) -> Tensor:
        """Return [B, E] of sequences [B, L]."""
        raise NotImplementedError

    def forward(self, input_ids: Tensor, *, attention_mask: Tensor, wants: Wants | None = None) -> StudentOutput:
        """Return logits and embeddings of padded sequences; padding changes nothing.

        Args:
            input_ids: int64 [B, L].
            attention_mask: bool [B, L].
            wants: which outputs; None: logits.
        """
        wants = Wants() if wants is None else wants
        features = self.features(input_ids, attention_mask=attention_mask)
        logits = self.classifier(self.dropout(features)) if wants.logits else None
        return StudentOutput(logits=logits, embedding=features if wants.embedding else None)


class BiLstmStudent(_SmallClassifier):
    """A bidirectional LSTM whose last states feed a hidden layer.

    References:
        Tang et al., Distilling Task-Specific Knowledge from BERT into Simple Neural Networks, https://arxiv.org/abs/1903.12136
    """

    def __init__(self, config: BiLstmStudentConfig, *, vocabulary_size: int, num_classes: int) -> None:
        super().__init__(
            vocabulary_size=vocabulary_size,
            embedding_width=config.embedding_width,
            feature_width=config.head_width,
            num_classes=num_classes,
            dropout=config.dropout,
        )
        self.lstm = nn.LSTM(
            config.embedding_width,
            config.hidden_width,
            num_layers=config.num_layers,
            bidirectional=True,
            batch_first=True,
            dropout=config.dropout if config.num_layers > 1 else 0.0,
        )
        self.hidden = nn.Linear(2 * config.hidden_width, config.head_width)

    def features(self, input_ids: Tensor, *, attention_mask: Tensor) -> Tensor:
        """Return [B, E] of sequences [B, L]."""
        embedded = self.dropout(self.embeddings(input_ids))
        lengths = attention_mask.sum(dim=1).cpu()
        packed = pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False)
        _, (last, _) = self.lstm(packed)
        return torch.relu(self.hidden(self.dropout(torch.cat([last[-2], last[-1]], dim=1))))


class TextCnnStudent(_SmallClassifier):
    """Filters of several widths, each reduced to its maximum over the sequence.

    References:
        Kim, Convolutional Neural Networks for Sentence Classification, https://arxiv.org/abs/1408.5882
    """

    def __init__(self, config: TextCnnStudentConfig, *, vocabulary_size: int, num_classes: int) -> None:
        super().__init__(
            vocabulary_size=vocabulary_size,
            embedding_width=config.embedding_width,
            feature_width=config.num_filters * len(config.kernel_sizes),
            num_classes=num_classes,
            dropout=config.dropout,
        )
        # Padded on both sides, so that a sequence shorter than a filter has windows too.
        self.filters = nn.ModuleList(
            nn.Conv1d(config.embedding_width, config.num_filters, size, padding=size - 1) for size in config.kernel_sizes
        )

    def features(self, input_ids: Tensor, *, attention_mask: Tensor) -> Tensor:
        """Return [B, E] of sequences [B, L]."""
        embedded = (self.embeddings(input_ids) * attention_mask[:, :, None]).transpose(1, 2)
        lengths = attention_mask.sum(dim=1)
        found = []
        for layer in self.filters:
            windows = torch.relu(layer(embedded))
            # Of n tokens, n + size - 1 windows touch one. Maxima of what relu gives are not below 0.
            num_windows = lengths + windows.shape[2] - input_ids.shape[1]
            inside = torch.arange(windows.shape[2], device=lengths.device) < num_windows[:, None]
            found.append(windows.masked_fill(~inside[:, None, :], 0.0).amax(dim=2))
        return torch.cat(found, dim=1)
