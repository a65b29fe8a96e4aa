"""A failure says where it was raised, and the same on every machine."""

from __future__ import annotations

import pytest

from storage.failure_trace import short_traceback, without_addresses


def raise_deep(depth):
    if depth:
        raise_deep(depth - 1)
    raise OSError("gone")


def caught(function, *words):
    with pytest.raises((OSError, ValueError), match="gone|explained") as raised:
        function(*words)
    return raised.value


def explain():
    try:
        raise_deep(1)
    except OSError as error:
        raise ValueError("explained") from error


def test_frames_are_modules_and_functions_innermost_last():
    lines = short_traceback(caught(raise_deep, 2)).splitlines()
    assert [line.rsplit(":", 1)[0] for line in lines[-4:-1]] == [f"{__name__}.raise_deep"] * 3
    assert lines[-1] == "OSError"
    assert "/" not in "".join(lines)


def test_a_deep_traceback_is_cut_and_equal_failures_say_the_same():
    assert len(short_traceback(caught(raise_deep, 50)).splitlines()) == 7
    assert short_traceback(caught(raise_deep, 50)) == short_traceback(caught(raise_deep, 40))


def test_causes_are_told():
    lines = short_traceback(caught(explain)).splitlines()
    assert [line for line in lines if ":" not in line] == ["ValueError, caused by", "OSError"]


def test_addresses_differ_from_run_to_run_and_are_left_out():
    message = f"cannot read {object()!r} and <io.BytesIO object at 0x7F00ab>"
    assert without_addresses(message) == "cannot read <object object> and <io.BytesIO object>"
