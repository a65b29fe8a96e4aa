"""Equal sizes are not equal words: a student with another tokenizer refuses labels, and so does an evaluation."""

from __future__ import annotations

import pytest
from transformers import BertConfig, BertForSequenceClassification

from storage.errors import ConfigError, MismatchError
from student_training.experiment import run_experiment
from tests.storage.text_caches import FIRST_WORD_ID, PLAIN, VOCABULARY
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
        MismatchError,
        match=f"weights of .* know tokens .* fingerprint .*, label set 'texts' was made with {sha256[:12]} and 40 tokens",
    ):
        run_experiment(config, resume=False, say=silent)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two models with tokenizers of 512 tokens, the words of one in reverse, and the fingerprints of these."""
    root = tmp_path_factory.mktemp("models")
    words = [f"w{number}" for number in range(FIRST_WORD_ID, 512)]
    found = []
    for name, order in (("one", words), ("other", words[::-1])):
        sha256 = save_tokenizer(root / name, tokenizer=tokenizer_of([*SPECIAL, *order]))
        BertForSequenceClassification(BertConfig(**BERT, vocab_size=512, num_labels=3)).save_pretrained(root / name)
        found.append((root / name, sha256))
    assert found[0][1] != found[1][1]
    return found


@pytest.mark.parametrize(("of_labels", "of_model"), [(0, 1), (1, 0)])
def test_two_models_of_512_tokens_refuse_the_labels_of_each_other(tmp_path, models, of_labels, of_model):
    (label_model, sha256), (folder, other) = models[of_labels], models[of_model]
    view = PLAIN.model_copy(update={"vocabulary_size": 512})
    make_label_set(tmp_path, documents=topic_documents(num=16), target=class_labels(), tokenizer_sha256=sha256, view=view)

    def run(*, of=None, teacher=None, student=CNN, tokenizer=None):
        weights = {"kind": "transformers", "head": "sequence_classifier", "path": str(of), "pretrained": True}
        training = {"student": weights if of else student, "epochs": 1, "targets": {"kind": "cached", "label_set": "texts"}}
        section = {"teacher": {"kind": "sequence_classifier", "name": str(teacher)}} if teacher else {}
        if tokenizer is not None:
            training["tokenizer"] = str(tokenizer)
        config = make_text_config(tmp_path, target={"k": 3}, training=training, **section)
        return run_experiment(config, resume=False, say=silent)

    assert run(of=label_model, teacher=label_model)["steps"] == 2
    with pytest.raises(MismatchError, match=f"weights of .* fingerprint {other[:12]}, .* made with {sha256[:12]} and 512 tokens"):
        run(of=folder)
    with pytest.raises(MismatchError, match="Start from other weights, or label with the tokenizer of these"):
        run(of=folder, tokenizer=label_model)
    with pytest.raises(MismatchError, match="tokenizer .* has fingerprint .* Name the labels' tokenizer in training.tokenizer"):
        run(tokenizer=folder)
    with pytest.raises(
        MismatchError, match=f"tokenizer of teacher .* has fingerprint {other[:12]} and 512 tokens, .* labels of another teacher"
    ):
        run(teacher=folder)
    assert run(teacher=tmp_path / "not here")["steps"] == 2  # labels need no teacher


@pytest.mark.parametrize(("of_labels", "of_model"), [(0, 1), (1, 0)])
def test_a_student_that_decant_trained_says_whose_tokens_it_knows(tmp_path, models, of_labels, of_model):
    (folder, sha256), (_, other) = models[of_labels], models[of_model]
    view = PLAIN.model_copy(update={"vocabulary_size": 512})
    documents = topic_documents(num=16)
    for name, tokenizer in (("texts", sha256), ("others", other)):
        where = tmp_path / name
        make_label_set(where, documents=documents, target=class_labels(), tokenizer_sha256=tokenizer, view=view, name=name)
    first = {"kind": "transformers", "head": "sequence_classifier", "path": str(folder)}
    config = make_text_config(tmp_path / "texts", target={"k": 3}, training={"student": first, "epochs": 1})
    assert run_experiment(config, say=silent)["steps"] == 2
    trained = tmp_path / "texts" / "run"
    assert not (trained / "tokenizer.json").exists()

    def go_on(name):
        student = {**first, "path": str(trained), "pretrained": True}
        training = {"student": student, "epochs": 1, "output": str(tmp_path / "second")}
        section = make_text_config(tmp_path / name, target={"k": 3}, name=name, training=training)
        return run_experiment(section, resume=False, say=silent)

    assert go_on("texts")["steps"] == 2
    with pytest.raises(MismatchError, match=f"weights of .* fingerprint {sha256[:12]}, label set 'others' was made with"):
        go_on("others")
    corpus = write_corpus(tmp_path / "corpus.jsonl", documents)
    hard = {"student": {**first, "path": str(trained), "pretrained": True}, "epochs": 1, "targets": {"kind": "hard"}}
    config = make_text_config(tmp_path, source=corpus, training={**hard, "tokenizer": str(models[of_model][0])})
    with pytest.raises(MismatchError, match="weights of .*, the view of this training was made with"):
        run_experiment(config, say=silent)


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
