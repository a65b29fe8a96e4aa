"""A student whose one layer is run again and again, with small adapters of each round."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from storage.config.students import MiniAlbertStudentConfig
from student_training.terms.interface import StudentOutput, StudentShape, Wants, mean_of_tokens
from student_training.text.interface import TextStudent


class Adapter(nn.Module):
    """LayerNorm(x + up(gelu(down(x)))): what tells one round of a shared layer from another."""

    def __init__(self, *, width: int, reduction: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, width // reduction)
        self.up = nn.Linear(width // reduction, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return [B, L, H] of [B, L, H]."""
        adapted: Tensor = self.norm(hidden + self.up(nn.functional.gelu(self.down(hidden))))
        return adapted


class _SharedLayer(nn.Module):
    """A layer of BERT, in two halves, between which adapters come."""

    def __init__(self, config: MiniAlbertStudentConfig) -> None:
        super().__init__()
        width = config.width
        self.num_heads = config.num_heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.attention_norm, self.output_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.wide, self.narrow = nn.Linear(width, config.intermediate_width), nn.Linear(config.intermediate_width, width)
        self.dropout = nn.Dropout(config.dropout)

    def attend(self, hidden: Tensor, *, visible: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return [B, L, H] behind attention, and query, key and value vectors."""
        vectors = {"query": self.query(hidden), "key": self.key(hidden), "value": self.value(hidden)}
        query, key, value = (rows.reshape(*rows.shape[:2], self.num_heads, -1).transpose(1, 2) for rows in vectors.values())
        dropped = self.dropout.p if self.training else 0.0
        attended = scaled_dot_product_attention(query, key, value, attn_mask=visible, dropout_p=dropped)
        mixed = self.out(attended.transpose(1, 2).flatten(2))
        return self.attention_norm(hidden + self.dropout(mixed)), vectors

    def feed_forward(self, hidden: Tensor) -> Tensor:
        """Return [B, L, H] behind the feed-forward network."""
        found: Tensor = self.output_norm(hidden + self.dropout(self.narrow(nn.functional.gelu(self.wide(hidden)))))
        return found


class MiniAlbertStudent(TextStudent):
    """Narrow embeddings, a shared layer with adapters of each round, and a head.

    A language model's logits come from the embeddings themselves, behind a transform to their width. A classifier reads the first
    token behind a hidden layer.

    References:
        Nouriborji et al., MiniALBERT: Model Distillation via Parameter-Efficient Recursive Transformers,
        https://arxiv.org/abs/2210.06425
    """

    def __init__(self, config: MiniAlbertStudentConfig, *, vocabulary_size: int, num_classes: int, max_tokens: int) -> None:
        super().__init__()
        width, narrow = config.width, config.embedding_width
        self.embeddings = nn.Embedding(vocabulary_size, narrow)
        self.positions = nn.Embedding(max_tokens, narrow)
        self.embedding_norm = nn.LayerNorm(narrow)
        self.projection = nn.Linear(narrow, width)
        self.layer = _SharedLayer(config)
        self.before_attention, self.before_feed_forward = (
            nn.ModuleList(Adapter(width=width, reduction=config.adapter_reduction) for _ in range(config.num_rounds))
            for _ in range(2)
        )
        self.dropout = nn.Dropout(config.dropout)
        classifies = config.head == "sequence_classifier"
        self.transform = nn.Linear(width, width if classifies else narrow)
        self.transform_norm = nn.Identity() if classifies else nn.LayerNorm(narrow)
        self.classifier = nn.Linear(width, num_classes) if classifies else None
        self.bias = None if classifies else nn.Parameter(torch.zeros(vocabulary_size))
        for embedding in (self.embeddings, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)
        self.shape = StudentShape(
            kind=config.head,
            num_classes=num_classes,
            num_layers=config.num_rounds,
            width=width,
            num_heads=config.num_heads,
            num_key_value_heads=config.num_heads,
            head_width=width // config.num_heads,
            embedding_width=width,
        )

    def forward(self, input_ids: Tensor, *, attention_mask: Tensor, wants: Wants | None = None) -> StudentOutput:
        """Return what is wanted of padded sequences; padding changes nothing.

        Args:
            input_ids: int64 [B, L].
            attention_mask: bool [B, L].
            wants: which outputs; None: logits everywhere.
        """
        wants = Wants() if wants is None else wants
        visible = attention_mask[:, None, None, :]
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        embedded = self.embedding_norm(self.embeddings(input_ids) + self.positions(places))
        states = [self.projection(self.dropout(embedded))]
        vectors: dict[str, Tensor] = {}
        for number, (first, second) in enumerate(zip(self.before_attention, self.before_feed_forward, strict=True), start=1):
            hidden, found = self.layer.attend(first(states[-1]), visible=visible)
            states.append(self.layer.feed_forward(second(hidden)))
            vectors |= {f"{name}.{number}": rows for name, rows in found.items()}
        embedding: Tensor | None = None
        if self.classifier is not None:
            embedding = torch.tanh(self.transform(states[-1][:, 0]))
        elif wants.embedding:
            embedding = mean_of_tokens(states[-1], attention_mask=attention_mask)
        return StudentOutput(
            logits=self._logits(states[-1], embedding=embedding, wants=wants) if wants.logits else None,
            hidden_states=tuple(states) if wants.hidden_states else (),
            vectors={name: vectors[name] for name in wants.vectors},
            embedding=embedding if wants.embedding else None,
        )

    def _logits(self, hidden: Tensor, *, embedding: Tensor | None, wants: Wants) -> Tensor:
        if self.classifier is not None and embedding is not None:
            logits: Tensor = self.classifier(self.dropout(embedding))
            return logits
        if wants.positions is not None:
            hidden = hidden[wants.positions.sequence, wants.positions.position]
        narrow = self.transform_norm(nn.functional.gelu(self.transform(hidden)))
        found = nn.functional.linear(narrow, self.embeddings.weight, self.bias)
        return found if found.shape[-1] == self.shape.num_classes else found[..., : self.shape.num_classes]
