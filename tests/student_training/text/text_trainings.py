"""Corpora, tokenizers and label sets that a tiny student of texts learns from in seconds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from storage.config import ExperimentConfig
from storage.specs import CompactCodec, SoftLabelsSpec
from storage.text.tokenizer_backends import wrap_tokenizer
from tests.storage.rows import RankedLabels
from tests.storage.text_caches import (
    FIRST_WORD_ID,
    MASK_ID,
    MASKED,
    PLAIN,
    VOCABULARY,
    Document,
    make_text_labeller,
    make_text_request,
)

SPECIAL = ("[PAD]", "[UNK]", "[SEP]", "[MASK]", "[CLS]")
assert SPECIAL[MASK_ID] == "[MASK]"
assert len(SPECIAL) == FIRST_WORD_ID
CNN = {"kind": "text_cnn", "embedding_width": 16, "num_filters": 12, "kernel_sizes": [1, 2], "dropout": 0.1}
BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 16,
    "hidden_dropout_prob": 0.1,
}
MASKED_LM = {"kind": "transformers", "head": "masked_lm", "architecture": "bert", "config": BERT}
CAUSAL_LM = {
    "kind": "transformers",
    "head": "causal_lm",
    "architecture": "gpt2",
    "config": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 16, "bos_token_id": 0, "eos_token_id": 0},
}
PLAIN_VIEWS = {"kind": "tokens", "length": 16, "special_tokens": False}
MASKED_VIEWS = {"kind": "masked_tokens", "length": 16, "special_tokens": False, "mask_share": 0.3, "seed": 5}


def make_tokenizer(*, last_word: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """Return a tokenizer of words w5 to w39, token id = number of the word."""
    words = [*SPECIAL, *(f"w{number}" for number in range(FIRST_WORD_ID, last_word))]
    return tokenizer_of(words)


def tokenizer_of(words) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "sep", "mask", "cls")}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def save_tokenizer(folder: Path, *, tokenizer: PreTrainedTokenizerFast | None = None) -> str:
    """Save a tokenizer and return its fingerprint."""
    tokenizer = tokenizer or make_tokenizer()
    tokenizer.save_pretrained(folder)
    return wrap_tokenizer(tokenizer, name="test").facts.sha256


def write_corpus(path: Path, documents) -> dict:
    """Write documents as JSON lines and return the config of their source."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({"id": document.key, "text": " ".join(f"w{token}" for token in document.tokens), "label": document.label})
        for document in documents
    ]
    path.write_text("\n".join(lines) + "\n")
    return {"kind": "jsonl", "path": str(path), "unit_size": 16, "label_field": "label", "key_field": "id"}


def topic_documents(*, num=96, seed=0, num_labels=3):
    """Documents whose label is told by most of their words."""
    rng = np.random.default_rng(seed)
    documents = []
    for number in range(num):
        label = number % num_labels
        length = int(rng.integers(3, 17))
        tokens = rng.integers(FIRST_WORD_ID, VOCABULARY, size=length)
        own = FIRST_WORD_ID + label * 5 + rng.integers(0, 5, size=length)
        tokens = np.where(rng.random(length) < 0.7, own, tokens)
        documents.append(Document(key=f"text{number:03d}", tokens=tuple(tokens.tolist()), label=label))
    return tuple(documents)


def counting_documents(*, num=96, seed=0):
    """Documents that count up round eight words: every token follows from its neighbours, and most words never come."""
    rng = np.random.default_rng(seed)
    documents = []
    for number in range(num):
        length = int(rng.integers(6, 17))
        start = int(rng.integers(0, 8))
        tokens = tuple(FIRST_WORD_ID + (start + step) % 8 for step in range(length))
        documents.append(Document(key=f"count{number:03d}", tokens=tokens))
    return tuple(documents)


def sure_labels(class_ids, *, target):
    """0.9 on a class, the rest on the next ones."""
    entries = target.max_entries
    ids = (np.asarray(class_ids)[:, None] + np.arange(entries)) % target.num_classes
    probs = np.full((len(ids), entries), 0.1 / (entries - 1))
    probs[:, 0] = 0.9
    return RankedLabels(
        class_ids=ids.astype(np.uint32),
        log_probs=np.log(probs).astype(np.float32),
        log_rest=np.full(len(ids), -np.inf, dtype=np.float32),
    )


def teach_labels(target):
    """A teacher that knows the label, the masked token, or the next token."""

    def teach(documents, tokens, counts, view):
        del counts, view
        match target.positions:
            case "view":
                known = [document.label for document in documents]
            case "masked":
                known = tokens.token_ids[tokens.masked_items()]
            case "next":
                known = [token for document in documents for token in document.tokens[1:]]
        return sure_labels(known, target=target)

    return teach


def class_labels(*, num_classes=3):
    return SoftLabelsSpec(num_classes=num_classes, k=3, codec=CompactCodec())


def make_label_set(
    folder, *, documents, target, tokenizer_sha256, name="texts", view=None, num_views=1, teach=None, dead=frozenset(), kind=None
):
    """A label set of documents in units of 16, blocks of 8, below a folder."""
    view = view or (MASKED if getattr(target, "positions", "view") == "masked" else PLAIN)
    kinds = {"masked": "masked_lm", "next": "causal_lm"}
    labeller = make_text_labeller(
        folder,
        documents=documents,
        unit_size=16,
        samples_per_block=8,
        dead=dead,
        request=make_text_request(
            target=target,
            view=view.model_copy(update={"tokenizer_sha256": tokenizer_sha256}),
            kind=kind or kinds.get(getattr(target, "positions", "view"), "sequence_classifier"),
        ),
        teach=teach,
    )
    return labeller.label(name=name, num_views=num_views)


def make_text_config(folder: Path, *, training, views=None, name="texts", cache=None, **sections) -> ExperimentConfig:
    """A config of a tiny student of texts, every section open to change."""
    section = {
        "output": str(folder / "run"),
        "targets": {"kind": "cached"},
        "epochs": 2,
        "batch_size": 8,
        "torch_threads": 1,
        "device": "cpu",
        "log_every_steps": 1,
        "shuffle_window_blocks": 3,
        "optimizer": {"learning_rate": 3e-3},
        **training,
    }
    data = {
        "name": name,
        "cache": cache or str(folder / "cache"),
        "views": views or PLAIN_VIEWS,
        "training": section,
        **sections,
    }
    return ExperimentConfig.model_validate_json(json.dumps(data))
