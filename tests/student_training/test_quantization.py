"""Quantisation-aware training: the grid, the gradient, the moving average, and what leaves."""

from __future__ import annotations

import json

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import nn
from transformers import AutoModelForMaskedLM

from student_training.quantization import fake_quantize, quantize_for_training, thresholds
from student_training.text.student_export import export_text_student, load_text_student
from tests.student_training.text.text_batches import TOKENS, make_batch, make_student, student_config


@given(bits=st.integers(2, 8), threshold=st.floats(0.1, 10), seed=st.integers(0, 99))
def test_values_lie_on_the_grid_and_gradients_pass(bits, threshold, seed):
    values = (3 * torch.randn(50, generator=torch.Generator().manual_seed(seed))).requires_grad_()
    rounded = fake_quantize(values, threshold=torch.tensor(threshold), bits=bits)
    limit = 2 ** (bits - 1) - 1
    steps = rounded.detach().double() * limit / threshold
    assert (steps - steps.round()).abs().max() < 1e-3
    assert steps.abs().max() <= limit + 1e-3
    inside = values.detach().abs() <= threshold
    error = (rounded - values).detach().abs() * inside
    assert error.max() <= threshold / limit / 2 * 1.001
    (gradient,) = torch.autograd.grad(rounded.sum(), values)
    assert torch.equal(gradient, torch.ones_like(values))


def test_a_threshold_of_zero_gives_zeros():
    assert torch.equal(fake_quantize(torch.zeros(3), threshold=torch.tensor(0.0), bits=8), torch.zeros(3))


def test_the_input_grid_follows_a_moving_average_in_training_only():
    network = nn.Sequential(nn.Linear(4, 4))
    quantize_for_training(network, bits=8, activation_decay=0.9)
    network(torch.full((2, 4), 2.0))
    assert thresholds(network) == {"0": pytest.approx(2.0)}
    network(torch.full((2, 4), -4.0))
    assert thresholds(network) == {"0": pytest.approx(0.9 * 2 + 0.1 * 4)}
    network.eval()(torch.full((2, 4), 100.0))
    assert thresholds(network) == {"0": pytest.approx(2.2)}


def test_a_rounded_layer_computes_with_rounded_numbers():
    torch.manual_seed(0)
    layer = nn.Linear(6, 3)
    plain_weight, values = layer.weight.detach().clone(), torch.randn(5, 6)
    network = nn.Sequential(layer)
    quantize_for_training(network, bits=4, activation_decay=0.5)
    weight = fake_quantize(plain_weight, threshold=plain_weight.abs().max(), bits=4)
    inputs = fake_quantize(values, threshold=values.abs().max(), bits=4)
    torch.testing.assert_close(network(values), inputs @ weight.T + layer.bias)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_eight_bits_stay_near_and_two_do_not(name):
    head = "causal_lm" if name == "gpt2" else "masked_lm"
    batch = make_batch((8, 5), masks=False)
    logits = {
        bits: make_student(name, head=head, **({"quantization": {"bits": bits}} if bits else {}))
        .eval()(batch.input_ids, attention_mask=batch.attention_mask)
        .logits[batch.attention_mask]
        for bits in (None, 8, 2)
    }
    errors = {bits: (logits[bits] - logits[None]).norm() / logits[None].norm() for bits in (8, 2)}
    assert 1e-6 < errors[8] < 0.05
    assert errors[2] > 5 * errors[8]


def test_a_rounded_student_trains_and_leaves_as_an_ordinary_checkpoint(tmp_path):
    quantization = {"bits": 6, "activation_decay": 0.9}
    student = make_student("bert", quantization=quantization)
    assert student.network.get_output_embeddings().weight is student.network.get_input_embeddings().weight
    batch = make_batch((8, 5))
    student.zero_grad()
    student(batch.input_ids, attention_mask=batch.attention_mask).logits[batch.attention_mask].square().mean().backward()
    assert all(parameter.grad is not None for parameter in student.parameters())
    student.eval()
    expected = student(batch.input_ids, attention_mask=batch.attention_mask).logits
    config = student_config("bert", quantization=quantization)
    export_text_student(student, folder=tmp_path, config=config, view=TOKENS, weights="trained")
    record = json.loads((tmp_path / "quantization.json").read_text())
    assert record["bits"] == 6
    assert all(value > 0 for value in record["activation_thresholds"].values())
    _, info = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["unexpected_keys"]
    assert not info["missing_keys"]
    loaded = load_text_student(tmp_path)
    torch.testing.assert_close(loaded(batch.input_ids, attention_mask=batch.attention_mask).logits, expected)
    plain = make_student("bert").eval()
    export_text_student(plain, folder=tmp_path, config=student_config("bert"), view=TOKENS, weights="trained")
    assert not (tmp_path / "quantization.json").exists()
