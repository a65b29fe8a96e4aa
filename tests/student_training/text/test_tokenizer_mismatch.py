"""Equal sizes are not equal words: a student with another tokenizer refuses labels, and so does an evaluation."""

from __future__ import annotations

import pytest
from transformers import BertConfig, BertForSequenceClassification

from storage.errors import ConfigError, MismatchError
from student_training.experiment import run_experiment
from tests.storage.text_caches import FIRST_WORD_ID, VOCABULARY
from tests.student_training.text.text_trainings import (
    BERT,
    CNN,
    SPECIAL,
    class_labels,
    make_label_set,
    make_text_config,
    save_tokenizer,
    tokenizer_of,
    topic_documents,
    write_corpus,
)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """Folders and fingerprints of two tokenizers with the same number of tokens, the words of one in reverse."""
    root = tmp_path_factory.mktemp("tokenizers")
    backwards = [f"w{number}" for number in reversed(range(FIRST_WORD_ID, VOCABULARY))]
    one = save_tokenizer(root / "one")
    other = save_tokenizer(root / "other", tokenizer=tokenizer_of([*SPECIAL, *backwards]))
    assert one != other
    return root / "one", one, root / "other"


def silent(text):
    del text


def test_pretrained_weights_of_another_tokenizer_refuse_the_labels(tmp_path, tokenizers):
    _, sha256, other = tokenizers
    make_label_set(tmp_path, documents=topic_documents(num=16), target=class_labels(), tokenizer_sha256=sha256)
    weights = tmp_path / "weights"
    BertForSequenceClassification(BertConfig(**BERT, vocab_size=VOCABULARY, num_labels=3)).save_pretrained(weights)
    student = {"kind": "transformers", "head": "sequence_classifier", "path": str(weights), "pretrained": True}
    config = make_text_config(tmp_path, target={"k": 3}, training={"student": student, "epochs": 1})
    assert run_experiment(config, say=silent)["steps"] == 2  # weights without a tokenizer: nothing contradicts the labels
    for file in other.iterdir():
        (weights / file.name).write_bytes(file.read_bytes())
    with pytest.raises(
        MismatchError, match=f"has fingerprint .* and 40 tokens, label set 'texts' was made with {sha256[:12]} and 40 tokens"
    ):
        run_experiment(config, resume=False, say=silent)


def test_an_evaluation_with_another_tokenizer_is_refused(tmp_path, tokenizers):
    one, sha256, other = tokenizers
    make_label_set(tmp_path, documents=topic_documents(num=16), target=class_labels(), tokenizer_sha256=sha256)
    source = write_corpus(tmp_path / "corpus.jsonl", topic_documents(num=8))

    def config(tokenizer):
        training = {"student": CNN, "epochs": 1, "evaluation": {"source": source}}
        return make_text_config(
            tmp_path, target={"k": 3}, training={**training, **({"tokenizer": str(tokenizer)} if tokenizer else {})}
        )

    with pytest.raises(MismatchError, match="the same ids mean other words. Name the labels' tokenizer in training.tokenizer"):
        run_experiment(config(other), say=silent)
    with pytest.raises(ConfigError, match="training.tokenizer: is needed to read texts"):
        run_experiment(config(None), say=silent)
    assert run_experiment(config(one), say=silent)["num_evaluated"] == 8
