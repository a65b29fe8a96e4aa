"""Students of texts: what they give, that padding changes nothing, and that they come back as they left."""

from __future__ import annotations

import json

import hypothesis.strategies as st
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification

from storage.errors import ConfigError, CorruptError
from storage.text.tokenizer import RECORDED_TOKENIZER
from student_training.terms.interface import Positions, Wants
from student_training.text.attention_capture import ATTENTION
from student_training.text.student_export import export_text_student, load_text_student
from student_training.text.students import create_text_student
from tests.student_training.text.text_batches import (
    BERT,
    CLASSES,
    MAX_TOKENS,
    TOKENS,
    VOCABULARY,
    make_batch,
    make_student,
    parse_student,
    student_config,
)

LENGTHS = (7, 2, 10)
HEADS = {
    ("bert", "masked_lm"): AutoModelForMaskedLM,
    ("distilbert", "masked_lm"): AutoModelForMaskedLM,
    ("albert", "masked_lm"): AutoModelForMaskedLM,
    ("roberta", "sequence_classifier"): AutoModelForSequenceClassification,
    ("distilbert", "sequence_classifier"): AutoModelForSequenceClassification,
    ("gpt2", "causal_lm"): AutoModelForCausalLM,
    ("llama", "causal_lm"): AutoModelForCausalLM,
    ("gpt2", "sequence_classifier"): AutoModelForSequenceClassification,
}
SMALL = {
    "bilstm": {"kind": "bilstm", "embedding_width": 6, "hidden_width": 5, "head_width": 7, "num_layers": 2},
    "mini_albert": {
        "kind": "mini_albert",
        "head": "sequence_classifier",
        "num_rounds": 3,
        "width": 12,
        "num_heads": 2,
        "intermediate_width": 16,
        "embedding_width": 6,
        "adapter_reduction": 4,
        "dropout": 0.0,
    },
    "text_cnn": {"kind": "text_cnn", "embedding_width": 6, "num_filters": 4, "kernel_sizes": [1, 3, 5]},
}


def make_small(kind, **fields):
    torch.manual_seed(0)
    config = parse_student({**SMALL[kind], **fields})
    return config, create_text_student(config, num_classes=CLASSES, vocabulary_size=VOCABULARY, max_tokens=MAX_TOKENS).eval()


MODERN_BERT = {**BERT, "local_attention": 8, "global_attn_every_n_layers": 2, "cls_token_id": 0, "sep_token_id": 0}
WINDOWS = {
    ("modernbert", "masked_lm"): (MODERN_BERT, (None, 5)),
    ("mistral", "causal_lm"): ({**BERT, "num_key_value_heads": 1, "sliding_window": 8}, (8, 8)),
    ("llama", "causal_lm"): ({**BERT, "num_key_value_heads": 1}, ()),
}


