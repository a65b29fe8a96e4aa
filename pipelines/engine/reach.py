"""What workers must reach and have, as far as it can be told before a job is built."""

from __future__ import annotations

from apache_beam.options.pipeline_options import PipelineOptions

from pipelines.engine.dataflow import check_dataflow_run
from pipelines.engine.local import require_main_thread
from pipelines.engine.names import runner_name
from pipelines.engine.pipeline import runs_elsewhere, runs_in_this_process
from pipelines.local_paths import local_paths
from storage.config import GenerationConfig, SourceConfig, TeacherConfig
from storage.errors import ConfigError

_KNOW_HINTS = {"dataflowrunner"}


def check_reach(
    options: PipelineOptions, *, cache: str, source: SourceConfig, teacher: TeacherConfig, generation: GenerationConfig
) -> None:
    """Refuse stores that only this process or machine can see where others work.

    Args:
        cache: its URL.

    Raises:
        ConfigError: a store in memory, or whatever the engine's machines cannot have; or workers of this machine that this thread
            could not watch.
    """
    if runs_in_this_process(options, workers=generation.workers):
        return
    if not runs_elsewhere(options):
        require_main_thread()
    urls = [cache, *([source.path] if isinstance(source.path, str) else source.path)]
    for url in urls:
        if url.startswith("memory://"):
            raise ConfigError(
                f"{url} lies in the memory of this process, where its workers cannot see it; set generation.workers: 1 and the "
                "local runner, or use another store"
            )
    if runner_name(options) == "dataflowrunner":
        paths = {"cache": cache, **local_paths(teacher=teacher, source=source)}
        check_dataflow_run(options, paths=paths, teacher=teacher, accelerator=generation.accelerator)


def resource_hints(options: PipelineOptions, *, generation: GenerationConfig) -> dict[str, str]:
    """Return what a worker needs of its machine, for engines that know such hints; on others each hint costs a process more."""
    if runner_name(options) not in _KNOW_HINTS:
        return {}
    hints = {"min_ram": generation.min_ram, "accelerator": generation.accelerator}
    return {name: value for name, value in hints.items() if value is not None}
