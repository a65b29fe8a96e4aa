"""What a student of texts is worth on a source: accuracy of classifiers, perplexity of language models."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from storage.errors import ConfigError
from storage.sources.base import NO_LABEL
from storage.streams.base import TextRows
from storage.streams.text_source_stream import TextSourceStream
from student_training.data import BatchDataset, Share, load_batches
from student_training.losses.dense import hard_cross_entropy
from student_training.plan import plan_evaluation
from student_training.task import Figures
from student_training.terms.interface import StudentShape, Wants
from student_training.text.collate import TextCollate
from student_training.text.interface import TextBatch, TextStudent
from student_training.text.rows import positions_of


@dataclass(frozen=True, kw_only=True, slots=True)
class TextEvaluator:
    """An evaluation that can be run again and again, on the same sequences and masks.

    Attributes:
        stream: the source.
        shape: of the student.
        collate: sequences to batches.
        batch_size: sequences in one forward pass over all processes.
        loader_workers: processes that pad.
    """

    stream: TextSourceStream
    shape: StudentShape
    collate: TextCollate
    batch_size: int
    loader_workers: int = 0

    def check(self) -> None:
        """Look into the source before any work starts.

        Raises:
            ConfigError: of a classifier: no text has a label, or labels do not fit the student.
            SourceError: the source cannot be read.
        """
        if self.shape.kind != "sequence_classifier":
            self.stream.block_rows(epoch=0)
            return
        if self.stream.num_labelled == 0:
            raise ConfigError(
                "training.evaluation.source holds no labels, so there is no accuracy to measure; check its label field, or leave "
                "evaluation out"
            )
        if self.stream.max_label >= self.shape.num_classes:
            raise ConfigError(
                f"training.evaluation.source has label {self.stream.max_label} but the student has {self.shape.num_classes} "
                "classes; evaluate on a source with the classes that are trained, or raise training.student.num_classes"
            )

    def run(self, student: TextStudent, *, accelerator: Accelerator) -> Figures:
        """Return figures over all processes; the student's training mode is put back.

        Of a classifier: top1, top5, cross_entropy in nats, num_rows labelled sequences. Of a language model: top1 and
        cross_entropy of its tokens (masked ones, or next ones), perplexity, num_tokens, num_rows sequences.

        Args:
            student: on the accelerator's device, not wrapped.
            accelerator: of this run.
        """
        was_training = student.training
        student.eval()
        try:
            totals = self._count(student, accelerator=accelerator)
        finally:
            student.train(was_training)
        top1, top5, cross_entropy, num_rows, num_sequences = accelerator.reduce(totals, reduction="sum").tolist()
        num_rows = max(num_rows, 1.0)
        shares = {"top1": top1 / num_rows, "top5": top5 / num_rows, "cross_entropy": cross_entropy / num_rows}
        if self.shape.kind == "sequence_classifier":
            return {**shares, "num_rows": int(num_rows)}
        # Of an untrained student it may be more than a float holds.
        perplexity = math.exp(min(shares["cross_entropy"], 700.0))
        return {**shares, "perplexity": perplexity, "num_tokens": int(num_rows), "num_rows": int(num_sequences)}

    @torch.no_grad()
    def _count(self, student: TextStudent, *, accelerator: Accelerator) -> Tensor:
        """Return float64 [5] of this process: hits among one and five, summed cross entropy, labelled rows, sequences."""
        totals = torch.zeros(5, dtype=torch.float64, device=accelerator.device)
        batches = load_batches(
            self._dataset(accelerator), workers=self.loader_workers, pin_memory=accelerator.device.type == "cuda"
        )
        for batch in batches:
            on_device = batch.to(accelerator.device)
            with accelerator.autocast():
                logits, labels = self._ask(student, on_device)
            hits = logits.float().topk(min(5, self.shape.num_classes), dim=1).indices == labels[:, None]
            rows = [hits[:, 0], hits.any(dim=1), hard_cross_entropy(logits, labels=labels), labels != NO_LABEL]
            totals[:4] += torch.stack([row.double() for row in rows]).sum(dim=1)
            totals[4] += len(batch)
        return totals

    def _ask(self, student: TextStudent, batch: TextBatch) -> tuple[Tensor, Tensor]:
        """Return logits [R, C] and int64 [R], what each of them should name."""
        if self.shape.kind == "sequence_classifier":
            output = student(batch.input_ids, attention_mask=batch.attention_mask)
            assert output.logits is not None
            return output.logits, batch.labels
        masked = self.shape.kind == "masked_lm"
        positions = positions_of(batch, row_set="masked" if masked else "next")
        assert positions is not None
        output = student(batch.input_ids, attention_mask=batch.attention_mask, wants=Wants(positions=positions))
        assert output.logits is not None
        return output.logits, batch.token_ids[positions.sequence, positions.position + (0 if masked else 1)]

    def _dataset(self, accelerator: Accelerator) -> BatchDataset[TextRows, TextBatch]:
        return BatchDataset(
            self.stream,
            plan=plan_evaluation(self.stream, batch_size=self.batch_size),
            collate=self.collate,
            seed=0,
            window_blocks=0,
            share=Share(rank=accelerator.process_index, world_size=accelerator.num_processes),
        )
