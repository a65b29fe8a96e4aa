"""Tokenizers are told apart by what they do, whichever way they come."""

from __future__ import annotations

import json

import fsspec
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import ProphetNetTokenizer

from pipelines.text.tokenizers import load_tokenizer
from storage.errors import SourceError, TeacherError
from storage.text.tokenizer_backends import wrap_tokenizer
from tests.pipelines.text import tokenizer_zoo as zoo

ZOO = "tests.pipelines.text.tokenizer_zoo"


@pytest.fixture(params=zoo.ALL)
def made(request):
    return zoo.ALL[request.param]()


def wrapped(tokenizer):
    return wrap_tokenizer(tokenizer, name="t")


def sha256(tokenizer):
    return wrapped(tokenizer).facts.sha256


def test_ids_are_those_of_the_tokenizer(made):
    tokenizer = wrapped(made)
    encoded = tokenizer.encode(zoo.TEXTS)
    ends = encoded.counts.cumsum()
    prefix, suffix = tokenizer.facts.prefix, tokenizer.facts.suffix
    for text, count, end in zip(zoo.TEXTS, encoded.counts.tolist(), ends.tolist(), strict=True):
        ids = encoded.token_ids[end - count : end].tolist()
        assert ids == made(text, add_special_tokens=False)["input_ids"]
        assert [*prefix, *ids, *suffix] == made(text)["input_ids"]
    assert encoded.token_ids.max() < tokenizer.facts.vocabulary_size == len(made)
    assert tokenizer.encode([]).token_ids.tolist() == []


def test_frames_and_roles():
    facts = {name: wrapped(make()).facts for name, make in zoo.ALL.items()}
    frames = {name: (fact.prefix, fact.suffix, fact.mask_id, fact.pad_id, fact.separator_id) for name, fact in facts.items()}
    assert frames == {
        "word_piece": ((2,), (3,), 4, 0, 3),
        "byte_pairs": ((), (), None, None, 0),
        "roberta": ((0,), (2,), 4, 1, 2),
        "llama": ((1,), (), None, None, 2),
        "byt5": ((), (1,), None, 0, 1),
    }
    assert facts["word_piece"].special_ids == facts["roberta"].special_ids == (0, 1, 2, 3, 4)
    assert (facts["word_piece"].max_length, facts["roberta"].max_length) == (64, None)


def test_saved_and_loaded_again_it_is_the_same(made, tmp_path):
    made.save_pretrained(tmp_path / "one")
    loaded = load_tokenizer(str(tmp_path / "one"))
    assert loaded.facts.sha256 == sha256(made)
    assert loaded.encode(zoo.TEXTS).token_ids.tolist() == wrapped(made).encode(zoo.TEXTS).token_ids.tolist()


@pytest.mark.parametrize("kind", zoo.FAST)
def test_its_json_file_is_the_same(kind, tmp_path):
    made = zoo.FAST[kind]()
    made.save_pretrained(tmp_path)
    fsspec.filesystem("memory").pipe_file("/t/tokenizer.json", (tmp_path / "tokenizer.json").read_bytes())
    for url in (str(tmp_path / "tokenizer.json"), "memory://t/tokenizer.json"):
        assert load_tokenizer(url).facts.sha256 == sha256(made)
    fsspec.filesystem("memory").store.clear()


def test_padding_truncation_and_length_do_not_count():
    made = zoo.word_piece()
    before = sha256(made)
    made.backend_tokenizer.enable_truncation(max_length=5)
    made.backend_tokenizer.enable_padding(pad_id=0, pad_token="[PAD]", length=9)
    made.model_max_length = 512
    written = made.backend_tokenizer.to_str()
    tokenizer = wrapped(made)
    assert tokenizer.facts.sha256 == before
    assert tokenizer.encode(["the quick brown fox jumps over the lazy dog"]).counts.tolist() > [5]
    # As a JSON file holds it, which models for embeddings of sentences often pad to a fixed length.
    assert wrapped(Tokenizer.from_str(written)).facts.sha256 == before


def test_merges_count_in_either_spelling(tmp_path):
    zoo.byte_pairs().save_pretrained(tmp_path)
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    assert isinstance(data["model"]["merges"][0], list)
    data["model"]["merges"] = [" ".join(merge) for merge in data["model"]["merges"]]
    (tmp_path / "old.json").write_text(json.dumps(data))
    assert load_tokenizer(str(tmp_path / "old.json")).facts.sha256 == sha256(zoo.byte_pairs())


