"""What a run writes down before it starts, what is made of it when it ends, and runs beside each other."""

from __future__ import annotations

import pytest

from pipelines.engine import pipeline_options
from pipelines.label import plan_run, plan_runs, run_label, run_labels
from pipelines.label_run import RunUnderWayError, RunWriter, raise_reported, reported_end
from pipelines.work_units import work_units
from storage.errors import CacheError, DecantError, SourceError
from storage.label_runs.folder import RunFolder, RunTarget, known_runs, new_run_name
from storage.upkeep.leases import held_runs, leave_hold
from tests.pipelines.support import colour_teacher, config_of, experiment, folder_source, write_folder
from tests.storage.caches import make_labeller
from tests.storage.label_runs.made import start_run


@pytest.fixture
def config(tmp_path):
    pictures = write_folder(tmp_path / "pictures", per_class=4)
    return config_of(
        experiment(cache=tmp_path / "cache", source=folder_source(pictures, unit_size=4), teacher=colour_teacher(), views=4)
    )


def detached_run(run, *, num_tasks=None, requests=None):
    """A run of a plan's tasks that somewhere else goes on; returns its folder."""
    writer = RunWriter(run.cache, name=new_run_name())
    writer.write_tasks(list(work_units([run.plan.tasks], units=run.units))[:num_tasks])
    request = run.cache.add_request(run.plan.request)
    writer.start(
        experiment="elsewhere",
        targets=[RunTarget(name="elsewhere", request=request, label_set=run.plan.label_set)],
        options=pipeline_options([]),
        pipelines=[],
        workers=1,
        of_text=False,
        detached=True,
        command=None,
    )
    leave_hold(run.cache, run=writer.folder.name, requests=requests or [request])
    return writer.folder


def test_a_run_says_what_it_does_before_it_does_it(config, monkeypatch):
    run = plan_run(config, progress=False)
    seen = []

    def look(pipeline, **_):
        seen.extend(known_runs(run.cache.store))
        raise ZeroDivisionError("stopped here")

    monkeypatch.setattr("pipelines.label.run_pipeline", look)
    with pytest.raises(DecantError, match="stopped here"):
        run_labels([run], progress=False, command="decant label x.yaml")
    ((folder, info),) = seen
    assert (info.name, info.runner, info.local, info.detached, info.workers) == ("tiny", "FnApiRunner", True, False, 1)
    assert (info.num_units, info.num_parts, info.num_rows, info.unit) == (6, 6, 48, "row")
    assert info.targets == (RunTarget(name="tiny", request=run.plan.request.fingerprint(), label_set=run.plan.label_set),)
    assert info.command == "decant label x.yaml"
    assert folder.parts(info).column("part").to_pylist() == [task.part.name for task in run.plan.tasks]
    # The end of the command is said as well, for who watches.
    (report,) = run.cache.store.names(f"{folder.path}/errors")
    assert b"stopped here" in run.cache.store.read(report)


def test_several_targets_are_one_run(tmp_path, config):
    data = config.model_dump(mode="json", exclude={"target"}, exclude_none=True)
    data["targets"] = {"wide": {"k": 3}, "narrow": {"k": 1, "codec": {"kind": "exact"}}}
    runs = plan_runs(config_of(data), progress=False)
    run_labels(runs, progress=False)
    ((_, info),) = known_runs(runs[0].cache.store)
    assert (info.name, [target.name for target in info.targets]) == ("tiny", ["tiny.wide", "tiny.narrow"])
    assert info.num_parts == sum(len(run.plan.tasks) for run in runs) == 12
    assert [target.label_set for target in info.targets] == [run.plan.label_set for run in runs]


def test_what_a_detached_run_computes_is_not_computed_again_unless_somebody_insists(config):
    run = plan_run(config, progress=False)
    folder = detached_run(run, num_tasks=4)
    with pytest.raises(RunUnderWayError) as caught:
        run_label(run, progress=False)
    message = str(caught.value)
    assert message.startswith(f"run {folder.name} (FnApiRunner, started ")
    assert "no worker was heard of yet) computes 4 of the 6 parts that are missing; 0 of its 4 are there" in message
    assert f"decant cache watch {run.cache.store.url} {folder.name}" in message
    assert run.cache.store.names("label_sets") == []
    report = run_label(run, progress=False, anyway=True)
    assert report.num_computed_rows == 48
    # Its parts are there, so it has ended: gc need not wait a day.
    assert held_runs(run.cache.store, now=run.cache.store.now()) == frozenset()


def test_runs_that_compute_something_else_or_have_ended_are_in_nobodys_way(config, tmp_path):
    run = plan_run(config, progress=False)
    other = make_labeller(tmp_path / "other", url=run.cache.store.url)
    start_run(other)
    folder = detached_run(run)
    folder.report("setup-1", SourceError("no weights"), fatal=True)
    assert run_label(run, progress=False).num_computed_rows == 48


def test_a_run_whose_hold_is_gone_is_in_nobodys_way(config):
    run = plan_run(config, progress=False)
    folder = detached_run(run)
    run.cache.store.remove(f"runs/holds/{folder.name}.json")
    assert run_label(run, progress=False).num_computed_rows == 48


def test_reports_of_what_an_engine_made_in_the_end_are_no_errors(tmp_path):
    run = start_run(make_labeller(tmp_path))
    run.folder.report("setup-1", CacheError("the store was away"), fatal=True)
    run.folder.report(run.parts[2].name, SourceError("a.tar is gone"), fatal=False)
    with pytest.raises(DecantError, match="^the store was away$"):
        raise_reported(run.folder, info=run.info, cause=None)
    for number in (0, 1, 3, 4, 5):
        run.commit(number)
    with pytest.raises(SourceError, match=r"^1 units could not be labelled; all others are committed:\na\.tar is gone$"):
        raise_reported(run.folder, info=run.info, cause=None)
    run.commit(2)
    raise_reported(run.folder, info=run.info, cause=None)
    with pytest.raises(DecantError, match="^the store was away$"):
        raise_reported(run.folder, info=run.info, cause=RuntimeError("the pipeline fell"))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyboardInterrupt(), b"the run was interrupted"),
        (DecantError("a worker process died"), b"a worker process died"),
        (SourceError("1 units could not be labelled:\na.tar is gone"), None),
    ],
)
def test_the_end_of_a_command_is_said_unless_workers_said_it(tmp_path, error, said):
    run = start_run(make_labeller(tmp_path))
    run.folder.report(run.parts[0].name, SourceError("a.tar is gone"), fatal=False)
    with pytest.raises(type(error)), reported_end(run.folder):
        raise error
    written = [name for name in run.folder.store.names(f"{run.folder.path}/errors") if "setup-" in name]
    assert [said in run.folder.store.read(name) for name in written] == ([] if said is None else [True])


def test_a_store_that_is_gone_does_not_hide_the_error(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise CacheError("away")

    run = RunFolder(store=make_labeller(tmp_path).cache.store, name=new_run_name())
    monkeypatch.setattr(type(run.store), "names", fail)
    with pytest.raises(ZeroDivisionError), reported_end(run):
        raise ZeroDivisionError
