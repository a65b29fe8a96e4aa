"""Google's Dataflow: everything that is known to be wrong before a job is sent there."""

from __future__ import annotations

import importlib.util

from apache_beam.options.pipeline_options import DebugOptions, GoogleCloudOptions, PipelineOptions, SetupOptions, WorkerOptions

from storage.config import TeacherConfig
from storage.errors import ConfigError

_REQUIRED = {
    "project": "the Google Cloud project",
    "region": "where the job runs, as europe-west4",
    "temp_location": "a folder for Dataflow's own files, gs://BUCKET/temp",
}
_ONE_PROCESS = "no_use_multiple_sdk_containers"


def check_dataflow(options: PipelineOptions) -> list[str]:
    """Refuse options that lack what Dataflow needs, all at once.

    Raises:
        ConfigError: see above, or Beam's own packages for it are not installed.
    """
    cloud, setup = options.view_as(GoogleCloudOptions), options.view_as(SetupOptions)
    missing = [f"--{name} ({what})" for name, what in _REQUIRED.items() if not getattr(cloud, name)]
    if missing:
        raise ConfigError(f"--runner DataflowRunner needs {', '.join(missing)}; see docs/cluster.md")
    for name in ("temp_location", "staging_location"):
        url = getattr(cloud, name)
        if url and not url.startswith("gs://"):
            raise ConfigError(f"--{name} {url}: Dataflow reads and writes Google Cloud Storage there; give gs://BUCKET/FOLDER")
    if not options.view_as(WorkerOptions).sdk_container_image and not setup.setup_file:
        raise ConfigError(
            "--runner DataflowRunner: its workers have no decant; give --sdk_container_image=IMAGE, made from "
            "cluster/docker/Dockerfile, or --setup_file=./setup.py, which installs everything anew on each worker"
        )
    if importlib.util.find_spec("google.cloud") is None or importlib.util.find_spec("google.cloud.dataflow") is None:
        raise ConfigError("--runner DataflowRunner needs more packages; pip install 'apache-beam[gcp]'")
    return []


def check_dataflow_run(
    options: PipelineOptions, *, paths: dict[str, str], teacher: TeacherConfig, accelerator: str | None
) -> None:
    """Refuse an experiment that workers at Google cannot see, or that has no GPU there.

    Args:
        paths: local path or URL of what workers read and write, by its key in the config.
        accelerator: the resource hint of the config.

    Raises:
        ConfigError: a local path, or a GPU that is asked for and not ordered.
    """
    for key, path in paths.items():
        # An image may hold a teacher; nothing else that is local exists there.
        if "://" in path or (key.startswith("teacher.") and options.view_as(WorkerOptions).sdk_container_image):
            continue
        remedy = "put it into an image, at the same path, and give --sdk_container_image" if key.startswith("teacher.") else ""
        raise ConfigError(
            f"{key} {path} is a path of this machine, which Dataflow's workers do not see; {remedy or 'use a gs:// URL'}"
        )
    orders = [*(options.view_as(GoogleCloudOptions).dataflow_service_options or [])]
    ordered = accelerator is not None or any(order.startswith("worker_accelerator=") for order in orders)
    if teacher.device.startswith("cuda") and not ordered:
        raise ConfigError(
            f"teacher.device is {teacher.device} and the job asks for no GPU; give generation.accelerator, as "
            '"type:nvidia-l4;count:1;install-nvidia-driver", or teacher.device: cpu'
        )


def prepare_dataflow(options: PipelineOptions, *, workers: int) -> None:
    """Keep Dataflow from starting one process a core, each with a teacher of its own, where one is asked for."""
    debug = options.view_as(DebugOptions)
    if workers == 1 and not debug.lookup_experiment("use_multiple_sdk_containers"):
        debug.add_experiment(_ONE_PROCESS)
