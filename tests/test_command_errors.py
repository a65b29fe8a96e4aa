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


@pytest.mark.parametrize("command", ["label", "repair"])
def test_a_runner_that_was_taken_for_the_experiment_is_named(tmp_path, capsys, command):
    config = tmp_path / "c.yaml"
    config.write_text("name: x")
    assert decant.main([command, "--runner", "FlinkRunner", str(config)]) == 2
    said = capsys.readouterr().err
    assert "FlinkRunner was taken for the experiment, and there is no such file" in said
    assert f"write --runner=FlinkRunner, or put the experiment first: {config} --runner FlinkRunner" in said
    assert decant.main([command, "--flink_master", "host:8081", str(config)]) == 2
    assert "write --flink_master=host:8081, or put" in capsys.readouterr().err
    assert decant.main([command, "--runner", "PrismRunner", "gone.yaml"]) == 2
    assert "write --runner=PrismRunner, or put the experiment first: EXPERIMENT.yaml" in capsys.readouterr().err
    assert decant.main([command, str(tmp_path / "gone.yaml"), "--flink_master", "host:8081"]) == 2
    assert "taken for the experiment" not in capsys.readouterr().err
