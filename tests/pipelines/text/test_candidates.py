"""Tables of candidates, made from real embeddings and read by the source that uses them."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig, BertModel

from pipelines.text.candidates import file_vectors, main, model_vectors, nearest, words_of
from storage.errors import TeacherError
from storage.sources.augmented import load_candidates
from tests.pipelines.text import tokenizer_zoo as zoo

ROOT = Path(__file__).parents[3]
GLOVE = b"good 1 0 0.1\ngreat 0.9 0 0.1\nbad -1 0 0\nawful -0.9 0.1 0\n1984 0 1 0\nwell-made 1 0 0\n"


def test_words_are_tokens_that_stand_alone():
    pieces = {"[CLS]": 0, "dog": 1, "##s": 2, "Käse": 3, "1984": 4, ",": 5, "a": 6}
    assert words_of(pieces) == {"dog": 1, "Käse": 3, "a": 6}
    assert words_of({"<s>": 0, "▁dog": 1, "s": 2, "▁": 3, "▁1984": 4}) == {"dog": 1}
    assert words_of({"Ġdog": 0, "s": 1, "Ċ": 2}) == {"dog": 0}


@given(seed=st.integers(0, 999), num_rows=st.integers(2, 40), count=st.integers(1, 9))
def test_nearest_are_those_of_a_full_sort(seed, num_rows, count):
    vectors = np.random.default_rng(seed).normal(size=(num_rows, 4)).astype(np.float32)
    found = list(nearest(vectors, count=count))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for row, best in enumerate(found):
        cosines = unit @ unit[row]
        cosines[row] = -np.inf
        assert row not in best
        assert len(best) == min(count, num_rows - 1)
        assert np.allclose(cosines[best], np.sort(cosines)[::-1][: len(best)], atol=1e-6)


def test_a_file_of_vectors(tmp_path):
    (tmp_path / "glove.txt.gz").write_bytes(gzip.compress(GLOVE))
    assert file_vectors(str(tmp_path / "glove.txt.gz"), num_words=3)[0] == ["good", "great", "bad"]
    words, vectors = file_vectors(str(tmp_path / "glove.txt.gz"), num_words=99)
    assert words == ["good", "great", "bad", "awful"]
    assert vectors.shape == (4, 3)
    assert (
        main(["--vectors", str(tmp_path / "glove.txt.gz"), "--output", str(tmp_path / "x" / "t.jsonl"), "--candidates", "1"]) == 0
    )
    assert load_candidates(str(tmp_path / "x" / "t.jsonl")) == {
        "good": ("great",),
        "great": ("good",),
        "bad": ("awful",),
        "awful": ("bad",),
    }


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"good 1 0\nbad 1\n", "line 2 has 1 numbers, those before have 2"),
        (b"good one 0\n", "line 1 is not a word and its vector"),
        (b"good 1 0\n", "holds 1 words"),
    ],
)
def test_a_file_that_holds_no_vectors(tmp_path, data, message):
    (tmp_path / "x.txt").write_bytes(data)
    with pytest.raises(TeacherError, match=message):
        file_vectors(str(tmp_path / "x.txt"), num_words=99)


def test_a_model_gives_its_embeddings(tmp_path, capsys):
    tokenizer = zoo.word_piece()
    torch.manual_seed(0)
    model = BertModel(
        BertConfig(vocab_size=len(tokenizer), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    )
    tokenizer.save_pretrained(tmp_path / "model")
    model.save_pretrained(tmp_path / "model")
    words, vectors = model_vectors(str(tmp_path / "model"))
    assert "distillation" in words or "the" in words
    assert not any(word.startswith(("#", "[")) for word in words)
    ids = [tokenizer.convert_tokens_to_ids(word) for word in words]
    assert np.array_equal(vectors, model.get_input_embeddings().weight.detach().numpy()[ids])
    assert main(["--model", str(tmp_path / "model"), "--output", "memory://candidates/t.jsonl"]) == 0
    assert f"candidates of {len(words)} words" in capsys.readouterr().out
    table = load_candidates("memory://candidates/t.jsonl")
    assert list(table) == words
    assert all(len(names) == min(15, len(words) - 1) and word not in names for word, names in table.items())


def test_the_command_tells_what_is_wrong(tmp_path):
    command = [
        sys.executable,
        "-m",
        "pipelines.text.candidates",
        "--vectors",
        str(tmp_path / "no.txt"),
        "--output",
        str(tmp_path / "t"),
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("error: cannot open")
    assert "does not exist" in result.stderr
