"""A token store gives back the blocks that were written, and says when its files are no longer those."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

from storage.errors import FormatError
from storage.text.token_store import TokenBlock, TokenStore, write_token_store
from tests.storage.targets import make_tokens


def make_block(lengths, *, seed, words=True):
    tokens = make_tokens(lengths, masked=False, seed=seed)
    return TokenBlock(
        keys=tuple(f"d{seed}-{row}" for row in range(len(lengths))),
        labels=np.arange(len(lengths), dtype=np.int64) - 1,
        tokens=tokens,
        word_starts=np.arange(len(tokens.token_ids)) % 2 == 0 if words else None,
    )


@pytest.fixture
def written(tmp_path):
    blocks = [make_block([3, 0, 5], seed=1), make_block([], seed=2), make_block([4, 1], seed=3)]
    return write_token_store(tmp_path / "tokens", blocks), blocks


def test_blocks_come_back_also_in_another_process(written):
    store, blocks = written
    for found in (store, pickle.loads(pickle.dumps(store))):
        assert found.block_rows.tolist() == [3, 0, 2]
        assert (found.max_label, found.num_labelled) == (1, 3)
        for block_id, block in enumerate(blocks):
            read = found.read(block_id)
            assert read.keys == block.keys
            assert read.labels.tolist() == block.labels.tolist()
            assert read.tokens.offsets.tolist() == block.tokens.offsets.tolist()
            assert read.tokens.token_ids.tolist() == block.tokens.token_ids.tolist()
            assert read.word_starts.tolist() == block.word_starts.tolist()


def test_without_words_there_are_none(tmp_path):
    store = write_token_store(tmp_path / "tokens", [make_block([2], seed=1, words=False)])
    assert store.read(0).word_starts is None


def test_where_there_is_none_it_can_be_made(tmp_path):
    with pytest.raises(FileNotFoundError):
        TokenStore(tmp_path / "tokens")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("store.json", b""),
        ("store.json", b"[]"),
        ("store.json", b"[" * 100_000),
        ("store.json", json.dumps({"digest": "x", "max_label": 1e400, "num_labelled": 0}).encode()),
        ("blocks", b""),
        ("blocks", b"\0" * 23),
        ("blocks", np.array([[0, 0, 0], [2**40, 2**40, 2**40]]).tobytes()),
        ("blocks", np.array([[0, 0, 0], [5, 13, 26], [3, 8, 16]]).tobytes()),
        ("tokens", b"\0" * 48),
        ("lengths", b"\0" * 8),
        ("words", b"\0"),
        ("keys", b"x"),
        ("labels", None),
    ],
)
def test_files_of_another_size_are_refused_when_it_is_opened(written, tmp_path, name, data):
    path = tmp_path / "tokens" / name
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(FormatError, match=r"tokens is damaged: .* remove the folder, and the next run makes it anew"):
        TokenStore(tmp_path / "tokens")


@pytest.mark.parametrize(
    ("name", "place", "data"),
    [
        ("lengths", 0, np.array([4]).tobytes()),
        ("lengths", 0, np.array([-1, 0, 9]).tobytes()),
        ("lengths", 0, np.array([2**62, 2**62, 2**63 - 8], dtype=np.uint64).tobytes()),
        ("keys", 0, b"\xff"),
        ("keys", 4, b"x"),
        ("keys", 0, b"\0"),
    ],
)
def test_what_does_not_belong_together_is_refused_when_it_is_read(written, tmp_path, name, place, data):
    path = tmp_path / "tokens" / name
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(whole[:place] + data + whole[place + len(data) :])
    store = TokenStore(tmp_path / "tokens")
    with pytest.raises(FormatError, match="is damaged: .*remove the folder"):
        store.read(0)
