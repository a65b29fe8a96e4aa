"""What a student minimises: the weighted sum of its terms, computed from one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from student_training.terms.interface import Positions, StudentOutput, TermBatch, Wants
from student_training.terms.rows import Outputs
from student_training.terms.term import Term


class Learner(nn.Module):
    """A student with what it minimises: one module, so that one wrapper, optimiser and checkpoint hold all that is trained.

    loss = sum of weight * (sum over rows / count) over all terms. Export and evaluate `student` alone.

    Attributes:
        student: the network.
        names: names of the losses that are computed, `loss` first.
    """

    def __init__(self, student: nn.Module, terms: Sequence[Term]) -> None:
        super().__init__()
        self.student = student
        self.terms = nn.ModuleList(terms)
        self.names = ("loss", *(term.name for term in terms))
        self._vectors = tuple(dict.fromkeys(name for term in terms for name in term.vectors))
        self._freeze_what_no_term_reaches()

    def run(self, batch: Any) -> Outputs:
        """Return what the student gives of a batch, on the module's device."""
        raise NotImplementedError

    def probe(self) -> StudentOutput:
        """Return what the student gives of any one sample, of all that the terms need."""
        raise NotImplementedError

    def _freeze_what_no_term_reaches(self) -> None:
        """Take parameters without a gradient (a head without a term, layers above the last that is compared) out of training.

        Weight decay must not wear them down, and processes that wait for their gradients would wait for ever.
        """
        was_training = self.student.training
        self.student.eval()
        output = self.probe()
        self.student.train(was_training)
        layers = {layer for term in self.list_terms() for layer in term.hidden_layers}
        read = [output.hidden_states[layer] for layer in sorted(layers)] + [output.vectors[name] for name in self._vectors]
        read += [tensor for tensor in (output.logits, output.embedding) if tensor is not None]
        parameters = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(torch.stack([tensor.sum() for tensor in read]).sum(), parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.requires_grad_(gradient is not None)

    def list_terms(self) -> list[Term]:
        """Return the terms, in order."""
        return [term for term in self.terms if isinstance(term, Term)]

    def counts(self, batch: TermBatch) -> Tensor:
        """Return float32 [terms], what each term's sum is divided by. Several processes use the mean over them."""
        return torch.stack([term.count(batch) for term in self.list_terms()])

    def wants_of(self, *, logits: bool, positions: Positions | None = None) -> Wants:
        """Return what the terms need of the student."""
        terms = self.list_terms()
        return Wants(
            logits=logits,
            positions=positions,
            hidden_states=any(term.hidden_layers for term in terms),
            vectors=self._vectors,
            embedding=any(term.needs_embedding for term in terms),
        )

    def forward(self, batch: Any, *, counts: Tensor | None = None) -> dict[str, Tensor]:
        """Return scalars: `loss`, and each term by its name, not yet weighted.

        Args:
            batch: on the module's device.
            counts: divisors; None: those of this batch.
        """
        outputs = self.run(batch)
        divisors = self.counts(batch) if counts is None else counts
        # Scores and divergences are small differences of large numbers, which half precision would lose.
        with torch.autocast(outputs.batch.labels.device.type, enabled=False):
            found = {
                term.name: term.total(outputs) / divisors[number].clamp(min=1e-9) for number, term in enumerate(self.list_terms())
            }
            loss = torch.stack([term.weight * found[term.name] for term in self.list_terms()]).sum()
        return {"loss": loss, **found}


def learn(module: nn.Module, batch: TermBatch, *, accelerator: Accelerator) -> dict[str, Tensor]:
    """Return the losses of a batch: of several processes, divided by what a process has on average.

    Args:
        module: a learner, as `Accelerator.prepare` gave it.
        batch: this process's share, on its device.
        accelerator: device and processes.
    """
    counts: Tensor | None = None
    if accelerator.num_processes > 1:
        learner: Learner = accelerator.unwrap_model(module)
        counts = accelerator.reduce(learner.counts(batch), reduction="mean")
    found: dict[str, Tensor] = module(batch, counts=counts)
    return found
