"""What Dataflow would be sent: the portable pipeline and, where Google's packages are installed, the whole job request."""

from __future__ import annotations

import apache_beam as beam
import pytest
from apache_beam.internal import pickler
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability import common_urns
from apache_beam.portability.api import beam_runner_api_pb2 as protos
from apache_beam.transforms.environments import DockerEnvironment

from pipelines.engine import make_pipeline, resource_hints, run_pipeline
from pipelines.task_files import TaskFiles
from pipelines.transforms import LabelTasks, LabelUnits, NameTaskFiles
from storage.cache import Cache
from storage.config import GenerationConfig
from storage.specs import CompactCodec, EvaluationView, Normalization, RequestSpec, SoftLabelsSpec, TeacherSpec
from tests.pipelines.support import config_of, experiment, folder_source

IMAGE = "europe-docker.pkg.dev/a-project/decant:1"
WORDS = [
    "--runner=DataflowRunner",
    "--project=a-project",
    "--region=europe-west4",
    "--temp_location=gs://bucket/temp",
    "--staging_location=gs://bucket/staging",
    f"--sdk_container_image={IMAGE}",
    # Beam's own switches for a job that is made and not sent.
    "--no_auth",
    "--dry_run=True",
    "--sdk_location=container",
]
GPU = "type:nvidia-l4;count:1;install-nvidia-driver"
GENERATION = GenerationConfig(accelerator=GPU, min_ram="16GB")


@pytest.fixture
def made(tmp_path):
    """The pipeline of a labelling, and what it was made of."""
    source = folder_source(tmp_path / "pictures")
    config = config_of(
        experiment(cache=tmp_path / "cache", source=source, teacher={"kind": "timm", "name": "vit", "device": "cuda"})
    )
    teacher = TeacherSpec(
        kind="timm",
        architecture="vit",
        weights_sha256="0" * 64,
        precision="fp32",
        normalization=Normalization(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        num_classes=10,
    )
    view = EvaluationView(size=(16, 16), resize_size=(16, 16))
    request = RequestSpec(teacher=teacher, view=view, target=SoftLabelsSpec(num_classes=10, k=3, codec=CompactCodec()))
    cache = Cache.at(str(tmp_path / "cache"))
    label_units = LabelUnits(
        cache=cache,
        run="runs/r",
        requests={request.fingerprint(): request},
        teacher=config.teacher,
        source=config.source,
        generation=GENERATION,
    )
    options = PipelineOptions(WORDS)
    pipeline = make_pipeline(options, workers=1, name="tiny")
    hints = resource_hints(options, generation=GENERATION)
    files = TaskFiles(folder="runs/r", num_files=1000)
    _ = pipeline | NameTaskFiles(files) | LabelTasks(store=cache.store, label_units=label_units, hints=hints)
    return pipeline


def test_the_portable_pipeline_says_what_labelling_needs_and_nothing_of_its_size(made):
    proto = made.to_runner_api(default_environment=DockerEnvironment.from_container_image(IMAGE))
    assert proto.ByteSize() < 50_000
    components = proto.components
    (label,) = [one for one in components.transforms.values() if one.unique_name.endswith("/LabelUnits")]
    (label,) = [components.transforms[name] for name in label.subtransforms] or [label]
    assert label.spec.urn == common_urns.primitives.PAR_DO.urn
    environment = components.environments[label.environment_id]
    assert protos.DockerPayload.FromString(environment.payload).container_image == IMAGE
    assert dict(environment.resource_hints) == {
        common_urns.resource_hints.ACCELERATOR.urn: GPU.encode(),
        common_urns.resource_hints.MIN_RAM_BYTES.urn: b"16000000000",
    }
    others = [components.environments[one.environment_id] for one in components.transforms.values() if one.environment_id]
    assert any(not one.resource_hints for one in others)
    payload = protos.ParDoPayload.FromString(label.spec.payload)
    function, *_ = pickler.loads(payload.do_fn.payload)
    assert isinstance(function, LabelUnits)


def test_the_job_request_is_made(made):
    """By Beam itself, up to the moment at which it would be sent."""
    dataflow = pytest.importorskip("google.cloud.dataflow", reason="apache-beam[gcp] is not installed")
    from apache_beam.runners.dataflow.internal import apiclient

    job = run_pipeline(made).job
    assert job.proto.type == dataflow.JobType.JOB_TYPE_BATCH
    assert job.proto.name.startswith("decant-tiny-")
    staged = "gs://bucket/staging/pipeline.pb"
    environment = apiclient.Environment(
        [], job.options, apiclient._FNAPI_ENVIRONMENT_MAJOR_VERSION, staged, proto_pipeline=job.proto_pipeline
    ).proto
    assert environment.temp_storage_prefix.startswith("storage.googleapis.com/bucket/temp/decant-tiny-")
    (pool,) = environment.worker_pools
    assert {image.container_image for image in pool.sdk_harness_container_images} == {IMAGE}
    assert "no_use_multiple_sdk_containers" in environment.experiments


def test_beam_finds_nothing_wrong_with_the_options():
    assert beam.Pipeline(options=PipelineOptions(WORDS)).runner is not None
    with pytest.raises(ValueError, match="Project"):
        beam.Pipeline(options=PipelineOptions([*WORDS, "--project=A Project"]))
