"""A real pretrained language model: what it writes, and what it labels."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from storage.cache import Cache
from storage.label_set import LabelSet
from storage.streams.text_stream import TextLabelStream
from tests.pipelines.support import write_config
from tests.stories import DATA, STORIES, documented_story, save_stories

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not STORIES.exists(), reason=f"SKIPPED: stories260K is not in {STORIES}"),
]


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    return save_stories(tmp_path_factory.mktemp("stories"))


def test_it_writes_the_story_its_makers_printed(stories):
    model = AutoModelForCausalLM.from_pretrained(stories).eval()
    tokenizer = AutoTokenizer.from_pretrained(stories)
    text = documented_story()
    ids = tokenizer(text, return_tensors="pt").input_ids
    with torch.inference_mode():
        written = model.generate(
            torch.tensor([[tokenizer.bos_token_id]]), max_length=ids.shape[1], do_sample=False, pad_token_id=0, eos_token_id=None
        )
    assert tokenizer.decode(written[0], skip_special_tokens=True) == text
    # The tokenizer cuts the text as the model wrote it.
    assert torch.equal(ids, written)


def test_it_labels_shakespeare_as_it_reads_it(command, stories, tmp_path):
    lines = gzip.decompress((DATA / "tinyshakespeare/input.txt.gz").read_bytes()).decode().split("\n\n")[:40]
    corpus = tmp_path / "speeches.txt"
    corpus.write_text("".join(f"{' '.join(speech.split())}\n" for speech in lines))
    config = write_config(
        tmp_path / "config.json",
        {
            "name": "speeches",
            "cache": str(tmp_path / "cache"),
            "source": {"kind": "text", "path": str(corpus), "unit_size": 16},
            "teacher": {"kind": "causal_lm", "name": str(stories), "device": "cpu"},
            "views": {"kind": "tokens", "length": 128, "layout": "truncate"},
            "target": {"k": 16, "codec": {"kind": "exact"}},
            "generation": {"batch_size": 8, "torch_threads": 1},
        },
    )
    ended = command("label", config, "--json")
    assert ended.status == 0, ended.err
    label_set = LabelSet.open(Cache.at(str(tmp_path / "cache")), name_or_id="speeches")
    stream = TextLabelStream({"labels": label_set})
    num_rows = int(stream.block_rows(epoch=0)[0])
    rows = stream.read(epoch=0, block_ids=np.zeros(num_rows, dtype=np.int64), rows=np.arange(num_rows))
    labels = rows.targets["labels"].values
    model = AutoModelForCausalLM.from_pretrained(stories).eval()
    start = 0
    for index in range(num_rows):
        ids = rows.tokens.token_ids[rows.tokens.offsets[index] : rows.tokens.offsets[index + 1]].astype(np.int64)
        with torch.inference_mode():
            live = model(torch.from_numpy(ids)[None]).logits[0, :-1].softmax(dim=1).numpy()
        stored = labels.take(np.arange(start, start + len(live)))
        start += len(live)
        ranked = np.argsort(-stored.probs, axis=1, kind="stable")
        best = np.take_along_axis(stored.class_ids, ranked, axis=1)[:, 0]
        chosen = np.take_along_axis(live, stored.class_ids, axis=1)
        assert np.abs(chosen - stored.probs)[stored.probs > 0].max() < 1e-3
        assert (live[np.arange(len(live)), best] >= live.max(axis=1) - 1e-3).all()
    assert start == len(labels)
