"""Read YAML 1.2 core data: no tags, no duplicate keys, and `1e-3` is a number.

PyYAML follows YAML 1.1, where `1e-3` is a string, `no` is false, `010` is eight, `12:30` is 750, `2026-01-31` is a date and the
second of two equal keys silently wins. Here only null, true, false and numbers are special, as in YAML 1.2's core schema.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

_PREFIX = "tag:yaml.org,2002:"
_PLAIN_SCALARS = {
    f"{_PREFIX}{name}": re.compile(rf"(?:{pattern})\Z")
    for name, pattern in {
        "null": r"~|null|Null|NULL|",
        "bool": r"true|True|TRUE|false|False|FALSE",
        "int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
        "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "merge": r"<<",
    }.items()
}
_ANYTHING = re.compile("")
_MAX_NODES = 100_000
_TAGS = {*_PLAIN_SCALARS, f"{_PREFIX}str", f"{_PREFIX}seq", f"{_PREFIX}map"}


class _CoreLoader(yaml.SafeLoader):
    """A safe loader that resolves plain scalars as YAML 1.2's core schema does."""

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Read decimal (leading zeros are only zeros), 0o and 0x integers."""
        text = self.construct_scalar(node)
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


# In place of YAML 1.1's resolvers. None: tried whatever the first character; in order, for an integer would also do as a float.
_CoreLoader.yaml_implicit_resolvers = {None: list(_PLAIN_SCALARS.items())}
_CoreLoader.add_constructor(f"{_PREFIX}int", _CoreLoader.construct_yaml_int)


class YamlProblemsError(Exception):
    """A text that is not plain YAML data.

    Attributes:
        problems: one line each, with the line number where there is one.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def parse_yaml(text: str) -> Any:
    """Return the one document of a YAML text; None for an empty one.

    Raises:
        YamlProblemsError: bad syntax (the first place), or duplicate keys and tags (all places).
    """
    try:
        loader = _CoreLoader(text)
        node = loader.get_single_node()
        problems = [] if node is None else _find_problems(node)
        if node is not None and _expanded_size(node, sizes={}) > _MAX_NODES:
            what = f"an alias holds itself, or aliases repeat the document to more than {_MAX_NODES:,} values"
            problems.append(f"{what}: write out what you need")
        if not problems:
            return None if node is None else loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        raise YamlProblemsError([_syntax_problem(error)]) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise YamlProblemsError([f"not a YAML text: {' '.join(str(error).split())}"]) from error
    raise YamlProblemsError(problems)


def _syntax_problem(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    context = f" {error.context}" if error.context else ""
    return f"{where}YAML syntax error{context}: {error.problem or 'cannot be read'}"


def _expanded_size(node: yaml.Node, *, sizes: dict[int, int]) -> int:
    """Return the values of a node with every alias written out; one that holds itself has more than any limit."""
    if id(node) in sizes:
        return sizes[id(node)]
    sizes[id(node)] = _MAX_NODES + 1
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        children = [child for pair in node.value for child in pair]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    sizes[id(node)] = 1 + sum(_expanded_size(child, sizes=sizes) for child in children)
    return sizes[id(node)]


def _find_problems(root: yaml.Node) -> list[str]:
    """Walk the nodes; one that aliases share is visited once. Problems come in the order of their lines."""
    problems: list[tuple[int, str]] = []
    seen: set[int] = set()
    stack = [root]
    while stack:
        node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        line, tag = _line(node), node.tag.replace(_PREFIX, "!!")
        if node.tag not in _TAGS:
            problems.append((line, f"tag {tag} is refused, a config holds plain data only: remove the tag"))
        elif isinstance(node, yaml.ScalarNode) and not _PLAIN_SCALARS.get(node.tag, _ANYTHING).match(node.value):
            problems.append((line, f"{node.value!r} is not what its tag {tag} says: remove the tag"))
        if isinstance(node, yaml.MappingNode):
            problems += _duplicate_keys(node)
            stack.extend(child for pair in node.value for child in pair)
        elif isinstance(node, yaml.SequenceNode):
            stack.extend(node.value)
    return [f"line {line}: {problem}" for line, problem in sorted(problems)]


def _duplicate_keys(node: yaml.MappingNode) -> Iterator[tuple[int, str]]:
    first_lines: dict[str, int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        if key.value in first_lines:
            yield _line(key), f"key {key.value!r} is given twice, first on line {first_lines[key.value]}: remove one"
        else:
            first_lines[key.value] = _line(key)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
