"""Beam's options pass through, its traps do not."""

from __future__ import annotations

import pytest
from apache_beam.options.pipeline_options import DirectOptions, PortableOptions, StandardOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from pipelines.engine import make_pipeline, pipeline_options
from storage.errors import ConfigError


@pytest.mark.parametrize("arguments", [[], ["--runner=DirectRunner"], ["--runner", "direct"], ["--runner=SwitchingDirectRunner"]])
def test_the_local_runner_is_named_so_that_beam_downloads_nothing(arguments):
    options = pipeline_options(arguments)
    assert options.view_as(StandardOptions).runner == "FnApiRunner"
    assert isinstance(make_pipeline(options, workers=1).runner, FnApiRunner)


def test_the_users_own_options_reach_beam(listening):
    arguments = ["--runner=PortableRunner", "--job_endpoint", listening, "--environment_type=EXTERNAL"]
    arguments += ["--environment_config", listening, "--direct_num_workers=3"]
    options = pipeline_options(arguments)
    assert options.view_as(StandardOptions).runner == "PortableRunner"
    assert options.view_as(PortableOptions).job_endpoint == listening
    assert options.view_as(PortableOptions).environment_type == "EXTERNAL"
    assert options.view_as(DirectOptions).direct_num_workers == 3


def test_a_job_service_that_does_not_answer_is_refused_at_once():
    with pytest.raises(ConfigError, match=r"--job_endpoint 127.0.0.1:9: no job service answers there .*Connection refused"):
        pipeline_options(["--runner=PortableRunner", "--job_endpoint=127.0.0.1:9"])
    pipeline_options(["--runner=PortableRunner", "--job_endpoint=embed"])
    with pytest.raises(ConfigError, match="nothing says where the job service is; give --job_endpoint=HOST:PORT"):
        pipeline_options(["--runner=PortableRunner"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--no_such_option=3"], "neither decant nor Beam knows --no_such_option"),
        (["--no_such_flag", "--nor_this", "1"], "neither decant nor Beam knows --no_such_flag, --nor_this"),
        (["extra"], "'extra' is neither an option nor the value of one"),
        (["--runner=FnApiRunner", "extra"], "'extra' is neither an option nor the value of one"),
        (["--runner", "FnApiRunner", "extra"], "'extra' is neither an option nor the value of one"),
        (["-x", "3"], "'-x' is neither an option nor the value of one"),
        (["--direct_num_workers=many"], "Beam cannot read --direct_num_workers=many: .*invalid int value: 'many'"),
        (["--direct_num_workers"], "expected one argument"),
        (
            ["--flink_master=h:8081"],
            "--flink_master is of FlinkRunner, and the job would run on FnApiRunner.*give --runner=FlinkRunner",
        ),
        (
            ["--runner=FlinkRunner", "--spark_master_url", "x"],
            "--spark_master_url is of SparkRunner, and the job .* on FlinkRunner",
        ),
        (["--runner=NoSuchRunner"], "--runner NoSuchRunner: there is no such runner here"),
        (["--runner=no.such.module.Runner"], "there is no such runner here .*No module named 'no'"),
    ],
)
def test_arguments_that_nobody_knows_are_refused_before_work_starts(arguments, message, capfd):
    with pytest.raises(ConfigError, match=message):
        pipeline_options(arguments)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["DaskRunner", "dask", "apache_beam.runners.dask.dask_runner.DaskRunner"])
def test_dask_is_refused_with_the_reason_and_a_way_out(name):
    with pytest.raises(ConfigError, match="refused, it drops elements of ordinary pipelines without an error. Use FnApiRunner"):
        pipeline_options([f"--runner={name}"])