@pytest.mark.parametrize(("name", "head"), WINDOWS)
def test_a_student_knows_how_far_its_layers_see(name, head):
    settings, expected = WINDOWS[name, head]
    config = {**settings, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    student = make_student(name, head=head, architecture=name, config=config)
    assert student.shape.attention_windows == expected
    assert student.network.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(("name", "head"), HEADS)
def test_logits_hidden_states_and_vectors_are_those_of_the_network(name, head):
    student = make_student(name, head=head).eval()
    batch = make_batch(LENGTHS, masks=False)
    at = Positions(sequence=torch.tensor([0, 2, 2]), position=torch.tensor([6, 0, 9]))
    names = ("query.1", "key.2", "value.2")
    classifier = head == "sequence_classifier"
    wants = Wants(positions=at, hidden_states=True, vectors=names, embedding=True)
    found = student(batch.input_ids, attention_mask=batch.attention_mask, wants=wants)
    reference = student.network(input_ids=batch.input_ids, attention_mask=batch.attention_mask.long(), output_hidden_states=True)
    mask = batch.attention_mask
    expected = reference.logits if classifier else reference.logits[at.sequence, at.position]
    torch.testing.assert_close(found.logits, expected, rtol=1e-5, atol=1e-6)
    assert len(found.hidden_states) == student.shape.num_layers + 1
    for mine, theirs in zip(found.hidden_states, reference.hidden_states, strict=True):
        torch.testing.assert_close(mine[mask], theirs[mask], rtol=1e-5, atol=1e-6)
    widths = [(student.shape.num_heads, student.shape.num_key_value_heads)[name[0] != "q"] for name in names]
    assert [vectors.shape for vectors in found.vectors.values()] == [
        (*batch.input_ids.shape, heads * student.shape.head_width) for heads in widths
    ]
    assert found.embedding.shape == (3, student.shape.embedding_width)
    if not classifier:
        mean = torch.stack([rows[row_mask].mean(dim=0) for rows, row_mask in zip(reference.hidden_states[-1], mask, strict=True)])
        torch.testing.assert_close(found.embedding, mean, rtol=1e-5, atol=1e-6)


def test_vectors_are_what_the_projections_give_where_positions_are_not_rotated():
    student = make_student("bert").eval()
    batch = make_batch(LENGTHS)
    found = student(
        batch.input_ids,
        attention_mask=batch.attention_mask,
        wants=Wants(logits=False, hidden_states=True, vectors=("query.2", "key.1", "value.2")),
    )
    layers = [layer.attention.self for layer in student.network.bert.encoder.layer]
    torch.testing.assert_close(found.vectors["query.2"], layers[1].query(found.hidden_states[1]))
    torch.testing.assert_close(found.vectors["key.1"], layers[0].key(found.hidden_states[0]))
    torch.testing.assert_close(found.vectors["value.2"], layers[1].value(found.hidden_states[1]))
    assert found.logits is None


def test_vectors_rebuild_the_attention_of_rotated_positions():
    student = make_student("llama", head="causal_lm", config={"num_hidden_layers": 1}).eval()
    batch = make_batch((6,), masks=False)
    found = student(batch.input_ids, attention_mask=batch.attention_mask, wants=Wants(vectors=("query.1", "key.1")))
    student.network.set_attn_implementation("eager")
    (maps,) = student.network(input_ids=batch.input_ids, output_attentions=True).attentions
    query = found.vectors["query.1"].view(6, 2, 8)
    key = found.vectors["key.1"].view(6, 1, 8).expand(6, 2, 8)
    scores = torch.einsum("qhd,khd->hqk", query, key) / 8**0.5
    rebuilt = scores.masked_fill(~torch.ones(6, 6).tril().bool(), -torch.inf).softmax(dim=2)
    torch.testing.assert_close(rebuilt, maps[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "head"), HEADS)
def test_padding_changes_nothing_for_transformers(name, head):
    student = make_student(name, head=head).eval()
    batch, padded = (make_batch(LENGTHS, padded_to=size, masks=False) for size in (10, 14))
    classifier = head == "sequence_classifier"
    first, other = (
        student(one.input_ids, attention_mask=one.attention_mask, wants=Wants(embedding=True)) for one in (batch, padded)
    )
    torch.testing.assert_close(first.embedding, other.embedding, rtol=1e-5, atol=1e-6)
    if classifier:
        torch.testing.assert_close(first.logits, other.logits, rtol=1e-5, atol=1e-6)
    else:
        torch.testing.assert_close(first.logits[batch.attention_mask], other.logits[padded.attention_mask], rtol=1e-5, atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(
    kind=st.sampled_from(sorted(SMALL)),
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    padding=st.integers(0, 6),
    seed=st.integers(0, 99),
)
def test_padding_changes_nothing_for_small_students(kind, lengths, padding, seed):
    _, student = make_small(kind)
    batch = make_batch(lengths, seed=seed, masks=False)
    padded = make_batch(lengths, seed=seed, masks=False, padded_to=max(lengths) + padding)
    # What stands in the padding does not matter either.
    filled = torch.where(padded.attention_mask, padded.input_ids, 7)
    first = student(batch.input_ids, attention_mask=batch.attention_mask).logits
    other = student(filled, attention_mask=padded.attention_mask).logits
    torch.testing.assert_close(first, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", sorted(SMALL))
def test_small_students_learn(kind):
    _, student = make_small(kind, dropout=0.0)
    student.train()
    batch = make_batch((5, 6, 7, 8, 9, 3), masks=False)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    optimizer = torch.optim.Adam(student.parameters(), lr=0.02)
    for _ in range(40):
        loss = torch.nn.functional.cross_entropy(student(batch.input_ids, attention_mask=batch.attention_mask).logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


@pytest.mark.parametrize(("name", "head"), HEADS)
def test_students_leave_as_transformers_checkpoints(name, head, tmp_path):
    student = make_student(name, head=head).eval()
    batch = make_batch(LENGTHS, masks=False)
    expected = student(batch.input_ids, attention_mask=batch.attention_mask, wants=Wants(vectors=("query.1",))).logits
    path = export_text_student(student, folder=tmp_path, config=student_config(name, head=head), view=TOKENS, weights="trained")
    assert sorted(file.name for file in tmp_path.iterdir() if file.name != "generation_config.json") == [
        "config.json",
        "model.safetensors",
    ]
    assert path == tmp_path / "model.safetensors"
    described = AutoConfig.from_pretrained(tmp_path)
    assert getattr(described, RECORDED_TOKENIZER) == TOKENS.tokenizer_sha256
    assert ATTENTION not in (tmp_path / "config.json").read_text()
    loaded, missing = HEADS[name, head].from_pretrained(tmp_path, output_loading_info=True)
    assert not missing["missing_keys"]
    assert not missing["unexpected_keys"]
    found = loaded.eval()(input_ids=batch.input_ids, attention_mask=batch.attention_mask.long()).logits
    again = load_text_student(tmp_path)
    mask = batch.attention_mask if head != "sequence_classifier" else slice(None)
    torch.testing.assert_close(found[mask], expected[mask], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        again(batch.input_ids, attention_mask=batch.attention_mask).logits[mask], expected[mask], rtol=1e-5, atol=1e-6
    )
    assert again.shape == student.shape


@pytest.mark.parametrize("kind", sorted(SMALL))
def test_small_students_come_back_as_they_left(kind, tmp_path):
    config, student = make_small(kind)
    batch = make_batch(LENGTHS, masks=False)
    export_text_student(student, folder=tmp_path, config=config, view=TOKENS, weights="ema")
    assert json.loads((tmp_path / "config.json").read_text())[RECORDED_TOKENIZER] == TOKENS.tokenizer_sha256
    loaded = load_text_student(tmp_path)
    inputs = {"attention_mask": batch.attention_mask}
    torch.testing.assert_close(
        loaded(batch.input_ids, **inputs).logits, student(batch.input_ids, **inputs).logits, rtol=0, atol=0
    )
    assert loaded.shape == student.shape


def test_mini_albert_shares_its_layer_and_not_its_adapters():
    config = parse_student({**SMALL["mini_albert"], "head": "masked_lm"})
    torch.manual_seed(0)
    student = create_text_student(config, num_classes=VOCABULARY, vocabulary_size=VOCABULARY, max_tokens=MAX_TOKENS).eval()
    assert (student.shape.num_layers, student.shape.num_heads, student.shape.head_width) == (3, 2, 6)
    rounds = {name.split(".")[1] for name, _ in student.named_parameters() if name.startswith("before_attention")}
    assert rounds == {"0", "1", "2"}
    assert sum(name.startswith("layer.query") for name, _ in student.named_parameters()) == 2
    batch = make_batch(LENGTHS)
    at = Positions(sequence=torch.tensor([0, 2]), position=torch.tensor([6, 9]))
    everywhere, there = (
        student(batch.input_ids, attention_mask=batch.attention_mask, wants=wants)
        for wants in (None, Wants(positions=at, hidden_states=True, vectors=("query.3", "value.1")))
    )
    torch.testing.assert_close(there.logits, everywhere.logits[at.sequence, at.position])
    adapted = student.before_attention[2](there.hidden_states[2])
    torch.testing.assert_close(there.vectors["query.3"], student.layer.query(adapted))
    assert len(there.hidden_states) == 4


def test_a_folder_without_a_student_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"kind": "bilstm"}')
    with pytest.raises(CorruptError, match="no student of texts"):
        load_text_student(tmp_path)


def test_a_student_starts_from_a_checkpoint(tmp_path):
    first = make_student("bert").eval()
    first.network.save_pretrained(tmp_path)
    config = parse_student({"kind": "transformers", "head": "masked_lm", "path": str(tmp_path), "pretrained": True})
    again = create_text_student(config, num_classes=VOCABULARY, vocabulary_size=VOCABULARY, max_tokens=MAX_TOKENS)
    assert again.training
    for mine, theirs in zip(again.parameters(), first.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
    fresh = config.model_copy(update={"pretrained": False})
    other = create_text_student(fresh, num_classes=VOCABULARY, vocabulary_size=VOCABULARY, max_tokens=MAX_TOKENS)
    assert other.shape == first.shape
    assert not torch.equal(next(other.parameters()), next(first.parameters()))


def test_a_head_that_is_padded_is_cut():
    student = make_student("bert", config={"vocab_size": 48}).eval()
    batch = make_batch(LENGTHS)
    assert student(batch.input_ids, attention_mask=batch.attention_mask).logits.shape == (3, 10, VOCABULARY)
    assert student.shape.num_classes == VOCABULARY


REFUSED = {
    "no such architecture": ({"architecture": "brt"}, "no 'brt'. Did you mean 'bert'"),
    "a bad field": ({"config": {**BERT, "num_attention_heads": 3}}, "cannot be made"),
    "a field nobody reads": ({"config": {**BERT, "num_hiden_layers": 2}}, "Did you mean 'num_hidden_layers'?"),
    "too short": ({"config": {**BERT, "max_position_embeddings": 8}}, "a sequence of 16 tokens"),
    "too small a vocabulary": ({"config": {**BERT, "vocab_size": 30}}, "30 tokens and the texts 40"),
    "sees later tokens": ({"head": "causal_lm"}, "is_decoder: true"),
    "our own field": ({"config": {**BERT, "num_labels": 2}}, "'num_labels'"),
    "no such folder": ({"architecture": None, "path": "/nowhere/at/all", "config": {}}, "cannot be read"),
}


@pytest.mark.parametrize(("fields", "message"), REFUSED.values(), ids=REFUSED)
def test_students_that_cannot_be(fields, message):
    data = {"kind": "transformers", "head": "masked_lm", "architecture": "bert", "config": BERT, **fields}
    with pytest.raises(ConfigError, match=r"training\.student") as caught:
        create_text_student(parse_student(data), num_classes=None, vocabulary_size=VOCABULARY, max_tokens=MAX_TOKENS)
    assert message in str(caught.value)


def test_a_classifier_needs_its_classes():
    config = parse_student(SMALL["bilstm"])
    with pytest.raises(ConfigError, match=r"training\.student\.num_classes"):
        create_text_student(config, num_classes=None, vocabulary_size=VOCABULARY, max_tokens=MAX_TOKENS)


def test_no_ordinary_token_is_taken_for_padding():
    """Token 0 of a byte-level vocabulary is a word like others: it has an embedding that is trained."""
    student = make_student("llama", head="causal_lm", config={"pad_token_id": None})
    table = student.network.get_input_embeddings()
    assert table.padding_idx is None
    output = student(torch.tensor([[0, 7]]), attention_mask=torch.ones(1, 2, dtype=torch.bool))
    output.logits.square().sum().backward()
    assert table.weight[0].abs().sum() > 0
    assert table.weight.grad[0].abs().sum() > 0


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_causal_classifier_takes_the_end_of_a_text_for_padding(name):
    config = {"pad_token_id": None, "eos_token_id": 2}
    student = make_student(name, head="sequence_classifier", config=config).eval()
    assert student.network.config.pad_token_id == 2
    ids = torch.tensor([[7, 9, 0], [7, 9, 2]])
    found = student(ids, attention_mask=torch.ones_like(ids, dtype=torch.bool), wants=Wants(embedding=True))
    assert not torch.allclose(found.logits[0], found.logits[1])
    torch.testing.assert_close(student._head[0](found.embedding), found.logits)


def test_first_weights_hold_the_whole_body(tmp_path):
    """A fresh head is meant; a body of which some or all is fresh would be trained from the start without a word."""
    make_student("bert").network.save_pretrained(tmp_path)

    def load(head, **fields):
        config = parse_student({"kind": "transformers", "head": head, "path": str(tmp_path), "pretrained": True, **fields})
        classes = CLASSES if head == "sequence_classifier" else VOCABULARY
        return create_text_student(config, num_classes=classes, vocabulary_size=VOCABULARY, max_tokens=MAX_TOKENS)

    load("masked_lm")
    load("sequence_classifier")
    with pytest.raises(ConfigError, match=r"^training\.student\.config\.num_hiden_layers is no entry of the config of bert"):
        load("masked_lm", config={"num_hiden_layers": 3})
    with pytest.raises(ConfigError, match=r"^training\.student\.path: .* lack 16 tensors of the body of BertForMaskedLM"):
        load("masked_lm", config={"num_hidden_layers": 3})
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    renamed = {f"network.{name}": tensor for name, tensor in weights.items()}
    safetensors.torch.save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"lack \d+ tensors of the body .* \(bert\.embeddings\.LayerNorm\.bias, .* be random"):
        load("masked_lm")
    layers_from = {"path": str(tmp_path), "layers": [0]}
    config = student_config("bert", config={"num_hidden_layers": 1}, layers_from=layers_from)
    with pytest.raises(ConfigError, match=r"^training\.student\.layers_from\.path: "):
        create_text_student(config, num_classes=VOCABULARY, vocabulary_size=VOCABULARY, max_tokens=MAX_TOKENS)


def test_an_architecture_whose_config_knows_no_padding_token_is_taken():
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": MAX_TOKENS, "n_inner": 24, "rotary_dim": 4}
    student = make_student("codegen", head="causal_lm", architecture="codegen", config=sizes).eval()
    batch = make_batch(LENGTHS, masks=False)
    assert student(batch.input_ids, attention_mask=batch.attention_mask).logits.shape[-1] == VOCABULARY


MIXTRAL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 24,
    "num_local_experts": 4,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


@pytest.mark.parametrize("seed", range(4))
def test_networks_of_experts_are_seen_to_be_causal(seed):
    """Experts add their tokens in another order where others share them, so that outputs differ in the last digits."""
    student = make_student("mixtral", head="causal_lm", architecture="mixtral", config=MIXTRAL, seed=seed)
    assert student.shape.causal


@pytest.mark.parametrize(("name", "causal"), [("gpt2", True), ("llama", True), ("bert", False)])
def test_quantisation_does_not_hide_what_tokens_see(name, causal):
    student = make_student(name, head="sequence_classifier", quantization={"bits": 8, "activation_decay": 0.99})
    assert student.shape.causal is causal


@pytest.mark.parametrize(("name", "pad"), [("bert", 0), ("roberta", 1), ("distilbert", 0)])
def test_an_ordinary_token_in_the_place_of_padding_learns(name, pad):
    student = make_student(name)
    embedding = student.network.get_input_embeddings()
    assert student.network.config.pad_token_id == pad

    def gradients(ids, mask):
        student.zero_grad()
        student(torch.tensor(ids), attention_mask=torch.tensor(mask)).logits[torch.tensor(mask)].square().sum().backward()
        return embedding.weight.grad.clone()

    # The head is not tied to the embeddings here, so that gradients come from the texts.
    student.network.get_output_embeddings().weight = torch.nn.Parameter(embedding.weight.detach().clone())
    assert gradients([[5, pad, 6, 7]], [[True] * 4])[pad].abs().sum() > 0
    assert gradients([[5, 6, pad, pad]], [[True, True, False, False]])[pad].abs().sum() == 0
