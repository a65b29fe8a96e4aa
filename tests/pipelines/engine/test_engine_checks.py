"""Spark, Prism and Dataflow: what would fail later, or do something else than it says, is refused before anything is planned."""

from __future__ import annotations

import importlib.util
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from apache_beam.options.pipeline_options import DebugOptions, GoogleCloudOptions, PipelineOptions, PortableOptions

from pipelines.engine import check_reach, make_pipeline, pipeline_options, resource_hints, workers_per_machine
from pipelines.engine.dataflow import check_dataflow, prepare_dataflow
from storage.config import GenerationConfig
from storage.errors import ConfigError
from tests.pipelines.support import config_of, experiment, folder_source

IN_THE_CLOUD = ("--project=a-project", "--region=europe-west4", "--temp_location=gs://bucket/temp")
IMAGE = "--sdk_container_image=europe-docker.pkg.dev/a-project/decant:1"
GPU = "type:nvidia-l4;count:1;install-nvidia-driver"


@pytest.fixture
def spark_rest():
    """Spark's REST as far as it says its version."""

    class Handler(BaseHTTPRequestHandler):
        version = "3.5.1"

        def do_GET(self):
            data = json.dumps({"action": "SubmissionStatusResponse", "serverSparkVersion": Handler.version}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *words):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", Handler
    server.shutdown()
    server.server_close()


def test_a_spark_that_does_not_answer_is_refused():
    with pytest.raises(
        ConfigError, match=r"spark://127.0.0.1:9: no Spark answers there \(Connection refused\); start its master"
    ):
        pipeline_options(["--runner=SparkRunner", "--spark_master_url=spark://127.0.0.1:9"])
    pipeline_options(["--runner=SparkRunner", "--spark_master_url=local[2]"])


def test_a_spark_cluster_must_be_told_how_workers_start(listening):
    words = ["--runner=SparkRunner", f"--spark_master_url=spark://{listening}"]
    with pytest.raises(ConfigError, match="--environment_type is not given"):
        pipeline_options(words)
    pipeline_options([*words, "--environment_type=EXTERNAL", f"--environment_config={listening}"])


def test_spark_over_its_rest_must_be_spark_3(spark_rest, listening):
    url, handler = spark_rest
    words = [
        "--runner=SparkRunner",
        "--spark_submit_uber_jar",
        "--environment_type=EXTERNAL",
        f"--environment_config={listening}",
    ]
    with pytest.raises(ConfigError, match="--spark_rest_url is None; give http://HOST:6066"):
        pipeline_options(words)
    with pytest.raises(ConfigError, match=r"http://127.0.0.1:9: no Spark answers there"):
        pipeline_options([*words, "--spark_rest_url=http://127.0.0.1:9"])
    pipeline_options([*words, f"--spark_rest_url={url}"])
    handler.version = "4.0.0"
    with pytest.raises(ConfigError, match=r"runs Spark 4.0.0, and the job server of Beam .* is made for Spark 3"):
        pipeline_options([*words, f"--spark_rest_url={url}"])
    handler.version = None
    with pytest.raises(ConfigError, match="what answers there is no Spark"):
        pipeline_options([*words, f"--spark_rest_url={url}"])


def test_prism_is_no_download(tmp_path):
    with pytest.raises(ConfigError, match=r"would download a binary and execute it; name one with --prism_location.*go install"):
        pipeline_options(["--runner=PrismRunner"])
    binary = tmp_path / "prism"
    with pytest.raises(ConfigError, match=f"--prism_location {binary}: there is no program"):
        pipeline_options(["--runner=PrismRunner", f"--prism_location={binary}"])
    binary.write_bytes(b"")
    with pytest.raises(ConfigError, match="there is no program"):
        pipeline_options(["--runner=PrismRunner", f"--prism_location={binary}"])
    binary.chmod(0o755)
    pipeline_options(["--runner=PrismRunner", f"--prism_location={binary}"])


def test_a_prism_that_runs_already_is_used_from_this_process(listening):
    words = ["--runner=PrismRunner", f"--job_endpoint={listening}"]
    pipeline_options(words)
    with pytest.raises(ConfigError, match="no worker pool answers there"):
        pipeline_options([*words, "--environment_type=EXTERNAL", "--environment_config=127.0.0.1:9"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), r"needs --project \(.*\), --region \(.*\), --temp_location \(.*gs://BUCKET/temp\)"),
        (IN_THE_CLOUD[:2], r"needs --temp_location \("),
        ((*IN_THE_CLOUD[:2], "--temp_location=/tmp"), r"--temp_location /tmp: Dataflow reads and writes Google Cloud Storage"),
        ((*IN_THE_CLOUD, "--staging_location=s3://bucket"), r"--staging_location s3://bucket: Dataflow reads"),
        (IN_THE_CLOUD, r"its workers have no decant; give --sdk_container_image=IMAGE"),
    ],
)
def test_options_that_dataflow_lacks_are_named(words, message):
    with pytest.raises(ConfigError, match=message):
        check_dataflow(PipelineOptions(["--runner=DataflowRunner", *words]))


