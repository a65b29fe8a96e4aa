"""The head of a real model, taken apart: the same logits, or an error that says what cannot be stored."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from pipelines.teachers.heads import frozen_head
from storage.errors import TeacherError
from storage.heads import apply_head

VOCABULARY = 50
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": VOCABULARY}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GROUPED = {**SIZES, **SPECIAL, "num_key_value_heads": 1, "head_dim": 8}
DISTILBERT = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 24, "vocab_size": VOCABULARY, "max_position_embeddings": 32}
GPT2 = {
    "n_embd": 16,
    "n_layer": 1,
    "n_head": 2,
    "vocab_size": VOCABULARY,
    "n_positions": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OPT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 24, "vocab_size": VOCABULARY, **SPECIAL}
MODERN = {**SIZES, **SPECIAL, "cls_token_id": 1, "sep_token_id": 2}

TOKEN_HEAD = ["linear", "activation", "layer_norm", "linear"]
MODELS = {
    "BertForMaskedLM": (SIZES, "gelu", TOKEN_HEAD),
    "RobertaForMaskedLM": ({**SIZES, **SPECIAL}, "gelu", TOKEN_HEAD),
    "DistilBertForMaskedLM": (DISTILBERT, "gelu", TOKEN_HEAD),
    "ElectraForMaskedLM": ({**SIZES, "embedding_size": 12}, "gelu", TOKEN_HEAD),
    "AlbertForMaskedLM": ({**SIZES, "embedding_size": 12}, "gelu_tanh", TOKEN_HEAD),
    "ModernBertForMaskedLM": (MODERN, "gelu", TOKEN_HEAD),
    "LlamaForCausalLM": (GROUPED, None, ["linear"]),
    "GPT2LMHeadModel": (GPT2, None, ["linear"]),
    "OPTForCausalLM": (OPT, None, ["linear"]),
    "GPTNeoXForCausalLM": ({**SIZES, **SPECIAL}, None, ["linear"]),
    "Gemma2ForCausalLM": ({**GROUPED, "final_logit_softcapping": 5.0}, None, ["linear", "soft_cap"]),
    "CohereForCausalLM": ({**GROUPED, "logit_scale": 0.06}, None, ["linear", "scale"]),
    "GraniteForCausalLM": ({**GROUPED, "logits_scaling": 8.0}, None, ["linear", "scale"]),
    "BertForSequenceClassification": (SIZES, "tanh", ["linear", "activation", "linear"]),
    "RobertaForSequenceClassification": ({**SIZES, **SPECIAL}, "tanh", ["linear", "activation", "linear"]),
    "DistilBertForSequenceClassification": (DISTILBERT, "relu", ["linear", "activation", "linear"]),
    "ElectraForSequenceClassification": (SIZES, "gelu", ["linear", "activation", "linear"]),
    "AlbertForSequenceClassification": (SIZES, "tanh", ["linear", "activation", "linear"]),
    "ModernBertForSequenceClassification": (MODERN, "gelu", TOKEN_HEAD),
}


def make_model(name, **settings):
    """A model of random weights, biases and norms among them, which are else 0 and 1."""
    torch.manual_seed(0)
    model_class = getattr(transformers, name)
    model = model_class(model_class.config_class(**settings)).eval()
    for values in model.parameters():
        if values.ndim == 1:
            torch.nn.init.normal_(values, mean=0.3, std=0.5)
    return model


def outputs_of(model, *, num_sequences=3, num_tokens=7):
    input_ids = torch.randint(VOCABULARY, (num_sequences, num_tokens), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        given = model(input_ids, attention_mask=torch.ones_like(input_ids), output_hidden_states=True)
    return given.hidden_states[-1].float().numpy(), given.logits.float().numpy()


@pytest.mark.parametrize("name", MODELS)
def test_rebuilt_logits_are_the_models(name):
    settings, activation, kinds = MODELS[name]
    is_classifier = name.endswith("Classification")
    num_outputs = 3 if is_classifier else VOCABULARY - 2
    model = make_model(name, **settings, **({"num_labels": 3} if is_classifier else {}))
    head = frozen_head(model, num_outputs=num_outputs, name=name)
    assert [operation.kind for operation in head.spec.operations] == kinds
    assert [operation.name for operation in head.spec.operations if operation.kind == "activation"] == [activation] * bool(
        activation
    )
    assert (head.spec.reads, head.spec.width) == ("first" if is_classifier else "every", 16)
    assert head.spec.num_outputs == num_outputs
    hidden, logits = outputs_of(model)
    rows = hidden[:, 0] if is_classifier else hidden.reshape(-1, 16)
    wanted = logits.reshape(len(rows), -1)[:, :num_outputs]
    assert np.abs(apply_head(head, rows) - wanted).max() < 1e-4 * np.abs(wanted).max()
    assert frozen_head(model, num_outputs=num_outputs, name=name).sha256() == head.sha256()


@pytest.mark.parametrize(
    ("activation", "name"), [("gelu_new", "gelu_tanh"), ("gelu_pytorch_tanh", "gelu_tanh"), ("relu", "relu"), ("silu", "silu")]
)
def test_activations_are_known_by_what_they_give(activation, name):
    head = frozen_head(make_model("BertForMaskedLM", **SIZES, hidden_act=activation), num_outputs=VOCABULARY, name="bert")
    assert head.spec.operations[1].name == name


def test_a_model_in_bfloat16_gives_its_weights_as_they_are():
    model = make_model("BertForMaskedLM", **SIZES)
    plain = frozen_head(model.bfloat16().float(), num_outputs=VOCABULARY, name="bert")
    assert frozen_head(model.bfloat16(), num_outputs=VOCABULARY, name="bert").sha256() == plain.sha256()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("LlamaForSequenceClassification", {**GROUPED, "num_labels": 3}),
        ("XLNetLMHeadModel", {"d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 24, "vocab_size": VOCABULARY}),
        ("BertForMaskedLM", {**SIZES, "hidden_act": "mish"}),
    ],
)
def test_heads_that_cannot_be_expressed_are_named(name, settings):
    with pytest.raises(
        TeacherError, match=rf"head of teacher mine \({name}\) is none that can be stored .* Leave target.head out"
    ):
        frozen_head(make_model(name, **settings), num_outputs=3, name="mine")


def test_a_model_that_does_something_else_to_its_logits_is_refused():
    model = make_model("LlamaForCausalLM", **GROUPED)
    plain_forward = model.forward

    def forward(*inputs, **options):
        given = plain_forward(*inputs, **options)
        given.logits = given.logits * 1.01
        return given

    model.forward = forward
    with pytest.raises(TeacherError, match="none that can be stored as data"):
        frozen_head(model, num_outputs=VOCABULARY, name="mine")


def test_more_outputs_than_the_head_has_are_refused():
    with pytest.raises(TeacherError, match="none that can be stored"):
        frozen_head(make_model("LlamaForCausalLM", **GROUPED), num_outputs=VOCABULARY + 1, name="mine")


def test_a_head_of_too_many_numbers_says_how_many_and_what_the_limit_is(monkeypatch):
    model = make_model("LlamaForCausalLM", **GROUPED)
    kept = VOCABULARY - 1
    monkeypatch.setattr("pipelines.teachers.heads.MAX_HEAD_VALUES", 16 * kept)
    assert frozen_head(model, num_outputs=kept, name="mine").spec.num_outputs == kept
    with pytest.raises(
        TeacherError, match=r"\(LlamaForCausalLM\) has 800 numbers, and one of at most 784 can be .* choose soft_labels as target"
    ):
        frozen_head(model, num_outputs=VOCABULARY, name="mine")


def test_a_model_that_does_not_run_says_so():
    model = make_model("LlamaForCausalLM", **GROUPED)
    model.lm_head = torch.nn.Linear(9, VOCABULARY)
    with pytest.raises(TeacherError, match="teacher mine failed on random tokens: RuntimeError"):
        frozen_head(model, num_outputs=VOCABULARY, name="mine")
