"""How workers are started is named, and their pool is there, before an engine is given work."""

from __future__ import annotations

import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from pipelines.engine.addresses import Address, parse_address
from pipelines.engine.environment import check_environment, watched_pool
from storage.errors import ConfigError

HERE = Address(host="127.0.0.1", port=8081)
THERE = Address(host="flink.example.org", port=8081)


def check(*words, engine=HERE):
    check_environment(PipelineOptions(list(words)), engine=engine)


def external(config):
    return ("--environment_type=EXTERNAL", f"--environment_config={config}")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("host:8081", Address(host="host", port=8081)),
        ("http://host:8081/path", Address(host="host", port=8081)),
        ("[::1]:50000", Address(host="::1", port=50000)),
        ("spark://10.0.0.1:7077", Address(host="10.0.0.1", port=7077)),
        ("host", None),
        ("host:port", None),
        ("", None),
    ],
)
def test_addresses_are_read(text, address):
    assert parse_address(text) == address


@pytest.mark.parametrize(
    ("host", "loopback"), [("localhost", True), ("127.0.0.2", True), ("::1", True), ("10.0.0.1", False), ("a.b", False)]
)
def test_addresses_that_mean_another_machine_everywhere(host, loopback):
    assert Address(host=host, port=1).is_loopback == loopback


def test_a_type_must_be_named_since_beams_default_has_no_decant():
    with pytest.raises(
        ConfigError, match="--environment_type is not given; use --environment_type=EXTERNAL --environment_config"
    ):
        check()
    check("--sdk_container_image=registry/decant:1")
    check("--environment_type=DOCKER", "--environment_config=registry/decant:1")


def test_workers_in_this_process_are_out_of_reach_for_others():
    check("--environment_type=LOOPBACK")
    with pytest.raises(ConfigError, match="LOOPBACK runs workers in this process, where the cluster at flink.example.org:8081"):
        check("--environment_type=LOOPBACK", engine=THERE)


@pytest.mark.parametrize("config", ["", "pools", '{"params": {}}', "{no json"])
def test_a_pool_without_an_address_is_refused(config):
    with pytest.raises(ConfigError, match=r"HOST:PORT"):
        check(*external(config))


def test_a_pool_that_answers_is_fine_however_its_address_is_given(listening):
    check(*external(listening))
    check(*external(f'{{"url": "{listening}"}}'))
    check("--environment_type=EXTERNAL", f"--environment_options=external_service_address={listening}")
    assert str(watched_pool(PipelineOptions(list(external(listening))), engine=HERE)) == listening


def test_a_pool_that_does_not_answer_is_refused_where_that_can_be_told_from_here():
    with pytest.raises(ConfigError, match=r"127.0.0.1:9: no worker pool answers there \(Connection refused\); start one"):
        check(*external("127.0.0.1:9"))
    # Each host's own pool: this machine's loopback says nothing about theirs.
    check(*external("localhost:9"), engine=THERE)
    assert watched_pool(PipelineOptions(list(external("localhost:9"))), engine=THERE) is None


def test_a_pool_of_a_name_that_only_a_cluster_knows_is_left_to_the_cluster():
    options = PipelineOptions(list(external("worker-pool.invalid:50000")))
    check_environment(options, engine=HERE)
    assert watched_pool(options, engine=HERE) is None
    # A name that only the cluster's network knows.
    check(*external("pool.invalid:50000"))


def test_a_type_that_beam_knows_by_another_name_is_left_to_it():
    check("--environment_type=beam:env:custom:v1")
