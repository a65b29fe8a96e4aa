"""What a service or a notebook may ask of another thread than the main one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from pipelines.engine import make_pipeline, pipeline_options
from pipelines.label import plan_run, run_label
from storage.errors import ConfigError
from tests.pipelines.support import colour_teacher, config_of, experiment, folder_source, write_folder


def in_a_thread(action):
    """What an action gives or raises in another thread than the main one."""
    with ThreadPoolExecutor(1, thread_name_prefix="service") as pool:
        return pool.submit(action).result(timeout=60)


@pytest.mark.parametrize(("arguments", "workers"), [([], 2), (["--direct_running_mode=multi_processing"], 1)])
def test_another_thread_could_not_be_told_of_a_death_and_starts_no_workers(arguments, workers):
    options = pipeline_options(arguments)
    with pytest.raises(ConfigError, match=r"asked for in thread 'service_0': .*main thread.*generation\.workers: 1"):
        in_a_thread(lambda: make_pipeline(options, workers=workers))


def test_another_thread_labels_in_this_process(tmp_path):
    data = experiment(
        cache=tmp_path / "cache",
        source=folder_source(write_folder(tmp_path / "pictures", per_class=2)),
        teacher=colour_teacher(),
    )
    two = config_of({**data, "generation": {**data["generation"], "workers": 2}})
    with pytest.raises(ConfigError, match="thread 'service_0'"):
        in_a_thread(lambda: run_label(plan_run(two, progress=False), progress=False))
    # Nothing was begun that others would see as a run.
    assert not [path for path in (tmp_path / "cache" / "runs").rglob("*") if path.is_file()]
    assert in_a_thread(lambda: run_label(plan_run(config_of(data), progress=False), progress=False)).num_computed_rows == 12
