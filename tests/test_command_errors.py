"""What the command says of failures: one line and a status, a traceback only where it is asked for."""

from __future__ import annotations

import json

import pytest

import decant


@pytest.fixture
def missing(tmp_path):
    return ["cache", "show", str(tmp_path / "cache"), "nothing"]


def test_an_error_nobody_foresaw_is_one_line(monkeypatch, capsys, missing):
    def broken(arguments):
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr(decant, "run_cache_action", broken)
    assert decant.main([*missing, "--json"]) == 1
    said = capsys.readouterr()
    assert json.loads(said.out) == {"error": "ZeroDivisionError", "message": said.err[len("decant: ") : -1], "status": 1}
    assert said.err.startswith("decant: ZeroDivisionError: division by zero (Decant did not foresee this; --verbose shows where")
    assert said.err.count("\n") == 1
    assert decant.main([*missing, "--verbose"]) == 1
    assert "in broken" in capsys.readouterr().err


def test_one_process_of_several_speaks_for_all(monkeypatch, capsys, missing):
    monkeypatch.setenv("RANK", "0")
    status = decant.main([*missing, "--json"])
    first = capsys.readouterr()
    assert status == json.loads(first.out)["status"] != 0
    monkeypatch.setenv("RANK", "1")
    assert decant.main([*missing, "--json"]) == status
    other = capsys.readouterr()
    assert other.out == ""
    assert other.err == first.err.replace("decant: ", "decant (process 1): ")