def test_others_of_equal_size_differ(tmp_path):
    one = zoo.word_piece()
    one.save_pretrained(tmp_path)
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    found = {sha256(one)}

    def change(name, edit):
        other = json.loads(json.dumps(data))
        edit(other)
        (tmp_path / f"{name}.json").write_text(json.dumps(other))
        changed = load_tokenizer(str(tmp_path / f"{name}.json"))
        assert changed.facts.vocabulary_size == len(one)
        assert changed.facts.sha256 not in found, name
        found.add(changed.facts.sha256)

    def swap(other):
        vocabulary = other["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]

    change("two words swapped", swap)
    change("case", lambda other: other["normalizer"].update(lowercase=False))
    change("longest word", lambda other: other["model"].update(max_input_chars_per_word=7))
    change("pieces", lambda other: other["model"].update(continuing_subword_prefix="@@"))
    change("frame", lambda other: other["post_processor"]["single"].pop())
    change("an ordinary token", lambda other: other["added_tokens"][4].update(special=False))
    change("words", lambda other: other.update(pre_tokenizer={"type": "Whitespace"}))
    change("accents that stay", lambda other: other["normalizer"].update(strip_accents=False))


@pytest.mark.parametrize("lowercase", [True, False])
def test_accents_count_where_they_make_other_ids(lowercase):
    """Null means what `lowercase` says."""

    def of(strip_accents):
        tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "cafe": 1, "caf\u00e9": 2}, unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip_accents)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        found = wrapped(tokenizer)
        return found.facts.sha256, found.encode(["Caf\u00e9 caf\u00e9"]).token_ids.tolist()

    null, stay, strip = of(None), of(False), of(True)
    assert stay[1] != strip[1]
    for one, other in ((null, stay), (stay, strip)):
        assert (one[0] == other[0]) == (one[1] == other[1])


def test_slow_tokenizers_tell_accents_that_stay(tmp_path):
    words = tmp_path / "prophetnet.tokenizer"
    words.write_text("\n".join(["[PAD]", "[UNK]", "[SEP]", "[X_SEP]", "[CLS]", "[MASK]", "the", "cafe", "caf\u00e9"]))

    def of(**settings):
        found = wrapped(ProphetNetTokenizer(str(words), **settings))
        return found.facts.sha256, found.encode(["the Caf\u00e9"]).token_ids.tolist()

    silent, stay = of(), of(strip_accents=False)
    assert silent[1] != stay[1]
    assert silent[0] != stay[0]
    assert of(do_lower_case=False)[0] == of(do_lower_case=False, strip_accents=False)[0]


def test_slow_tokenizers_differ_by_settings():
    assert len({sha256(zoo.byt5()), sha256(zoo.byt5(eos_token="<extra_id_1>")), sha256(zoo.ByT5Tokenizer(extra_ids=6))}) == 3
    assert sha256(zoo.byt5()) == sha256(zoo.byt5(model_max_length=9, padding_side="left"))


@pytest.mark.parametrize("kind", zoo.FAST)
def test_words_begin_where_people_see_them(kind):
    tokenizer = wrapped(zoo.FAST[kind]())
    text = "unbelievable students distillation of"
    encoded = tokenizer.encode([text, "fox", "", text], words=True)
    assert encoded.word_starts.sum() == 4 + 1 + 4
    assert encoded.token_ids.tolist() == tokenizer.encode([text, "fox", "", text]).token_ids.tolist()
    firsts = (encoded.counts.cumsum() - encoded.counts)[[0, 1, 3]]
    assert encoded.word_starts[firsts].all()
    assert tokenizer.encode(["", ""], words=True).word_starts.tolist() == []


def test_a_tokenizer_without_words_says_so():
    for tokenizer in (
        wrapped(zoo.byt5()),
        wrapped(Tokenizer(models.BPE(vocab=dict(zip("tobernah ", range(9), strict=True)), merges=[]))),
    ):
        assert not tokenizer.facts.knows_words
        with pytest.raises(TeacherError, match="does not tell where words begin.*views.whole_words: false"):
            tokenizer.encode(["to be"], words=True)


def test_a_factory_of_ones_own():
    assert load_tokenizer(f"{ZOO}:word_piece").facts.sha256 == sha256(zoo.word_piece())
    assert load_tokenizer(f"{ZOO}:word_piece", kwargs={"lowercase": False}).facts.sha256 == sha256(
        zoo.word_piece(lowercase=False)
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:make", "tokenizer no_such_module:make cannot be loaded.*no_such_module"),
        (f"{ZOO}:no_such_thing", "no_such_thing"),
        (f"{ZOO}:LINES", "not callable"),
        ("pathlib:Path", "is a PosixPath; give a tokenizer of transformers"),
        (f"{ZOO}:without_frame_of_its_own", "frames a sequence by tokens that depend on the text"),
        ("no/such/folder", "tokenizer no/such/folder cannot be loaded"),
    ],
)
def test_what_is_no_tokenizer(name, message):
    with pytest.raises(TeacherError, match=message):
        load_tokenizer(name)


def test_a_json_file_that_is_none(tmp_path):
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(TeacherError, match="t.json cannot be loaded"):
        load_tokenizer(str(tmp_path / "t.json"))
    with pytest.raises(SourceError, match="does not exist"):
        load_tokenizer(str(tmp_path / "u.json"))


def test_random_merges_are_refused():
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "ab": 2}, merges=[("a", "b")], dropout=0.1))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(TeacherError, match=r"drops merges at random \(dropout 0.1\).*set dropout to null"):
        wrapped(tokenizer)


def test_a_tokenizer_that_makes_nothing_of_english_is_refused():
    with pytest.raises(TeacherError, match="encodes plain English to nothing"):
        wrapped(Tokenizer(models.BPE(vocab={"猫": 0}, merges=[])))
