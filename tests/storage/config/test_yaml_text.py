"""YAML 1.2 core data and nothing else."""

import json
import math
from textwrap import dedent

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.config.yaml_text import YamlProblemsError, parse_yaml

# JSON writes larger code points as two surrogates, which YAML does not join.
TEXT = st.text(st.characters(max_codepoint=0xFFFF))
# YAML takes keys of at most 1,024 characters, escapes counted; JSON escapes most to six.
KEYS = TEXT.filter(lambda key: len(json.dumps(key)) <= 1000)

JSON_DATA = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda children: st.lists(children, max_size=4) | st.dictionaries(KEYS, children, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        ("-2.5e+3", -2500.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("010", 10),
        ("-7", -7),
        ("0o17", 15),
        ("0xff", 255),
        ("true", True),
        ("no", "no"),
        ("on", "on"),
        ("12:30", "12:30"),
        ("2026-01-31", "2026-01-31"),
        ("1_000", "1_000"),
        ("1.2.3", "1.2.3"),
        ("e5", "e5"),
        ('"1e-3"', "1e-3"),
        ("'3'", "3"),
        ("~", None),
        ("", None),
        ("# a comment", None),
        ("a:", {"a": None}),
        ("[1, [x], {y: 2}]", [1, ["x"], {"y": 2}]),
    ],
)
def test_scalars_are_read_as_yaml_1_2_reads_them(text, value):
    result = parse_yaml(text)
    assert result == value
    assert type(result) is type(value)


def test_infinities_and_nan_are_numbers():
    assert parse_yaml("[.inf, -.Inf]") == [math.inf, -math.inf]
    assert math.isnan(parse_yaml(".nan"))


@given(st.floats(allow_nan=False, allow_infinity=False))
@settings(deadline=None)
def test_every_finite_float_as_python_writes_it_is_a_float(value):
    result = parse_yaml(repr(value))
    assert type(result) is float
    assert result == value


@given(JSON_DATA)
@settings(deadline=None)
def test_json_is_yaml(value):
    assert parse_yaml(json.dumps(value)) == value


def test_anchors_and_merge_keys():
    text = """\
        base: &base {epochs: 3, seed: 1}
        long:
          <<: *base
          epochs: 9
        same: *base
    """
    assert parse_yaml(dedent(text)) == {
        "base": {"epochs": 3, "seed": 1},
        "long": {"epochs": 9, "seed": 1},
        "same": {"epochs": 3, "seed": 1},
    }


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        (
            'a: 1\nb: {c: 2,\n    c: 3}\na: 4\n"a": 5\n',
            [
                "line 3: key 'c' is given twice, first on line 2: remove one",
                "line 4: key 'a' is given twice, first on line 1: remove one",
                "line 5: key 'a' is given twice, first on line 1: remove one",
            ],
        ),
        (
            "a: !!python/object/apply:os.system [ls]\nb: !env HOME\nc: !!binary aGk=\n",
            [
                "line 1: tag !!python/object/apply:os.system is refused, a config holds plain data only: remove the tag",
                "line 2: tag !env is refused, a config holds plain data only: remove the tag",
                "line 3: tag !!binary is refused, a config holds plain data only: remove the tag",
            ],
        ),
        ("a: !!int many", ["line 1: 'many' is not what its tag !!int says: remove the tag"]),
        ("a: !!bool perhaps", ["line 1: 'perhaps' is not what its tag !!bool says: remove the tag"]),
        (
            "a: [1, 2\nb: 3",
            ["line 2, column 2: YAML syntax error while parsing a flow sequence: expected ',' or ']', but got ':'"],
        ),
        (
            "a:\n\tb: 1",
            [
                "line 2, column 1: YAML syntax error while scanning for the next token: found character '\\t' that cannot start any token"
            ],
        ),
        ("a: 1\n b: 2", ["line 2, column 3: YAML syntax error: mapping values are not allowed here"]),
        ("a: *b", ["line 1, column 4: YAML syntax error: found undefined alias 'b'"]),
        (
            "a: 1\n---\nb: 2",
            ["line 2, column 1: YAML syntax error expected a single document in the stream: but found another document"],
        ),
        ("[a]: 1", ["line 1, column 1: YAML syntax error while constructing a mapping: found unhashable key"]),
        (
            "a: 1\x07",
            [
                'not a YAML text: unacceptable character #x0007: special characters are not allowed in "<unicode string>", position 4'
            ],
        ),
    ],
)
def test_what_is_no_plain_data_is_refused_with_its_line(text, problems):
    with pytest.raises(YamlProblemsError) as caught:
        parse_yaml(text)
    assert caught.value.problems == problems


def test_aliases_that_multiply_are_refused_and_others_are_not():
    lines = ["l0: &l0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, 9)]
    with pytest.raises(YamlProblemsError, match="aliases repeat the document to more than 100,000 values"):
        parse_yaml("\n".join(lines))
    assert len(parse_yaml("\n".join(lines[:4]))["l3"]) == 9


def test_too_deep_and_too_long_texts_are_refused():
    with pytest.raises(YamlProblemsError, match="not a YAML text: maximum recursion depth"):
        parse_yaml("[" * 5000 + "]" * 5000)
    with pytest.raises(YamlProblemsError, match="not a YAML text: Exceeds the limit"):
        parse_yaml("9" * 5000)
