"""A Flink cluster is asked whether it is there and fits, before anything is planned."""

from __future__ import annotations

import time
import zipfile

import pytest
from apache_beam.options.pipeline_options import FlinkRunnerOptions, PortableOptions

from pipelines.engine import pipeline_options
from pipelines.engine.flink_jar import flink_of_jar
from storage.errors import ConfigError

RUNTIME = b"# Flink's own\nproject.version=1.19.3\nscala.binary.version=2.12\n"


def library(minor, *, suffix=""):
    return f"META-INF/maven/org.apache.beam/beam-runners-flink-{minor}{suffix}/pom.properties"


def write_jar(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


@pytest.fixture
def words(rest, listening):
    """The shortest command line for a cluster."""
    return [
        "--runner=FlinkRunner",
        f"--flink_master={rest.address}",
        "--environment_type=EXTERNAL",
        f"--environment_config={listening}",
    ]


def flink(options):
    return options.view_as(FlinkRunnerOptions)


def test_what_a_command_line_leaves_out_comes_from_the_cluster(words, capfd):
    options = pipeline_options(words)
    assert flink(options).flink_version == "1.20"
    assert flink(options).flink_submit_uber_jar
    assert flink(options).parallelism == 3
    assert capfd.readouterr().err == ""


def test_what_a_command_line_says_stays(words, tmp_path):
    options = pipeline_options([*words, "--parallelism=7", f"--artifacts_dir={tmp_path}"])
    assert flink(options).parallelism == 7
    assert not flink(options).flink_submit_uber_jar


@pytest.mark.parametrize("master", ["[local]", "[auto]"])
def test_a_flink_that_beam_starts_itself_is_not_asked(master):
    options = pipeline_options(["--runner=FlinkRunner", f"--flink_master={master}"])
    assert not flink(options).flink_submit_uber_jar
    assert options.view_as(PortableOptions).environment_type is None


def test_a_dead_job_manager_is_an_error_within_seconds():
    started = time.monotonic()
    with pytest.raises(
        ConfigError, match=r"--flink_master http://127.0.0.1:9: no Flink answers there \(Connection refused\); start"
    ):
        pipeline_options(["--runner=FlinkRunner", "--flink_master=127.0.0.1:9"])
    assert time.monotonic() - started < 10


def test_what_is_no_flink_is_named_so(rest, words):
    rest.version = None
    with pytest.raises(ConfigError, match="what answers is no Flink"):
        pipeline_options(words)


def test_a_server_that_never_answers_is_given_up(listening, monkeypatch):
    monkeypatch.setattr("pipelines.engine.rest.ask.__kwdefaults__", {"method": "GET", "seconds": 0.2})
    with pytest.raises(ConfigError, match=r"no Flink answers there \(timed out\)"):
        pipeline_options(["--runner=FlinkRunner", f"--flink_master={listening}"])


@pytest.mark.parametrize("master", ["somewhere", "http://", "host:port"])
def test_a_master_that_is_no_address_is_refused(master):
    with pytest.raises(ConfigError, match=f"--flink_master {master.rstrip('/')}: this is no address; give HOST:PORT"):
        pipeline_options(["--runner=FlinkRunner", f"--flink_master={master}"])


@pytest.mark.parametrize(
    ("name", "files", "minor"),
    [
        ("a.jar", {library("1.19"): b"version=2.62.0"}, "1.19"),
        ("a.jar", {library("2.1", suffix="-job-server"): b"", ".flink-runtime.version.properties": RUNTIME}, "2.1"),
        ("a.jar", {".flink-runtime.version.properties": RUNTIME}, "1.19"),
        ("beam-runners-flink-1.20-job-server-2.77.0.jar", {"a.class": b""}, "1.20"),
        ("a.jar", {"META-INF/maven/org.apache.beam/beam-runners-flink/pom.properties": b""}, None),
    ],
)
def test_a_jar_says_for_which_flink_it_was_made(tmp_path, name, files, minor):
    assert flink_of_jar(str(write_jar(tmp_path / name, files))) == minor


def test_a_jar_elsewhere_says_it_by_its_name():
    assert flink_of_jar("https://example.org/beam-runners-flink-2.0-job-server-2.77.0.jar") == "2.0"
    assert flink_of_jar("gs://bucket/runner.jar") is None


def test_a_jar_for_another_flink_is_refused(rest, words, tmp_path):
    jar = write_jar(tmp_path / "server.jar", {library("1.19"): b""})
    with pytest.raises(ConfigError) as caught:
        pipeline_options([*words, f"--flink_job_server_jar={jar}"])
    assert f"{jar} is made for Flink 1.19, but {rest.url} runs Flink 1.20.5: minor versions must be equal" in str(caught.value)
    assert "org.apache.beam:beam-runners-flink-1.20-job-server:" in str(caught.value)
    rest.version = "1.19.3"
    assert flink(pipeline_options([*words, f"--flink_job_server_jar={jar}"])).flink_version == "1.19"


def test_a_version_that_was_asked_for_and_is_another_is_refused(rest, words):
    with pytest.raises(
        ConfigError, match=r"--flink_version 2.2 was asked for, but .* runs Flink 1.20.5.*Use --flink_version=1.20"
    ):
        pipeline_options([*words, "--flink_version=2.2"])
    assert flink(pipeline_options([*words, "--flink_version=1.20"])).flink_version == "1.20"


def test_a_flink_for_which_there_is_no_job_server_is_refused_unless_a_jar_is_given(rest, words, tmp_path):
    rest.version = "1.17.2"
    with pytest.raises(ConfigError, match=r"runs Flink 1.17.2, for which Beam .* has no job server \(only for 1.19, "):
        pipeline_options(words)
    jar = write_jar(tmp_path / "own.jar", {library("1.17"): b""})
    pipeline_options([*words, f"--flink_job_server_jar={jar}"])


@pytest.mark.parametrize(("data", "message"), [(None, "there is no such file"), (b"no zip", "this is no jar")])
def test_a_jar_that_is_none_is_refused(words, tmp_path, data, message):
    jar = tmp_path / "server.jar"
    if data is not None:
        jar.write_bytes(data)
    with pytest.raises(ConfigError, match=f"{jar}: {message}"):
        pipeline_options([*words, f"--flink_job_server_jar={jar}"])


def test_slots_that_are_missing_are_a_word(rest, words, capfd):
    rest.free = 0
    assert flink(pipeline_options(words)).parallelism == 1
    assert f"all 4 slots of the Flink at {rest.url} are taken: the job waits" in capfd.readouterr().err
    rest.total = 0
    assert flink(pipeline_options(words)).parallelism == -1
    assert "has no task manager yet: the job waits" in capfd.readouterr().err
