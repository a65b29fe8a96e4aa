"""Help and usage: every command has an example that is one, and wrong words are told as other errors are."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path

import pytest

import decant
from storage.command_line import make_parser

ROOT = Path(__file__).resolve().parents[1]
BEAM = {"--runner=FlinkRunner", "--flink_master=host:8081"}


def parsers(parser):
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from parsers(inner)


@pytest.mark.parametrize("parser", list(parsers(make_parser())), ids=lambda parser: parser.prog)
def test_examples_are_commands_and_their_configs_are_there(parser):
    examples = [line.strip() for line in parser.format_help().splitlines() if line.startswith("  decant ")]
    assert examples
    for example in examples:
        words = shlex.split(example)[1:]
        _, rest = make_parser().parse_known_args(words)
        configs = {word for word in words if word.endswith(".yaml")}
        assert set(rest) <= BEAM | configs
        assert all((ROOT / config).is_file() for config in configs)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lable", "c.yaml"], "argument COMMAND: invalid choice: 'lable' (choose from 'demo', 'plan', 'label', "),
        (["plan"], "the following arguments are required: config\nusage: decant plan [-h] "),
        (["cache", "show", "cache"], "the following arguments are required: label_set\nusage: decant cache show [-h] "),
        (["audit", "c.yaml", "--rows", "few"], "argument --rows: invalid int value: 'few'\nusage: decant audit [-h] "),
        (["train", "c.yaml", "--restat"], "unknown arguments: --restat"),
        (["train", "c.yaml", "training.epochs=1"], "; a key of the config is set with --set training.epochs=1"),
        (["cache", "watch", "c", "--progress-seconds", "0"], "argument --progress-seconds: '0' is not a number above 0\nusage: "),
        (["cache", "watch", "c", "--progress-seconds", "nan"], "argument --progress-seconds: 'nan' is not a number above 0\n"),
    ],
)
def test_wrong_words_are_said_as_json_too(capsys, words, message):
    assert decant.main(words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("decant: ")
    assert message in said.err
    assert decant.main([*words, "--json"]) == 2
    found = capsys.readouterr()
    assert json.loads(found.out) == {"error": "UsageError", "message": said.err[len("decant: ") : -1], "status": 2}
    assert found.err == said.err
