"""Documents become the sequences that a few lines of plain Python would make of them."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import SampleError, TeacherError
from storage.sources import NO_LABEL, Sample
from storage.specs import MaskedTokensView, TokensView
from storage.text import sequences as sequences_module
from storage.text.masking import mask_tokens
from storage.text.sequences import decode_document, sequences_of
from storage.text.tokenizer_backends import wrap_tokenizer
from tests.pipelines.text import tokenizer_zoo as zoo

LAYOUTS = ("truncate", "cut", "pack")
DEAD = (b"", b" \t\n", "\u3000\u00a0".encode(), b"\xff\xfe", "Käse".encode()[:2], None)


@functools.cache
def tokenizer(kind="word_piece"):
    return wrap_tokenizer(zoo.ALL[kind](), name=kind)


def view(layout, *, kind="word_piece", length=8, special_tokens=True, **kwargs):
    facts = tokenizer(kind).facts
    common = {
        "tokenizer_sha256": facts.sha256,
        "vocabulary_size": facts.vocabulary_size,
        "layout": layout,
        "length": length,
        "special_tokens": special_tokens,
    }
    return MaskedTokensView(mask_token_id=facts.mask_id, **common, **kwargs) if kwargs else TokensView(**common)


def samples_of(documents):
    return [
        Sample(position=index, key=f"d{index}", label=index % 3, data=data, error="gone" if data is None else None)
        for index, data in enumerate(documents)
    ]


def made(documents, layout, *, kind="word_piece", **kwargs):
    return sequences_of(samples_of(documents), tokenizer=tokenizer(kind), view=view(layout, kind=kind, **kwargs))


def as_lists(sequences):
    """(key, label, ids or None) of each sequence."""
    rows = iter(np.split(sequences.tokens.token_ids, sequences.tokens.offsets[1:-1])) if len(sequences.tokens) else iter(())
    return [
        (key, label, next(rows).tolist() if present else None)
        for key, label, present in zip(sequences.keys, sequences.labels.tolist(), sequences.present.tolist(), strict=True)
    ]


def plainly(documents, layout, *, kind, length, special_tokens):
    """The same, document by document and token by token."""
    facts = tokenizer(kind).facts
    prefix, suffix = (list(facts.prefix), list(facts.suffix)) if special_tokens else ([], [])
    room = length - len(prefix) - len(suffix)
    found, stream = [], []
    for sample in samples_of(documents):
        text = None
        if sample.data is not None:
            text = sample.data.decode(errors="replace")
        ids = []
        if text is not None and text.strip() and "\ufffd" not in text:
            ids = tokenizer(kind).encode([text]).token_ids.tolist()
        if not ids:
            key = sample.key if layout == "truncate" else f"{sample.key}@0"
            (stream if layout == "pack" else found).append((key, sample.label, None))
        elif layout == "truncate":
            found.append((sample.key, sample.label, prefix + ids[:room] + suffix))
        elif layout == "cut":
            found += [
                (f"{sample.key}@{start}", sample.label, prefix + ids[start : start + room] + suffix)
                for start in range(0, len(ids), room)
            ]
        else:
            stream += [(f"{sample.key}@{place}", None, token) for place, token in enumerate([*ids, facts.separator_id])]
    held = []
    if layout == "pack":
        for key, _, token in stream:
            if token is None:
                found.append((key, NO_LABEL, None))
                continue
            if not held:
                found.append((key, NO_LABEL, held := []))
            held.append(token)
            if len(held) == room:
                held = []
        found = [(key, label, ids if ids is None else prefix + ids + suffix) for key, label, ids in found]
    return found


DOCUMENTS = st.lists(
    st.one_of(
        st.sampled_from(DEAD),
        st.lists(st.sampled_from(" ".join(zoo.LINES).split()), min_size=1, max_size=12).map(
            lambda words: " ".join(words).encode()
        ),
    ),
    max_size=8,
)


@given(
    documents=DOCUMENTS,
    layout=st.sampled_from(LAYOUTS),
    kind=st.sampled_from(list(zoo.ALL)),
    length=st.integers(3, 20),
    special_tokens=st.booleans(),
)
@settings(max_examples=150)
def test_they_are_those_of_plain_python(documents, layout, kind, length, special_tokens):
    options = {"kind": kind, "length": length, "special_tokens": special_tokens}
    found = made(documents, layout, **options)
    assert as_lists(found) == plainly(documents, layout, **options)
    assert len(set(found.keys)) == len(found.keys)
    assert [(letter.key, letter.position) for letter in found.dead_letters] == [
        (found.keys[position], position) for position in np.flatnonzero(~found.present)
    ]
    assert found.present_keys == tuple(key for key, _, ids in as_lists(found) if ids is not None)
    if len(found.tokens):
        found.tokens.check(vocabulary_size=tokenizer(kind).facts.vocabulary_size)
    special = {*tokenizer(kind).facts.special_ids, *tokenizer(kind).facts.suffix}
    assert found.maskable.tolist() == [token not in special for token in found.tokens.token_ids.tolist()]


@pytest.mark.parametrize("kind", zoo.FAST)
def test_truncated_sequences_are_those_of_transformers(kind):
    texts = [text for text in zoo.TEXTS if text.strip()]
    found = made([text.encode() for text in texts], "truncate", kind=kind, length=12)
    theirs = zoo.FAST[kind]()(texts, truncation=True, max_length=12)["input_ids"]
    assert [ids for _, _, ids in as_lists(found)] == theirs


@pytest.mark.parametrize("layout", LAYOUTS)
def test_batches_do_not_show(layout, monkeypatch):
    documents = [*(line.encode() for line in zoo.LINES * 3), *DEAD, b"fox"]
    whole = made(documents, layout)
    monkeypatch.setattr(sequences_module, "_BATCH_DOCUMENTS", 2)
    in_twos = made(documents, layout)
    monkeypatch.setattr(sequences_module, "_BATCH_BYTES", 1)
    in_ones = made(documents, layout)
    assert as_lists(whole) == as_lists(in_twos) == as_lists(in_ones)
    assert whole.dead_letters == in_twos.dead_letters == in_ones.dead_letters


def test_dead_letters_say_why():
    found = made(list(DEAD), "truncate")
    assert [(letter.stage, letter.reason, letter.position) for letter in found.dead_letters] == [
        ("decode", "the document is empty", 0),
        ("decode", "the document holds nothing but white space", 1),
        ("decode", "the document holds nothing but white space", 2),
        ("decode", "the text is not UTF-8: byte 0 is 0xff", 3),
        ("decode", "the text is not UTF-8: byte 1 is 0xc3", 4),
        ("read", "gone", 5),
    ]
    assert all("decode_document" in letter.traceback for letter in found.dead_letters[:5])
    assert len(found.tokens) == 0


def test_a_text_that_becomes_no_tokens_is_a_dead_letter():
    # BERT's normaliser takes control characters away.
    found = made([b"\x01\x02", b"fox"], "truncate")
    assert [(letter.stage, letter.reason) for letter in found.dead_letters] == [
        ("decode", "the tokenizer makes no tokens of the document")
    ]
    assert found.present.tolist() == [False, True]


def test_labels_come_along_where_a_sequence_is_of_one_document():
    documents = [b"the quick brown fox jumps over the lazy dog", b"", b"fox"]
    assert made(documents, "truncate").labels.tolist() == [0, 1, 2]
    cut = made(documents, "cut")
    assert cut.labels.tolist() == [0] * (len(cut.keys) - 2) + [1, 2]
    assert set(made(documents, "pack").labels.tolist()) == {NO_LABEL}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_words_are_known_in_every_layout(layout):
    documents = [b"unbelievable distillation", b"", b"students, unbelievable"]
    found = made(documents, layout, length=7, whole_words=True)
    assert found.word_starts.shape == found.maskable.shape
    pieces = zoo.word_piece().convert_ids_to_tokens(found.tokens.token_ids.tolist())
    for piece, start, maskable in zip(pieces, found.word_starts.tolist(), found.maskable.tolist(), strict=True):
        if maskable:
            assert start == (not piece.startswith("##")), pieces
    assert made(documents, layout, length=7).word_starts is None
    masks = mask_tokens(
        found.tokens,
        keys=found.present_keys,
        maskable=found.maskable,
        word_starts=found.word_starts,
        view=view(layout, length=7, whole_words=True),
        view_index=0,
    )
    num_maskable = np.add.reduceat(found.maskable, found.tokens.offsets[:-1].astype(int), dtype=int)
    assert ((masks.counts >= 1) == (num_maskable >= 1)).all()


def test_special_tokens_written_in_a_text_are_never_masked():
    found = made([b"[MASK] fox [SEP] [CLS]"], "truncate", mask_share=1.0)
    tokens = zoo.word_piece().convert_ids_to_tokens(found.tokens.token_ids.tolist())
    assert [token for token, maskable in zip(tokens, found.maskable, strict=True) if not maskable] == [
        "[CLS]",
        "[MASK]",
        "[SEP]",
        "[CLS]",
        "[SEP]",
    ]


def test_what_cannot_be_is_refused():
    other = view("truncate").model_copy(update={"tokenizer_sha256": "0" * 64})
    with pytest.raises(TeacherError, match="the view was made with tokenizer 000000000000"):
        sequences_of([], tokenizer=tokenizer(), view=other)
    with pytest.raises(TeacherError, match="views.length 2 leaves no room for text beside 2 special tokens"):
        made([], "cut", length=2)
    facts = tokenizer("byt5").facts
    whole_words = MaskedTokensView(
        tokenizer_sha256=facts.sha256,
        vocabulary_size=facts.vocabulary_size,
        layout="cut",
        length=9,
        special_tokens=True,
        mask_token_id=5,
        whole_words=True,
    )
    with pytest.raises(TeacherError, match="whole words cannot be masked"):
        sequences_of(samples_of([b"fox"]), tokenizer=tokenizer("byt5"), view=whole_words)


def test_packing_needs_a_separator():
    plain = wrap_tokenizer(zoo.PreTrainedTokenizerFast(tokenizer_object=zoo.byte_pairs().backend_tokenizer), name="t")
    packed = TokensView(
        tokenizer_sha256=plain.facts.sha256,
        vocabulary_size=plain.facts.vocabulary_size,
        layout="pack",
        length=9,
        special_tokens=False,
    )
    with pytest.raises(TeacherError, match="no end-of-text or separator token.*views.layout: cut"):
        sequences_of(samples_of([b"fox"]), tokenizer=plain, view=packed)


def test_documents_are_decoded_strictly():
    assert decode_document("Käse 🐈\n".encode()) == "Käse 🐈\n"
    with pytest.raises(SampleError, match="byte 3 is 0x80"):
        decode_document(b"abc\x80")
