"""A stream over texts without labels gives what labelling them gives: sequences, masks, blocks and so the order."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest

from pipelines.text.tokenizers import load_tokenizer
from storage.errors import DeadLetterLimitError, MismatchError, SourceError
from storage.sources.base import NO_LABEL, SourceUnit
from storage.streams.text_source_stream import TextSourceStream
from storage.text.views import view_of
from student_training.text.tokenizers import require_tokenizer
from tests.pipelines.text.labels import Bench, Documents
from tests.pipelines.text.models import documents, save_model

VIEWS = [
    {"kind": "masked_tokens", "length": 12, "seed": 3, "count": 2},
    {"kind": "masked_tokens", "length": 12, "layout": "cut", "whole_words": True, "count": 2},
    {"kind": "tokens", "length": 16, "layout": "pack"},
]


class Texts(Documents):
    """Documents in memory, as a source of one unit."""

    def units(self):
        return [SourceUnit(name="unit", locator={}, stat_token=self.digest)]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("bert"), "bert")


def open_stream(texts, *, tokenizer, view, folder, **options):
    source = Texts([text if isinstance(text, bytes) else text.encode() for text in texts], options.pop("labels", None))
    return TextSourceStream(source, tokenizer=tokenizer, view=view, folder=folder, **options)


def read_all(stream, *, epoch=0):
    sizes = stream.block_rows(epoch=epoch)
    block_ids = np.repeat(np.arange(len(sizes)), sizes)
    return stream.read(epoch=epoch, block_ids=block_ids, rows=np.concatenate([np.arange(size) for size in sizes]))


@pytest.mark.parametrize("views", VIEWS)
def test_a_stream_equals_labels_of_the_same_source(tmp_path, bert, views, monkeypatch):
    monkeypatch.setattr("storage.block_bounds.BLOCK_TOKENS", 120)
    require_equal_rows(bert, views=views, tokenizer=load_tokenizer(str(bert)), folder=tmp_path)


@pytest.mark.parametrize("layout", ["truncate", "pack"])
def test_masks_spare_the_same_tokens_where_none_is_marked_as_special(tmp_path, layout, monkeypatch):
    """A frame and a separator that tokenizer.json holds as words like others."""
    monkeypatch.setattr("storage.block_bounds.BLOCK_TOKENS", 120)
    model = save_model(tmp_path / "bert", "bert")
    written = json.loads((model / "tokenizer.json").read_text())
    for token in written["added_tokens"]:
        token["special"] = False
    for file in model.glob("*token*"):
        file.unlink()
    (tmp_path / "words.json").write_text(json.dumps(written))
    tokenizer = load_tokenizer(str(tmp_path / "words.json"))
    assert tokenizer.facts.special_ids == ()
    views = {"kind": "masked_tokens", "length": 12, "layout": layout, "mask_share": 0.5, "count": 2}
    require_equal_rows(model, views=views, tokenizer=tokenizer, folder=tmp_path / "tokens", named=str(tmp_path / "words.json"))


def require_equal_rows(model, *, views, tokenizer, folder, named=None):
    texts = [*documents(40), b"\xff broken", "", *documents(9, longest=60)]
    targets = {"embeddings": {"kind": "hidden_states", "layers": [1], "tokens": "mean"}}
    bench = Bench(model, kind="masked_lm", texts=texts, views=views, targets=targets, teacher={"tokenizer": named})
    part = bench.label(num_views=views.get("count", 1))["embeddings"]
    view = bench.requests["embeddings"].text_view()
    assert view_of(bench.config.views, tokenizer=tokenizer.facts, tokenizer_key="x") == view
    stream = open_stream(texts, tokenizer=tokenizer, view=view, folder=folder, dead_letter_limit=0.5)
    blocks = [block for block in part.blocks if block.view == 0]
    assert len(blocks) > 2
    assert stream.block_rows(epoch=0).tolist() == [len(block) for block in blocks]
    for number in range(views.get("count", 1)):
        rows = read_all(stream, epoch=number)
        stored = list(part.sequences(view=number))
        assert rows.keys == [key for key, *_ in stored]
        assert np.array_equal(rows.tokens.inputs(), np.concatenate([inputs for _, inputs, *_ in stored]))
        if rows.tokens.masks is not None:
            assert np.array_equal(rows.tokens.masks.positions, np.concatenate([masks for _, _, masks, _ in stored]))


def test_tokens_are_made_once_and_found_again(tmp_path, bert):
    tokenizer = load_tokenizer(str(bert))
    view = Bench(bert, kind="masked_lm", texts=["a"], views=VIEWS[0], targets={"x": {"k": 2}}).requests["x"].text_view()
    labels = [number % 3 if number % 4 else NO_LABEL for number in range(30)]
    stream = open_stream(documents(30), tokenizer=tokenizer, view=view, folder=tmp_path, labels=labels)
    first = read_all(stream)
    assert first.labels.tolist() == labels
    assert (stream.num_labelled, stream.max_label) == (sum(label >= 0 for label in labels), 2)
    (store,) = tmp_path.iterdir()
    written = (store / "tokens").stat().st_mtime_ns
    again = open_stream(documents(30), tokenizer=tokenizer, view=view, folder=tmp_path, labels=labels)
    assert (again.identity(), read_all(again).keys) == (stream.identity(), first.keys)
    assert (store / "tokens").stat().st_mtime_ns == written
    copy = pickle.loads(pickle.dumps(again))
    order = np.array([1, 0, 1])
    found = copy.read(epoch=0, block_ids=np.zeros(3, dtype=np.int64), rows=order)
    assert np.array_equal(found.tokens.inputs(), first.tokens.take(order).inputs())
    masks = [read_all(stream, epoch=epoch).tokens.masks.positions.tolist() for epoch in range(3)]
    assert masks[0] != masks[1] != masks[2]
    fixed = open_stream(documents(30), tokenizer=tokenizer, view=view, folder=tmp_path, labels=labels, num_views=2)
    assert read_all(fixed, epoch=2).tokens.masks.positions.tolist() == masks[0]
    assert fixed.identity() != stream.identity()
    other = open_stream([*documents(29), "ka"], tokenizer=tokenizer, view=view, folder=tmp_path, labels=labels)
    assert other.identity() != stream.identity()
    assert len(list(tmp_path.iterdir())) == 2


def test_texts_of_a_store_that_tells_no_times_are_read_again(tmp_path, bert):
    class Timeless(Texts):
        def units(self):
            return [replace(unit, stat_token="") for unit in super().units()]

    tokenizer = load_tokenizer(str(bert))
    view = Bench(bert, kind="masked_lm", texts=["a"], views=VIEWS[0], targets={"x": {"k": 2}}).requests["x"].text_view()

    def read(*texts):
        source = Timeless([text.encode() for text in texts])
        stream = TextSourceStream(source, tokenizer=tokenizer, view=view, folder=tmp_path)
        return stream.identity(), read_all(stream).tokens.token_ids.tolist()

    first, other = read("ka lo mi"), read("ka lo nu")
    assert first[0] != other[0]
    assert first[1] != other[1]
    assert read("ka lo mi") == first
    assert len(list(tmp_path.iterdir())) == 2


def test_a_share_of_documents_is_chosen_by_key(tmp_path, bert):
    tokenizer = load_tokenizer(str(bert))
    view = Bench(bert, kind="masked_lm", texts=["a"], views=VIEWS[0], targets={"x": {"k": 2}}).requests["x"].text_view()

    def keys(share):
        stream = open_stream(documents(60), tokenizer=tokenizer, view=view, folder=tmp_path, sample_fraction=share)
        return read_all(stream).keys

    few, more = keys(0.3), keys(0.6)
    assert 0 < len(few) < len(more) < 60
    assert set(few) < set(more)
    with pytest.raises(SourceError, match="no text is left to read in 1 units with sample_fraction 0.0001"):
        keys(0.0001)


def test_what_cannot_be_read_is_counted(tmp_path, bert):
    tokenizer = load_tokenizer(str(bert))
    view = Bench(bert, kind="masked_lm", texts=["a"], views=VIEWS[0], targets={"x": {"k": 2}}).requests["x"].text_view()
    texts = ["ka lo", b"\xff", "mi", ""]
    stream = open_stream(texts, tokenizer=tokenizer, view=view, folder=tmp_path)
    with pytest.raises(
        DeadLetterLimitError, match="2 of 4 texts cannot be read, more than .* 0.01 allows; the first is 'd001': .*UTF-8"
    ):
        stream.block_rows(epoch=0)
    assert not list(tmp_path.iterdir())
    lenient = open_stream(texts, tokenizer=tokenizer, view=view, folder=tmp_path, dead_letter_limit=0.5)
    assert read_all(lenient).keys == ["d000", "d002"]
    with pytest.raises(MismatchError, match="the same ids mean other words"):
        require_tokenizer(tokenizer, view=view.model_copy(update={"tokenizer_sha256": "0" * 64}), name="x", what="y")
