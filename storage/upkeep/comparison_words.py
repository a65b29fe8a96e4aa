"""Comparisons in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

Figures = dict[str, Any]
_SHOWN_FIELDS = 3
_VALUE_WIDTH = 34


def label_sets_in_words(figures: Figures) -> list[str]:
    """Return what `compare_label_sets` found, what matters first."""
    one, other = figures["a"], figures["b"]
    if figures["same"]:
        lines = ["A and B are the same label set"]
    elif not figures["fields"]:
        lines = ["The same is asked for: teacher, views and target agree. Parts of units with the same content serve both"]
    else:
        lines = ["What is asked for differs:", *_table(figures["fields"], means=True)]
        for serves, what in (("a_serves_b", "Labels of A serve B"), ("b_serves_a", "Labels of B serve A")):
            reason = figures[serves]
            lines.append(
                f"{what}, narrowed when read" if reason is None else f"{what.replace('serve', 'do not serve')}: {reason}"
            )
    lines += _units_in_words(figures["units"])
    lines += _views_in_words(figures["views"])
    lines += classes_in_words(figures["classes"])
    for name, what in (
        ("provenance", "Made in different ways, which is recorded but prevents no reuse:"),
        ("source", "The source's config differs, which prevents no reuse; only content counts:"),
    ):
        if figures[name]:
            lines += [what, *_table(figures[name])]
    lines += ["", f"{'':12}{'A':>34}{'B':>34}"]
    for name, title in (
        ("id", "label set"),
        ("name", "name"),
        ("num_units", "units"),
        ("num_samples", "samples"),
        ("num_views", "views"),
        ("num_rows", "rows"),
        ("num_dead_letters", "dead letters"),
        ("parts_bytes", "bytes"),
    ):
        values = [
            f"{side[name]:,}" if isinstance(side[name], int) else _shortened(str(side[name]), width=33) for side in (one, other)
        ]
        lines.append(f"{title:12}{values[0]:>34}{values[1]:>34}")
    return lines


def request_in_words(figures: Figures, *, url: str, num_units: int) -> list[str]:
    """Return what `compare_request` found, what matters first."""
    label_set = figures["label_set"]
    called = f", label set {label_set['id']} ({label_set['name']})" if label_set else ", of which no label set is made"
    lines = [f"A: what is asked for. B: the nearest in {url}, request {figures['nearest'][:8]}{called}"]
    if not figures["fields"]:
        lines.append("The same is asked for: teacher, views and target agree")
    else:
        lines += ["What is asked for differs:", *_table(figures["fields"], means=True)]
        reason = figures["b_serves_a"]
        lines.append("Labels of B serve A, narrowed when read" if reason is None else f"Labels of B do not serve A: {reason}")
    parts = figures["parts"]
    if figures["b_serves_a"] is None:
        lines.append(
            f"Of {num_units:,} units, {parts['all_views']:,} are labelled in all views, {parts['some_views']:,} in some, "
            f"{parts['no_views']:,} in none"
        )
    if figures["units"] is not None:
        lines += _units_in_words(figures["units"])
        lines += _views_in_words(figures["views"])
        lines += classes_in_words(figures["classes"])
    return lines


def nearest_in_words(nearest: Figures) -> str:
    """Return what `nearest_request` found, in a line."""
    fields = [f"{entry['field']} ({_side(entry, 'b')} there, {_side(entry, 'a')} here)" for entry in nearest["fields"]]
    more = [f"and {len(fields) - _SHOWN_FIELDS} more"] if len(fields) > _SHOWN_FIELDS else []
    listed = ", ".join(fields[:_SHOWN_FIELDS] + more)
    return f"{nearest['num_units']:,} have labels {nearest['request'][:8]}, which differ in {listed}"


def _side(entry: Figures, side: str) -> str:
    return "absent" if entry["absent"] == side else _shortened(_shown(entry[side]), width=_VALUE_WIDTH)


def _table(entries: Sequence[Figures], *, means: bool = False) -> list[str]:
    rows = [
        (
            entry["field"],
            *("-" if entry["absent"] == side else _shortened(_shown(entry[side]), width=66) for side in ("a", "b")),
            f"({entry['means']})" if means and entry["means"] else "",
        )
        for entry in entries
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return [f"  {name:<{widths[0]}}  A {a:<{widths[1]}}  B {b}  {meaning}".rstrip() for name, a, b, meaning in rows]


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return "null" if value is None else str(value)


def _shortened(text: str, *, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 3]}..."


def _units_in_words(units: Figures) -> list[str]:
    counts = units["counts"]
    total = sum(count["num_units"] for name, count in counts.items() if name != "only_b")
    same = counts["same"]["num_units"]
    if same == total and not counts["only_b"]["num_units"]:
        return ["The same pictures in the same units" + ("" if units["same_order"] else ", in another order")]

    def line(name: str, what: str, entries: Iterable[str]) -> list[str]:
        count = counts[name]
        if not count["num_units"]:
            return []
        shown = [f"    {entry}" for entry in entries]
        more = count["num_units"] - len(shown)
        head = f"  {what:<40}{count['num_units']:>10,} units{count['num_samples']:>14,} samples"
        return [head, *shown, *([f"    ... and {more:,} more"] if shown and more else [])]

    changed = [
        f"{entry['unit']}: " + (entry["why"] or f"{entry['num_samples_a']:,} samples in A, {entry['num_samples_b']:,} in B")
        for entry in units["changed"]
    ]
    return [
        "The pictures differ:",
        *line("same", "same content, same name", ()),
        *line("moved", "same content, another name (reused)", [f"{entry['a']} is {entry['b']} in B" for entry in units["moved"]]),
        *line("changed", "another content under the same name", changed),
        *line("only_a", "only in A", units["only_a"]),
        *line("only_b", "only in B", units["only_b"]),
    ]


def _views_in_words(views: Figures) -> list[str]:
    one, other = views["a"], views["b"]
    if one == other:
        return []
    more, first, last = ("A", other, one) if one > other else ("B", one, other)
    which = f"view {first} is" if last - first == 1 else f"views {first} to {last - 1} are"
    return [f"A has {one} views, B {other}: {which} only in {more}"]


def classes_in_words(classes: Figures) -> list[str]:
    """Return what `compare_classes` found; nothing where the lists agree."""
    if classes["same"]:
        return []
    known, numbers = classes["known"], classes["num_classes"]
    if not (known["a"] and known["b"]):
        return [f"Class names are known in {'A' if known['a'] else 'B'} only"]
    names = "the same names in another order" if classes["same_names"] else "other names"
    shown = "; ".join(f"class {entry['class']} is {entry['a']!r} and {entry['b']!r}" for entry in classes["positions"][:3])
    more = "; ..." if classes["num_positions"] > 3 else ""
    return [f"The class lists differ ({numbers['a']:,} and {numbers['b']:,}, {names}): {shown}{more}"]
