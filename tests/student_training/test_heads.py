"""The frozen head in torch: the reference's logits, full vocabularies from stored hidden states, and nothing of it trained."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from storage.codecs import features
from storage.errors import MismatchError
from storage.features import FeatureRows
from storage.heads import Activation, FrozenHead, HeadSpec, LayerNorm, Linear, apply_head
from storage.specs import Float16Codec, HiddenStatesSpec, Int8Codec
from student_training.heads import HeadModule
from tests.storage.heads import HEADS, make_head


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu", "silu", "tanh"])
@pytest.mark.parametrize("spec", HEADS)
def test_logits_are_those_of_the_reference(spec, activation):
    changed = [Activation(name=activation) if operation.kind == "activation" else operation for operation in spec.operations]
    head = make_head(HeadSpec(reads=spec.reads, operations=tuple(changed)))
    hidden = np.random.default_rng(1).normal(scale=3, size=(9, spec.width)).astype(np.float16)
    found = HeadModule(head)(torch.from_numpy(hidden))
    assert found.dtype == torch.float32
    assert found.numpy() == pytest.approx(apply_head(head, hidden), rel=1e-4, abs=1e-4)


def bert_head(model):
    """BERT's head, taken apart by hand: the student side knows no pipelines."""
    transform, decoder = model.cls.predictions.transform, model.cls.predictions.decoder
    layers = {"0": transform.dense, "2": transform.LayerNorm, "3": decoder}
    width = decoder.in_features
    return FrozenHead(
        spec=HeadSpec(
            reads="every",
            operations=(
                Linear(inputs=width, outputs=width, bias=True),
                Activation(name="gelu"),
                LayerNorm(width=width, eps=1e-12, bias=True),
                Linear(inputs=width, outputs=decoder.out_features, bias=True),
            ),
        ),
        tensors={
            f"{index}.{name}": getattr(layer, name).detach().numpy()
            for index, layer in layers.items()
            for name in ("weight", "bias")
        },
    )


@pytest.mark.parametrize(("codec", "most"), [(Float16Codec(), 1e-6), (Int8Codec(), 1e-4)])
def test_stored_hidden_states_give_the_models_distributions(codec, most):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 300}
    model = BertForMaskedLM(BertConfig(**sizes, initializer_range=0.3)).eval()
    with torch.inference_mode():
        given = model(torch.randint(300, (8, 32)), output_hidden_states=True)
    target = HiddenStatesSpec(layers=(2,), tokens="all", width=32, codec=codec)
    rows = FeatureRows(tensors={"hidden.2": given.hidden_states[-1].reshape(-1, 32).numpy()})
    stored = features.decode(features.encode(rows, spec=target), num_rows=len(rows), spec=target).tensors["hidden.2"]
    rebuilt = HeadModule(bert_head(model))(torch.from_numpy(stored))
    wanted = given.logits.reshape(-1, 300)
    kl = torch.nn.functional.kl_div(rebuilt.log_softmax(1), wanted.log_softmax(1), log_target=True, reduction="batchmean")
    assert 0 <= kl < most
    # All that is lost is lost in the hidden states: the model's own head makes the same of those.
    with torch.inference_mode():
        own = model.cls(torch.from_numpy(stored.astype(np.float32)))
    assert rebuilt.numpy() == pytest.approx(own.numpy(), abs=1e-5)


def test_nothing_of_it_is_trained_or_saved_and_gradients_pass():
    module = HeadModule(make_head())
    assert list(module.parameters()) == []
    assert module.state_dict() == {}
    hidden = torch.randn(3, 6, requires_grad=True)
    module(hidden).logsumexp(1).sum().backward()
    assert hidden.grad.abs().min() > 0
    assert {values.device.type for values in module.to("meta").buffers()} == {"meta"}


def test_autocast_rounds_nothing():
    module, hidden = HeadModule(make_head()), torch.randn(4, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = module(hidden)
    assert torch.equal(found, module(hidden))


def test_hidden_states_of_another_width_are_refused():
    with pytest.raises(MismatchError, match="reads hidden states 6 wide, these are 5 wide"):
        HeadModule(make_head())(torch.zeros(2, 5))
