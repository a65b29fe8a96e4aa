"""Terms that compare what layers compute: hidden states, attention, relations, embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from storage.config.terms import AttentionTerm, EmbeddingsTerm, HiddenStatesTerm, RelationsTerm
from storage.specs import AttentionSpec, HiddenStatesSpec, RelationsSpec
from student_training.losses.attention import attention_scores, map_kl, score_mse, visible_keys
from student_training.losses.relations import relation_kl, relation_scores, symmetric_scores
from student_training.losses.vectors import VECTOR_LOSSES
from student_training.terms.chunks import sum_of_rows
from student_training.terms.interface import StudentShape, TermBatch, mean_of_tokens
from student_training.terms.rows import Outputs
from student_training.terms.term import Term, to_padded


class HiddenStates(Term):
    """Hidden states of pairs of layers, behind a learned projection where widths differ."""

    def __init__(self, config: HiddenStatesTerm, *, name: str, target: str, spec: HiddenStatesSpec, shape: StudentShape) -> None:
        super().__init__(name=name, weight=config.weight, divisor=config.divisor)
        self.target = target
        self._tokens = spec.tokens
        self._pairs = config.layers
        self.hidden_layers = tuple(student for _, student in config.layers)
        self._loss = VECTOR_LOSSES[config.loss]
        num_maps = {"none": 0, "shared": 1, "per_layer": len(config.layers)}[config.projection]
        self.projections = nn.ModuleList(nn.Linear(shape.width, spec.width) for _ in range(num_maps))

    def num_rows(self, batch: TermBatch) -> int:
        """Return the rows of each layer."""
        return len(self.rows_of(batch))

    def total(self, outputs: Outputs) -> Tensor:
        """Return the sum over pairs of layers and rows."""
        rows = self.rows_of(outputs.batch)
        assert rows.features is not None
        totals = []
        for number, (teacher_layer, student_layer) in enumerate(self._pairs):
            hidden = outputs.student.hidden_states[student_layer]
            if self._tokens == "mean":
                student = mean_of_tokens(hidden, attention_mask=outputs.batch.attention_mask)
            else:
                student = hidden[rows.sequence, rows.position]
            if self.projections:
                student = self.projections[number % len(self.projections)](student.float())
            totals.append(self._loss(student, teacher=rows.features.tensors[f"hidden.{teacher_layer}"]).sum())
        return torch.stack(totals).sum()


class Attention(Term):
    """Attention scores or maps of pairs of layers."""

    def __init__(self, config: AttentionTerm, *, name: str, target: str, spec: AttentionSpec, shape: StudentShape) -> None:
        super().__init__(name=name, weight=config.weight, divisor=config.divisor)
        self.target = target
        self.vectors = _names(("query", "key"), layers=[student for _, student in config.layers])
        self._pairs = config.layers
        self._loss = score_mse if config.loss == "score_mse" else map_kl
        self._causal = spec.causal
        self._teacher_heads = {"num_heads": spec.num_heads, "num_key_value_heads": spec.num_key_value_heads}
        self._student_heads = {"num_heads": shape.num_heads, "num_key_value_heads": shape.num_key_value_heads}

    def num_rows(self, batch: TermBatch) -> int:
        """Return the tokens, each of which is a query."""
        return len(self.rows_of(batch))

    def total(self, outputs: Outputs) -> Tensor:
        """Return the sum over pairs of layers and queries."""
        rows, mask, vectors = self.rows_of(outputs.batch), outputs.batch.attention_mask, outputs.student.vectors
        assert rows.features is not None
        entries = self._student_heads["num_heads"] * mask.shape[1] ** 2
        totals = []
        for teacher_layer, student_layer in self._pairs:
            query, key = (
                to_padded(rows.features.tensors[f"{name}.{teacher_layer}"], at=rows, like=mask) for name in ("query", "key")
            )
            student = (vectors[f"query.{student_layer}"], vectors[f"key.{student_layer}"])
            totals.append(sum_of_rows(self._losses, *student, query, key, mask, entries_per_row=entries))
        return torch.stack(totals).sum()

    def _losses(self, query: Tensor, key: Tensor, teacher_query: Tensor, teacher_key: Tensor, mask: Tensor) -> Tensor:
        """Return [B, L], 0 at padding."""
        losses = self._loss(
            attention_scores(query, key=key, **self._student_heads),
            teacher_scores=attention_scores(teacher_query, key=teacher_key, **self._teacher_heads),
            visible=visible_keys(mask, causal=self._causal),
        )
        return losses.masked_fill(~mask, 0.0)


class Relations(Term):
    """Query, key and value relations of pairs of layers, from stored vectors or from stored relations."""

    def __init__(
        self, config: RelationsTerm, *, name: str, target: str, spec: AttentionSpec | RelationsSpec, num_relation_heads: int
    ) -> None:
        super().__init__(name=name, weight=config.weight, divisor=config.divisor)
        self.target = target
        self.vectors = _names(config.vectors, layers=[student for _, student in config.layers])
        self._stored = isinstance(spec, RelationsSpec)
        self._kinds = config.vectors
        self._pairs = config.layers
        self._num_heads = num_relation_heads

    def num_rows(self, batch: TermBatch) -> Tensor:
        """Return the tokens, each of which has a relation to all others."""
        return batch.attention_mask.sum()

    def total(self, outputs: Outputs) -> Tensor:
        """Return the sum over pairs of layers, kinds of vectors and tokens."""
        rows, mask = self.rows_of(outputs.batch), outputs.batch.attention_mask
        assert rows.features is not None
        entries = self._num_heads * mask.shape[1] ** 2
        totals = []
        for teacher_layer, student_layer in self._pairs:
            for kind in self._kinds:
                if self._stored:
                    teacher = symmetric_scores(
                        rows.features.tensors[f"{kind}_relations.{teacher_layer}"],
                        sequence=rows.sequence,
                        position=rows.position,
                        num_sequences=mask.shape[0],
                        num_tokens=mask.shape[1],
                    )
                else:
                    teacher = to_padded(rows.features.tensors[f"{kind}.{teacher_layer}"], at=rows, like=mask)
                student = outputs.student.vectors[f"{kind}.{student_layer}"]
                totals.append(sum_of_rows(self._losses, student, teacher, mask, entries_per_row=entries))
        return torch.stack(totals).sum()

    def _losses(self, vectors: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        """Return [B, L], 0 at padding; of the teacher's vectors, or its relations where these are stored."""
        scores = teacher if self._stored else relation_scores(teacher, num_relation_heads=self._num_heads)
        student_scores = relation_scores(vectors, num_relation_heads=self._num_heads)
        return relation_kl(student_scores, teacher_scores=scores, attention_mask=mask).masked_fill(~mask, 0.0)


class Embeddings(Term):
    """What the student's head reads, behind a learned projection where widths differ."""

    needs_embedding = True

    def __init__(self, config: EmbeddingsTerm, *, name: str, target: str, width: int, shape: StudentShape) -> None:
        super().__init__(name=name, weight=config.weight, divisor=config.divisor)
        self.target = target
        self._loss = VECTOR_LOSSES[config.loss]
        self.projection = nn.Identity() if config.projection == "none" else nn.Linear(shape.embedding_width, width)

    def num_rows(self, batch: TermBatch) -> int:
        """Return the samples."""
        return len(self.rows_of(batch))

    def total(self, outputs: Outputs) -> Tensor:
        """Return the sum over samples."""
        rows, embedding = self.rows_of(outputs.batch), outputs.student.embedding
        assert rows.features is not None
        assert embedding is not None
        student = self.projection(embedding[rows.sequence].float())
        return self._loss(student, teacher=rows.features.tensors["embedding"]).sum()


def _names(kinds: Sequence[str], *, layers: Sequence[int]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(f"{kind}.{layer}" for layer in layers for kind in kinds))