def test_dataflow_needs_packages_that_are_googles():
    words = ["--runner=DataflowRunner", *IN_THE_CLOUD, IMAGE]
    if importlib.util.find_spec("google.cloud") is not None and importlib.util.find_spec("google.cloud.dataflow") is not None:
        pipeline_options(words)
        return
    with pytest.raises(ConfigError, match=r"needs more packages; pip install 'apache-beam\[gcp\]'"):
        pipeline_options(words)


def reach(tmp_path, *words, cache="gs://bucket/cache", source="gs://bucket/pictures", generation=None, **teacher):
    config = config_of(experiment(cache=cache, source=folder_source(source), teacher={"kind": "timm", "name": "vit", **teacher}))
    options = PipelineOptions(["--runner=DataflowRunner", *IN_THE_CLOUD, *words])
    generation = GenerationConfig(**(generation or {}))
    check_reach(options, cache=cache, source=config.source, teacher=config.teacher, generation=generation)
    return resource_hints(options, generation=generation)


def test_dataflow_gets_nothing_from_this_machine(tmp_path):
    assert reach(tmp_path) == {}
    with pytest.raises(
        ConfigError, match="cache runs/cache is a path of this machine, which Dataflow's workers do not see; use a gs:"
    ):
        reach(tmp_path, cache="runs/cache")
    with pytest.raises(ConfigError, match=r"source.path .*pictures is a path of this machine"):
        reach(tmp_path, source=str(tmp_path / "pictures"))
    with pytest.raises(ConfigError, match=r"teacher.checkpoint .*t.pt is a path of this machine.*put it into an image"):
        reach(tmp_path, checkpoint=str(tmp_path / "t.pt"))
    reach(tmp_path, IMAGE, checkpoint=str(tmp_path / "t.pt"))


def test_a_gpu_that_is_asked_for_must_be_ordered(tmp_path):
    with pytest.raises(ConfigError, match=r"teacher.device is cuda and the job asks for no GPU; give generation.accelerator"):
        reach(tmp_path, device="cuda")
    hints = reach(tmp_path, device="cuda", generation={"accelerator": GPU, "min_ram": "16GB"})
    assert hints == {"accelerator": GPU, "min_ram": "16GB"}
    reach(tmp_path, "--dataflow_service_options=worker_accelerator=type:nvidia-l4;count:1", device="cuda")


def test_hints_are_kept_from_engines_that_would_only_start_a_process_more():
    generation = GenerationConfig(accelerator=GPU, min_ram="16GB")
    assert resource_hints(PipelineOptions(["--runner=FnApiRunner"]), generation=generation) == {}
    assert resource_hints(PipelineOptions(["--runner=FlinkRunner"]), generation=generation) == {}


def test_one_process_a_machine_is_dataflows_too_unless_more_are_wanted():
    for words, workers, expected in (
        ([], 1, ["no_use_multiple_sdk_containers"]),
        ([], 4, []),
        (["--experiments=use_multiple_sdk_containers"], 1, ["use_multiple_sdk_containers"]),
    ):
        options = PipelineOptions(words)
        prepare_dataflow(options, workers=workers)
        assert [*(options.view_as(DebugOptions).experiments or [])] == expected


def test_workers_are_processes_of_each_machine_and_a_job_has_a_name_of_its_own(listening):
    options = pipeline_options(
        [
            "--runner=PortableRunner",
            f"--job_endpoint={listening}",
            "--environment_type=EXTERNAL",
            f"--environment_config={listening}",
        ]
    )
    made = [make_pipeline(options, workers=3, name="Fashion MNIST_2!")._options for _ in range(2)]
    assert {one.view_as(PortableOptions).sdk_worker_parallelism for one in made} == {3}
    names = {one.view_as(GoogleCloudOptions).job_name for one in made}
    assert len(names) == 2
    assert all(re.fullmatch(r"decant-fashion-mnist-2-[0-9a-f]{8}", name) for name in names)
    assert options.view_as(GoogleCloudOptions).job_name is None


def test_what_a_user_says_of_workers_and_names_goes_before(listening):
    words = ["--runner=PortableRunner", f"--job_endpoint={listening}", "--environment_type=EXTERNAL"]
    words += [f"--environment_config={listening}", "--sdk_worker_parallelism=2", "--job_name=mine"]
    options = pipeline_options(words)
    assert workers_per_machine(options, workers=3) == 2
    assert workers_per_machine(PipelineOptions(["--runner=FnApiRunner", "--sdk_worker_parallelism=2"]), workers=3) == 3
    made = make_pipeline(options, workers=3)._options
    assert made.view_as(PortableOptions).sdk_worker_parallelism == "2"
    assert made.view_as(GoogleCloudOptions).job_name == "mine"
