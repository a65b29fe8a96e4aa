"""Accuracy on a labelled source: every labelled picture once, through the student's evaluation view."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from storage.errors import ConfigError
from storage.sources.base import NO_LABEL
from storage.streams.source_stream import SourceStream
from student_training.batch import Normalizer
from student_training.data import Share, StepDataset, load_batches
from student_training.left_out import LeftOut
from student_training.losses.dense import hard_cross_entropy
from student_training.plan import plan_evaluation
from student_training.rendering import Renderer, num_decode_threads
from student_training.runtime import count_local_processes
from student_training.students import Preprocessing
from student_training.task import Evaluated, Figures


@dataclass(frozen=True, kw_only=True, slots=True)
class Accuracy:
    """What an evaluation measured.

    Attributes:
        top1: share of pictures whose most probable class is the label.
        top5: share of pictures whose label is among the five most probable classes, or all classes where there are fewer.
        cross_entropy: mean over pictures, in nats.
        num_rows: labelled pictures.
        left_out: pictures that could not be read, over all processes.
        num_samples: all pictures.
    """

    top1: float
    top5: float
    cross_entropy: float
    num_rows: int
    left_out: tuple[LeftOut, ...] = ()
    num_samples: int = 0

    def evaluated(self) -> Evaluated:
        """Return the figures with what was left out."""
        figures: Figures = {
            "top1": self.top1,
            "top5": self.top5,
            "cross_entropy": self.cross_entropy,
            "num_rows": self.num_rows,
            "num_left_out": len(self.left_out),
        }
        return Evaluated(figures=figures, left_out=self.left_out, num_samples=self.num_samples)


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluator:
    """An evaluation that can be run again and again.

    Attributes:
        stream: the labelled source.
        preprocessing: the student's input.
        num_classes: classes of the student.
        batch_size: pictures in one forward pass over all processes.
        max_pixels: larger pictures are refused.
        loader_workers: processes that decode.
    """

    stream: SourceStream
    preprocessing: Preprocessing
    num_classes: int
    batch_size: int
    max_pixels: int
    loader_workers: int = 0

    def check(self) -> None:
        """Look into the source before any work starts.

        Raises:
            ConfigError: no picture has a label, or labels do not fit the student.
            SourceError: the source cannot be listed or read.
        """
        if self.stream.num_labelled == 0:
            raise ConfigError(
                "training.evaluation.source holds no labels, so there is no accuracy to measure; check its label field or class "
                "folders, or leave evaluation out"
            )
        if self.stream.max_label >= self.num_classes:
            raise ConfigError(
                f"training.evaluation.source has label {self.stream.max_label} but the student has {self.num_classes} classes; "
                "evaluate on a source with the classes that are trained, or raise training.student.num_classes"
            )

    def run(self, model: nn.Module, *, accelerator: Accelerator) -> Accuracy:
        """Return the accuracy of a model over all processes; its training mode is put back.

        Args:
            model: on the accelerator's device, not wrapped.
            accelerator: of this run.
        """
        was_training = model.training
        # TinyViT and LeViT of earlier timm keep what they make of their weights until they are trained again, which a moving
        # average never is: it would be evaluated with the attention biases of the first time.
        model.train()
        model.eval()
        try:
            totals, left_out = self._count(model, accelerator=accelerator)
        finally:
            model.train(was_training)
        top1, top5, cross_entropy, num_rows = accelerator.reduce(totals, reduction="sum").tolist()
        divisor = max(num_rows, 1.0)
        return Accuracy(
            top1=top1 / divisor,
            top5=top5 / divisor,
            cross_entropy=cross_entropy / divisor,
            num_rows=int(num_rows),
            left_out=tuple(sorted(gather_object(left_out), key=lambda found: found.key)),
            num_samples=int(self.stream.block_rows(epoch=0).sum()),
        )

    @torch.no_grad()
    def _count(self, model: nn.Module, *, accelerator: Accelerator) -> tuple[Tensor, list[LeftOut]]:
        """Return what this process counted: float64 [4], hits among one and five, summed cross entropy, labelled pictures.

        Beside it, the pictures that could not be read.
        """
        left_out: list[LeftOut] = []
        normalize = Normalizer(self.preprocessing.normalization, device=accelerator.device)
        totals = torch.zeros(4, dtype=torch.float64, device=accelerator.device)
        for batch in load_batches(
            self._dataset(accelerator), workers=self.loader_workers, pin_memory=accelerator.device.type == "cuda"
        ):
            left_out += batch.left_out
            on_device = batch.to(accelerator.device)
            with accelerator.autocast():
                logits = model(normalize(on_device.images))
            hits = logits.float().topk(min(5, self.num_classes), dim=1).indices == on_device.labels[:, None]
            rows = [
                hits[:, 0],
                hits.any(dim=1),
                hard_cross_entropy(logits, labels=on_device.labels),
                on_device.labels != NO_LABEL,
            ]
            totals += torch.stack([row.double() for row in rows]).sum(dim=1)
        return totals, left_out

    def _dataset(self, accelerator: Accelerator) -> StepDataset:
        return StepDataset(
            self.stream,
            plan=plan_evaluation(self.stream, batch_size=self.batch_size),
            renderer=Renderer(
                view=self.preprocessing.evaluation_view(),
                size=self.preprocessing.size,
                max_pixels=self.max_pixels,
                leaves_out=True,
            ),
            seed=0,
            window_blocks=0,
            share=Share(rank=accelerator.process_index, world_size=accelerator.num_processes),
            num_threads=num_decode_threads(
                loader_workers=self.loader_workers, local_processes=count_local_processes(accelerator)
            ),
        )
