"""JSON Lines as documents."""

from __future__ import annotations

import json

import pytest

from storage.errors import DuplicateKeyError
from storage.sources import NO_LABEL, index_source
from storage.sources.memo import SourceMemo
from tests.contracts.source_contract import write_file
from tests.storage.sources.texts import samples_of, source, written


def jsonl(tmp_path, *lines, **kwargs):
    return written(tmp_path, "a.jsonl", b"".join(line + b"\n" for line in lines), "jsonl", **kwargs)


def test_json_lines(tmp_path):
    samples = samples_of(
        jsonl(
            tmp_path,
            b'{"text": "K\\u00e4se \\ud83d\\udc08\\nnext line", "label": 2, "id": 7}',
            b"",
            '{"text": "猫", "label": "ant", "id": "x"}'.encode(),
            label_field="label",
            key_field="id",
            classes=("bee", "ant", "cat"),
        )
    )
    assert [(sample.key, sample.label, sample.data.decode()) for sample in samples] == [
        ("7", 2, "Käse 🐈\nnext line"),
        ("x", 1, "猫"),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "the line is no JSON"),
        (b'{"text": "\xff"}', "the line is no JSON"),
        (b"[" * 100_000, "the line is no JSON"),
        (b'["text"]', 'no JSON object but ["text"]'),
        (b'{"txt": "x", "label": 0}', "field 'text' is missing. Did you mean 'txt'?"),
        (b'{"text": null, "label": 0}', "field 'text' is null, no string"),
        (b'{"text": ["x"], "label": 0}', "field 'text' is [\"x\"], no string"),
        (b'{"text": "\\ud83d", "label": 0}', "half of a surrogate pair"),
        (b'{"text": "x"}', "field 'label' holds no label: null is no integer"),
        (b'{"text": "x", "label": 1.5}', "1.5 is no integer or class name"),
        (b'{"text": "x", "label": true}', "true is no integer"),
        (b'{"text": "x", "label": "bird"}', '"bird" is no integer or class name'),
        (b'{"text": "x", "label": 2}', "label 2 is beyond the 2 classes"),
        (b'{"text": "x", "label": -2}', "label -2 is negative"),
    ],
)
def test_a_bad_line_is_one_bad_sample(tmp_path, line, message):
    good = b'{"text": "good", "label": "b"}'
    samples = samples_of(jsonl(tmp_path, good, line, good, label_field="label", classes=("a", "b")))
    assert [(sample.data, sample.label) for sample in samples] == [
        (b"good", 1),
        (None, NO_LABEL if samples[1].label < 0 else 0),
        (b"good", 1),
    ]
    assert message in samples[1].error
    assert samples[1].key == "a.jsonl:2"


@pytest.mark.parametrize("key", [b"null", b"1.5", b"[]", b'""', b'"a\\u0000b"', b'"\\ud83d"', b"true"])
def test_a_line_without_a_usable_key_has_its_place_as_key(tmp_path, key):
    samples = samples_of(jsonl(tmp_path, b'{"text": "x", "id": "k"}', b'{"text": "x", "id": %b}' % key, key_field="id"))
    assert [sample.key for sample in samples] == ["k", "a.jsonl:2"]
    assert "key" in samples[1].error


def test_equal_keys_are_refused_with_both_places(tmp_path):
    lines = [b'{"text": "x", "id": "%b"}' % key for key in (b"a", b"b", b"c", b"b")]
    with pytest.raises(DuplicateKeyError, match=r"'b' occurs twice: .*00000-00003', position 1, .*00003-00004', position 0"):
        index_source(jsonl(tmp_path, *lines, key_field="id", unit_size=3))


def test_class_names_in_another_order_are_other_labels_wherever_they_stand(tmp_path):
    names = tmp_path / "classes.txt"
    memo = SourceMemo(str(tmp_path / "memo"))
    jsonl(tmp_path, b'{"text": "x", "label": "ant"}', b'{"text": "y", "label": "bee"}')

    def index(classes):
        return index_source(source(tmp_path / "a.jsonl", "jsonl", label_field="label", classes=classes), memo=memo)

    found = []
    for order in (("ant", "bee"), ("bee", "ant")):
        names.write_text("\n".join(order))
        found.append(index(str(names)).units[0])
        assert index(order).units[0].digest == found[-1].digest
    assert found[0].digest != found[1].digest
    assert found[0].unit.stat_token != found[1].unit.stat_token


def test_the_same_names_in_the_config_and_in_a_file_are_read_once(tmp_path):
    (tmp_path / "classes.txt").write_text("ant\nbee\n")
    jsonl(tmp_path, b'{"text": "x", "label": "ant"}')
    given = [
        source(tmp_path / "a.jsonl", "jsonl", label_field="label", classes=classes).units()[0].stat_token
        for classes in (("ant", "bee"), str(tmp_path / "classes.txt"))
    ]
    assert given[0] == given[1]


def test_json_and_text_of_the_same_lines_have_the_same_digest_but_for_keys(tmp_path):
    texts = ["a", "b", "Käse"]
    write_file(f"{tmp_path}/x.txt", "\n".join(texts).encode())
    write_file(
        f"{tmp_path}/y.jsonl",
        "\n".join(json.dumps({"text": text, "id": f"x.txt:{n}"}) for n, text in enumerate(texts, 1)).encode(),
    )
    [text] = index_source(source(tmp_path / "x.txt")).units
    [lines] = index_source(source(tmp_path / "y.jsonl", "jsonl", key_field="id")).units
    assert (text.digest, text.key_hash) == (lines.digest, lines.key_hash)
