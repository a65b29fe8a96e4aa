"""Units of texts labelled in this process, and what a live forward pass says of the same sequences."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import transformers

from pipelines.label_task import LabelTask
from pipelines.request import resolve_requests
from pipelines.teacher_memo import facts_of
from pipelines.teachers import load_any_teacher
from pipelines.text.labelling import TextUnitLabeller
from storage.config.load import parse_config
from storage.parts import PartRecord
from storage.samples import decode_samples
from storage.sources.base import NO_LABEL, Sample, SourceUnit
from storage.sources.unit_digest import UnitDigest
from storage.specs import PartSpec
from storage.target_blocks import decode_target_block

AUTO = {
    "masked_lm": transformers.AutoModelForMaskedLM,
    "causal_lm": transformers.AutoModelForCausalLM,
    "sequence_classifier": transformers.AutoModelForSequenceClassification,
}
MASKS = {"kind": "masked_tokens", "length": 32, "seed": 3}
TOKENS = {"kind": "tokens", "length": 32}


@dataclass
class Documents:
    """A source of one unit, in memory."""

    texts: list[bytes]
    labels: list[int] | None = None

    @property
    def classes(self):
        return None

    def read(self, unit):
        for position, text in enumerate(self.texts):
            label = NO_LABEL if self.labels is None else self.labels[position]
            yield Sample(position=position, key=f"d{position:03d}", label=label, data=text)

    @property
    def digest(self):
        digest = UnitDigest()
        for sample in self.read(None):
            digest.add(sample)
        return digest.hexdigest()


@dataclass
class Labelled:
    """A part, taken apart."""

    data: bytes
    record: PartRecord

    @property
    def table(self):
        extent = self.record.samples
        return decode_samples(self.data[extent.offset : extent.offset + extent.num_bytes], origin="part")

    @property
    def blocks(self):
        return [
            decode_target_block(self.data[extent.offset : extent.offset + extent.num_bytes], origin="part")
            for extent in self.record.blocks
        ]

    def sequences(self, *, view=0):
        """For each sequence that is present: its key, its tokens as the teacher saw them, its mask positions, its rows of values."""
        for block in self.blocks:
            if block.view != view:
                continue
            inputs = block.tokens.inputs()
            for row, position in enumerate(block.positions):
                tokens = slice(block.tokens.offsets[row], block.tokens.offsets[row + 1])
                rows = np.arange(block.row_offsets[row], block.row_offsets[row + 1])
                masks = None
                if block.tokens.masks is not None:
                    masks = block.tokens.masks.take(np.array([row])).positions
                yield self.table.keys[position], inputs[tokens].astype(np.int64), masks, block.values.take(rows)


class Bench:
    """One teacher and one config over documents in memory."""

    def __init__(self, folder, *, kind, texts, views, targets, labels=None, batch_size=4, teacher=None):
        self.folder, self.kind = folder, kind
        self.source = Documents([text if isinstance(text, bytes) else text.encode() for text in texts], labels)
        self.config = parse_config(
            {
                "name": "test",
                "cache": "memory://nowhere",
                "source": {"kind": "text", "path": "nowhere"},
                "teacher": {"kind": kind, "name": str(folder), "device": "cpu", **(teacher or {})},
                "views": views,
                "targets": targets,
                "generation": {"batch_size": batch_size},
            },
            origin="test",
        )
        self.teacher = load_any_teacher(self.config.teacher)
        self.requests = resolve_requests(self.config, facts=facts_of(self.teacher))

    def label(self, *, num_views=1, batch_size=None, only=None):
        """Label the unit; parts by the names of targets."""
        generation = self.config.generation
        if batch_size is not None:
            generation = generation.model_copy(update={"batch_size": batch_size})
        wanted = {name: request for name, request in self.requests.items() if only is None or name in only}
        labeller = TextUnitLabeller(
            teacher=self.teacher,
            source=self.source,
            requests={request.fingerprint(): request for request in wanted.values()},
            config=generation,
        )
        unit = SourceUnit(name="unit", locator={}, stat_token="")
        tasks = [
            LabelTask(
                unit=unit,
                part=PartSpec(request=request.fingerprint(), unit_digest=self.source.digest, first_view=0, num_views=num_views),
                num_samples=len(self.source.texts),
            )
            for request in wanted.values()
        ]
        labelled = labeller.label(tasks)
        return {name: Labelled(part.data, part.record) for name, part in zip(wanted, labelled, strict=True)}

    def live(self):
        """The model as transformers loads it."""
        return AUTO[self.kind].from_pretrained(self.folder, attn_implementation="eager").eval()


@torch.inference_mode()
def forward(module, ids, **ask):
    """One sequence alone, without padding."""
    return module(torch.from_numpy(ids)[None], attention_mask=torch.ones((1, len(ids)), dtype=torch.int64), **ask)
