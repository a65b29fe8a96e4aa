import importlib.metadata

import pytest

from cluster.downloads import go_program
from cluster.errors import ClusterError
from cluster.prism import prism

BEAM = importlib.metadata.version("apache-beam")
GO = """#!/bin/sh
[ "$1" = install ] && [ "$2" = MODULE ] || { echo "unknown $*"; exit 1; }
echo built > "$GOBIN/prism"
"""


@pytest.fixture
def go(tmp_path, monkeypatch):
    def stand_in(module):
        program = tmp_path / "bin" / "go"
        program.parent.mkdir(exist_ok=True)
        program.write_text(GO.replace("MODULE", module))
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")

    return stand_in


def test_prism_is_built_once_of_the_version_of_beam(tmp_path, go):
    go(f"github.com/apache/beam/sdks/v2/go/cmd/prism@v{BEAM}")
    program = prism(tmp_path / "downloads")
    assert program.read_text() == "built\n"
    go("nothing")
    assert prism(tmp_path / "downloads") == program


def test_where_go_fails_its_words_are_shown_and_nothing_is_left(tmp_path, go):
    go("nothing")
    with pytest.raises(ClusterError, match=r"(?s)building .*prism@.*check the network.*unknown install"):
        prism(tmp_path / "downloads")
    assert list((tmp_path / "downloads").iterdir()) == []


def test_without_go_the_caller_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match="go is not on the PATH; leave it out"):
        go_program("example.org/a", version="1", program=tmp_path / "a" / "a", without_go="leave it out")
