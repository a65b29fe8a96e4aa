"""Students that start from layers of a deeper network."""

from __future__ import annotations

import pytest
import torch

from storage.errors import ConfigError
from student_training.text.students import create_text_student
from tests.student_training.text.text_batches import (
    CLASSES,
    MAX_TOKENS,
    VOCABULARY,
    make_batch,
    make_student,
    student_config,
)


def save_deeper(name, folder, *, head="masked_lm", layers=4, **fields):
    student = make_student(name, head=head, seed=3, config={"num_hidden_layers": layers, **fields}).eval()
    # A teacher that has been trained: its biases and norms are not what they start as.
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    student.network.save_pretrained(folder)
    return student


def start(name, folder, *, layers, head="masked_lm", depth=None, **fields):
    field = {"gpt2": "n_layer"}.get(name, "num_hidden_layers")
    config = student_config(
        name, head=head, config={field: depth or len(layers), **fields}, layers_from={"path": str(folder), "layers": layers}
    )
    classes = CLASSES if head == "sequence_classifier" else VOCABULARY
    return create_text_student(config, num_classes=classes, vocabulary_size=VOCABULARY, max_tokens=MAX_TOKENS).eval()


@pytest.mark.parametrize(("name", "head"), [("bert", "masked_lm"), ("distilbert", "masked_lm"), ("gpt2", "causal_lm")])
def test_all_layers_compute_the_same(name, head, tmp_path):
    fields = {"n_layer": 4} if name == "gpt2" else {}
    deeper = save_deeper(name, tmp_path, head=head, **fields)
    student = start(name, tmp_path, layers=[0, 1, 2, 3], head=head)
    assert_same_logits(student, deeper)


def test_all_layers_of_bert_compute_the_same_in_distilbert(tmp_path):
    deeper = save_deeper("bert", tmp_path)
    student = start("distilbert", tmp_path, layers=[0, 1, 2, 3])
    assert type(student.network).__name__ == "DistilBertForMaskedLM"
    assert_same_logits(student, deeper)


def assert_same_logits(student, deeper):
    batch = make_batch((9, 4))
    found, expected = (
        one(batch.input_ids, attention_mask=batch.attention_mask).logits[batch.attention_mask] for one in (student, deeper)
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_chosen_layers_are_copied_in_order(tmp_path):
    deeper = save_deeper("bert", tmp_path)
    student = start("bert", tmp_path, layers=[2, 0])
    theirs = deeper.network.bert.encoder.layer
    for layer, source in zip(student.network.bert.encoder.layer, (theirs[2], theirs[0]), strict=True):
        for mine, other in zip(layer.parameters(), source.parameters(), strict=True):
            torch.testing.assert_close(mine, other, rtol=0, atol=0)
    assert student.network.get_output_embeddings().weight is student.network.get_input_embeddings().weight


def test_a_classifier_starts_from_a_language_model_with_a_fresh_head(tmp_path):
    deeper = save_deeper("bert", tmp_path)
    student = start("bert", tmp_path, layers=[1], head="sequence_classifier")
    mine, theirs = student.network.bert.embeddings, deeper.network.bert.embeddings
    torch.testing.assert_close(mine.word_embeddings.weight, theirs.word_embeddings.weight, rtol=0, atol=0)
    assert student.network.classifier.weight.shape == (CLASSES, 16)


def test_what_does_not_fit_is_refused(tmp_path):
    save_deeper("bert", tmp_path / "bert")
    save_deeper("albert", tmp_path / "albert")
    save_deeper("roberta", tmp_path / "roberta")
    cases = [
        ({"name": "bert", "folder": "bert", "layers": [0, 4]}, "names layer 4, and .* has layers 0 to 3"),
        ({"name": "bert", "folder": "bert", "layers": [0], "depth": 2}, "names 1 layers and the student has 2"),
        ({"name": "bert", "folder": "bert", "layers": [0], "intermediate_size": 12}, "give the student the same widths"),
        ({"name": "bert", "folder": "roberta", "layers": [0]}, "same architecture"),
        ({"name": "albert", "folder": "albert", "layers": [0, 1]}, "may be shared"),
    ]
    for fields, message in cases:
        folder, name = tmp_path / fields.pop("folder"), fields.pop("name")
        with pytest.raises(ConfigError, match=message):
            start(name, folder, **fields)
