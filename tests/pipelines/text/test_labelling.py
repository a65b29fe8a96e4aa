"""Stored labels are what a live forward pass gives of the same sequences, whatever batch they were in."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from storage.block_bounds import BLOCK_TOKENS
from storage.errors import TeacherError
from storage.text.masking import mask_tokens
from storage.text.sequences import sequences_of
from storage.text.token_rows import concatenate_tokens
from tests.pipelines.text.labels import MASKS, TOKENS, Bench, forward
from tests.pipelines.text.models import documents, save_model

TEXTS = documents(11)
EXACT = {"kind": "soft_labels", "k": 5, "codec": {"kind": "exact"}}


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    made = {}

    def make(kind, **changes):
        name = f"{kind}{sorted(changes.items())}"
        if name not in made:
            made[name] = save_model(tmp_path_factory.mktemp("model"), kind, **changes)
        return made[name]

    return make


def same_labels(stored, logits):
    """Stored rows are the most probable classes of logits [rows, classes]."""
    probs = torch.softmax(logits.double(), dim=1)
    kept, _ = probs.topk(stored.probs.shape[1], dim=1)
    assert np.abs(stored.probs - kept.numpy()).max() < 2e-3
    close = torch.gather(probs, 1, torch.from_numpy(stored.class_ids.astype(np.int64)))
    assert (close - kept).abs().max() < 2e-3
    assert np.abs(stored.rest - (1 - kept.sum(dim=1)).numpy()).max() < 5e-3


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_labels_of_masked_tokens_are_those_of_the_same_inputs(folder, kind):
    bench = Bench(folder(kind, padding=7), kind="masked_lm", texts=TEXTS, views={**MASKS, "count": 2}, targets={"labels": EXACT})
    labelled = bench.label(num_views=2)["labels"]
    live = bench.live()
    num_rows = 0
    for view in range(2):
        for _, ids, masks, values in labelled.sequences(view=view):
            logits = forward(live, ids).logits[0][:, : bench.teacher.vocabulary_size]
            assert len(values) == len(masks) >= 1
            same_labels(values, logits[masks])
            num_rows += len(values)
    statistics = labelled.record.statistics
    assert (statistics.num_rows, statistics.num_positions) == (2 * len(TEXTS), num_rows)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_row_i_of_a_causal_teacher_is_of_token_i_plus_1(folder, kind):
    bench = Bench(folder(kind, padding=7), kind="causal_lm", texts=TEXTS, views=TOKENS, targets={"labels": EXACT})
    live = bench.live()
    for _, ids, _, values in bench.label()["labels"].sequences():
        assert len(values) == len(ids) - 1
        for i in range(0, len(values), 5):
            # What may follow, to a model that has not seen more.
            logits = forward(live, ids[: i + 1]).logits[0, -1:, : bench.teacher.vocabulary_size]
            same_labels(values.take(np.array([i])), logits)


def test_labels_do_not_depend_on_the_batch_a_sequence_is_in(folder):
    bench = Bench(folder("bert"), kind="masked_lm", texts=TEXTS, views=MASKS, targets={"labels": EXACT})
    few = {key: values for key, _, _, values in bench.label(batch_size=1)["labels"].sequences()}
    many = bench.label(batch_size=8)["labels"]
    for key, _, _, values in many.sequences():
        np.testing.assert_allclose(values.densify(), few[key].densify(), atol=2e-3)
    assert many.data == bench.label(batch_size=8)["labels"].data


@pytest.mark.parametrize("whole_words", [False, True])
def test_masks_are_drawn_block_by_block_and_are_those_of_the_whole_unit(folder, whole_words, monkeypatch):
    drawn = []

    def watched(tokens, **options):
        drawn.append(len(tokens.token_ids))
        return mask_tokens(tokens, **options)

    monkeypatch.setattr("pipelines.text.labelling.mask_tokens", watched)
    views = {**MASKS, "whole_words": whole_words}
    texts = [TEXTS[0], "", *documents(1200)]
    hidden = {"kind": "hidden_states", "layers": [1], "tokens": "first"}
    bench = Bench(folder("bert"), kind="masked_lm", texts=texts, views=views, targets={"hidden": hidden})
    blocks = bench.label()["hidden"].blocks
    assert len(drawn) == len(blocks) > 2
    assert max(drawn) <= BLOCK_TOKENS < sum(drawn)
    view = bench.requests["hidden"].text_view()
    unit = sequences_of(bench.source.read(None), tokenizer=bench.teacher.tokenizer, view=view)
    masks = mask_tokens(
        unit.tokens,
        keys=unit.present_keys,
        maskable=unit.maskable,
        view=view,
        view_index=0,
        word_starts=unit.word_starts,
    )
    stored = concatenate_tokens([block.tokens for block in blocks])
    np.testing.assert_array_equal(stored.token_ids, unit.tokens.token_ids)
    for name in ("offsets", "positions", "input_ids"):
        np.testing.assert_array_equal(getattr(stored.masks, name), getattr(masks, name))


@pytest.mark.parametrize("codec", [{"kind": "sampled", "draws": 9}, {"kind": "threshold", "levels": 8}, {"kind": "dense"}])
def test_every_codec_labels_tokens(folder, codec):
    target = {"kind": "soft_labels", "codec": codec}
    bench = Bench(folder("gpt2"), kind="causal_lm", texts=TEXTS[:4], views=TOKENS, targets={"labels": target})
    live = bench.live()
    labelled = bench.label()["labels"]
    assert labelled.data == bench.label(batch_size=4)["labels"].data
    for _, ids, _, values in labelled.sequences():
        probs = torch.softmax(forward(live, ids).logits[0, :-1, : bench.teacher.vocabulary_size].double(), dim=1).numpy()
        stored = values.densify()
        if codec["kind"] == "dense":
            assert np.abs(stored - probs).max() < 2e-3
        else:
            np.testing.assert_allclose(values.probs.sum(axis=1) + values.rest, 1, atol=1e-5)
            drawn = np.take_along_axis(probs, values.class_ids.astype(np.int64), axis=1)[values.probs > 0]
            assert (drawn > 0).all()


@pytest.mark.parametrize("layout", ["truncate", "cut", "pack"])
def test_every_layout_is_labelled(folder, layout):
    views = {"kind": "tokens", "length": 16, "layout": layout}
    bench = Bench(folder("llama"), kind="causal_lm", texts=TEXTS, views=views, targets={"labels": EXACT})
    live = bench.live()
    labelled = bench.label()["labels"]
    assert labelled.record.num_samples == len(labelled.table.keys) == labelled.record.statistics.num_rows
    assert (labelled.record.num_samples > len(TEXTS)) == (layout != "truncate")
    for key, ids, _, values in labelled.sequences():
        assert ("@" in key) == (layout != "truncate")
        assert len(values) == len(ids) - 1
        # What is left of a document may be a single token, which has no next one.
        if len(values):
            same_labels(values, forward(live, ids).logits[0, :-1])


def test_a_bad_document_costs_itself_alone(folder):
    texts = [TEXTS[0].encode(), b"", b"\xff\xfe", *(text.encode() for text in TEXTS[1:])]
    bench = Bench(folder("bert"), kind="masked_lm", texts=texts, views=MASKS, targets={"labels": EXACT})
    labelled = bench.label()["labels"]
    letters = labelled.record.dead_letters
    assert [(letter.key, letter.stage) for letter in letters] == [("d001", "decode"), ("d002", "decode")]
    assert "empty" in letters[0].reason
    assert "not UTF-8" in letters[1].reason
    assert labelled.record.statistics.num_rows == len(TEXTS)
    assert [key for key, *_ in labelled.sequences()] == [f"d{i:03d}" for i in range(len(texts)) if i not in (1, 2)]


def poison(module, *, token, value):
    """Let the output embedding of one token be NaN, or the like."""
    with torch.no_grad():
        module.get_input_embeddings().weight[token] = value


def test_a_sequence_whose_logits_are_nan_is_a_dead_letter_in_every_target_and_costs_no_other(folder):
    targets = {"labels": EXACT, "hidden": {"kind": "hidden_states", "layers": [2]}}
    bench = Bench(folder("llama"), kind="causal_lm", texts=["ab", "aZb", "ba"], views=TOKENS, targets=targets)
    clean = {key: values for key, _, _, values in bench.label()["labels"].sequences()}
    token = int(bench.teacher.tokenizer.encode(["Z"]).token_ids[0])
    poison(bench.teacher.network.module, token=token, value=torch.nan)
    for part in bench.label().values():
        (letter,) = part.record.dead_letters
        assert (letter.key, letter.position, letter.view, letter.stage) == ("d001", 1, 0, "teacher")
        assert "hold NaN or infinity" in letter.reason
        assert [key for key, *_ in part.sequences()] == ["d000", "d002"]
        assert part.record.statistics.num_rows == 2
    labels = bench.label()["labels"]
    for key, _, _, values in labels.sequences():
        np.testing.assert_array_equal(values.probs, clean[key].probs)


def test_a_logit_of_minus_infinity_is_a_probability_of_zero(folder, tmp_path):
    bench = Bench(folder("llama", seed=3), kind="causal_lm", texts=TEXTS[:3], views=TOKENS, targets={"labels": EXACT})
    module = bench.teacher.network.module

    def never(_module, _inputs, output):
        output[..., 5:] = -torch.inf
        return output

    hook = module.lm_head.register_forward_hook(never)
    labelled = bench.label()["labels"]
    hook.remove()
    assert labelled.record.dead_letters == ()
    for _, _, _, values in labelled.sequences():
        assert (values.class_ids[values.probs > 0] < 5).all()
        np.testing.assert_allclose(values.probs.sum(axis=1) + values.rest, 1, atol=1e-3)


def test_a_batch_that_fails_is_run_sequence_by_sequence(folder):
    bench = Bench(folder("gpt2"), kind="causal_lm", texts=["ab", "aZb", "ba"], views=TOKENS, targets={"labels": EXACT})
    clean = {key: values for key, _, _, values in bench.label()["labels"].sequences()}
    token = int(bench.teacher.tokenizer.encode(["Z"]).token_ids[0])

    def refuse(_module, inputs):
        if (inputs[0] == token).any():
            raise ValueError("this token is not for me")

    hook = bench.teacher.network.module.get_input_embeddings().register_forward_pre_hook(refuse)
    labelled = bench.label()["labels"]
    hook.remove()
    (letter,) = labelled.record.dead_letters
    assert (letter.key, letter.reason) == ("d001", "this token is not for me")
    assert "refuse" in letter.traceback
    for key, _, _, values in labelled.sequences():
        np.testing.assert_allclose(values.densify(), clean[key].densify(), atol=2e-3)


def test_bad_sequences_that_fill_their_batch_are_dead_letters_too(folder):
    """The shortest come last, so that this one is alone in the last batch."""
    texts = ["abab", "aba", "baba", "aZ", "bab"]
    targets = {"labels": EXACT, "hidden": {"kind": "hidden_states", "layers": [2]}}
    bench = Bench(folder("gpt2"), kind="causal_lm", texts=texts, views=TOKENS, targets=targets)
    clean = {key: values for key, _, _, values in bench.label()["labels"].sequences()}
    token = int(bench.teacher.tokenizer.encode(["Z"]).token_ids[0])

    def refuse(_module, inputs):
        if (inputs[0] == token).any():
            raise ValueError("this token is not for me")

    hook = bench.teacher.network.module.get_input_embeddings().register_forward_pre_hook(refuse)
    parts = bench.label()
    alone = bench.label(batch_size=1)["labels"]
    hook.remove()
    for part in (*parts.values(), alone):
        (letter,) = part.record.dead_letters
        assert (letter.key, letter.stage, letter.reason) == ("d003", "teacher", "this token is not for me")
        assert [key for key, *_ in part.sequences()] == ["d000", "d001", "d002", "d004"]
        assert part.record.statistics.num_rows == 4
    for key, _, _, values in parts["labels"].sequences():
        np.testing.assert_array_equal(values.probs, clean[key].probs)


def test_a_unit_of_nothing_but_bad_sequences_is_a_part_without_rows(folder):
    bench = Bench(folder("gpt2"), kind="causal_lm", texts=["aZ", "Zb"], views=TOKENS, targets={"labels": EXACT})
    token = int(bench.teacher.tokenizer.encode(["Z"]).token_ids[0])

    def refuse(_module, inputs):
        if (inputs[0] == token).any():
            raise ValueError("this token is not for me")

    hook = bench.teacher.network.module.get_input_embeddings().register_forward_pre_hook(refuse)
    labelled = bench.label()["labels"]
    hook.remove()
    assert [letter.key for letter in labelled.record.dead_letters] == ["d000", "d001"]
    assert (labelled.record.statistics.num_rows, list(labelled.sequences())) == (0, [])


def test_a_teacher_that_fails_on_any_sequence_of_that_length_ends_the_run(folder):
    bench = Bench(folder("gpt2"), kind="causal_lm", texts=["ab", "ababab"], views=TOKENS, targets={"labels": EXACT}, batch_size=1)

    def refuse(_module, inputs):
        if inputs[0].shape[1] > 4:
            raise ValueError("this is too long for me")

    hook = bench.teacher.network.module.get_input_embeddings().register_forward_pre_hook(refuse)
    with pytest.raises(
        TeacherError,
        match=r"fails on every sequence of a batch of unit 'unit', and on one of ordinary tokens .*this is too long for me",
    ):
        bench.label()
    hook.remove()
