"""While a student trains, gc leaves its label set; a cache that cannot be written is read all the same."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from storage.cache import Cache
from storage.config import ExperimentConfig
from storage.errors import CacheError, CorruptError
from storage.filesystem import Store
from storage.label_set import LabelSet
from storage.upkeep.garbage import collect_garbage
from storage.upkeep.reading import hold_label_set
from student_training import experiment
from student_training.experiment import run_experiment
from tests.storage.caches import make_labeller, make_request
from tests.storage.upkeep.litter import NOW, settle
from tests.student_training.support import STUDENT, source_config
from tests.student_training.test_imported_labels import folder

__all__ = ["folder"]


def config_of(folder):
    data = {
        "name": "student",
        "cache": str(folder / "cache"),
        "source": source_config(folder / "pictures"),
        "views": {"kind": "evaluation"},
        "training": {
            "output": str(folder / "run"),
            "student": STUDENT,
            "targets": {"kind": "cached", "label_set": "published"},
            "epochs": 2,
            "batch_size": 4,
            "torch_threads": 1,
            "device": "cpu",
        },
    }
    return ExperimentConfig.model_validate_json(json.dumps(data))


@pytest.fixture
def train(monkeypatch):
    """Train; do something once the rows are found and before the first step."""
    threads = torch.get_num_threads()

    def run(folder, meanwhile):
        trained = experiment.train

        def training(config, **options):
            meanwhile()
            return trained(config, **options)

        with monkeypatch.context() as patch:
            patch.setattr(experiment, "train", training)
            return run_experiment(config_of(folder), say=lambda line: None)

    yield run
    torch.set_num_threads(threads)


def take_all(folder):
    url = str(folder / "cache")
    settle(Store(url))
    return collect_garbage(url, **NOW, delete=True, untagged=True)


def test_gc_beside_training_leaves_its_label_set_and_takes_it_afterwards(folder, train):
    cache = Cache.at(str(folder / "cache"))
    found = []

    def meanwhile():
        # Nobody's any more: without a hold it would go.
        cache.store.remove("names/published.json")
        found.append(take_all(folder))

    assert train(folder, meanwhile)["steps"] == 6
    assert len(found[0]["held_requests"]) == 1
    assert found[0]["num_files"] == 0
    assert found[0]["kinds"]["label sets without a name"]["files"] == 0
    assert cache.store.names("runs") == []
    assert take_all(folder)["kinds"]["label sets without a name"]["files"] == 3
    assert cache.store.names("requests") == cache.store.names("label_sets") == []


def test_a_cache_that_cannot_be_written_is_trained_from_without_a_hold(folder, train, monkeypatch):
    def refuse(self, name, data):
        raise CacheError(f"cannot write {name}: Read-only file system")

    monkeypatch.setattr(Store, "write", refuse)
    held = []
    assert train(folder, lambda: held.append(Store(str(folder / "cache")).names("runs")))["steps"] == 6
    assert held == [[]]


def test_only_the_first_process_of_a_job_holds(folder, train, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    held = []
    train(folder, lambda: held.append(Store(str(folder / "cache")).names("runs")))
    assert held == [[]]


@pytest.fixture
def label_set(tmp_path):
    return make_labeller(tmp_path).label()


def test_a_label_set_that_was_taken_before_it_was_held_is_refused(label_set, tmp_path):
    shutil.rmtree(tmp_path / "cache" / "label_sets")
    with (
        pytest.raises(CorruptError, match="was removed or replaced while it was opened.*run decant label again"),
        hold_label_set(label_set),
    ):
        pytest.fail("nothing is there")
    assert not list((tmp_path / "cache" / "runs").rglob("*.json"))


def test_a_store_that_is_gone_at_the_end_takes_nothing_from_what_was_read(label_set, monkeypatch):
    with hold_label_set(label_set):
        (hold,) = label_set.cache.store.names("runs/holds")
        held = set(json.loads(label_set.cache.store.read(hold))["requests"])
        monkeypatch.setattr(Store, "remove", lambda self, name: (_ for _ in ()).throw(CacheError("gone")))
    assert held == {label_set.manifest.request.fingerprint()}


def test_an_error_of_the_reader_comes_through_and_the_hold_goes(label_set):
    with pytest.raises(ZeroDivisionError), hold_label_set(label_set):
        raise ZeroDivisionError
    assert label_set.cache.store.names("runs") == []
    assert LabelSet.open_id(label_set.cache, label_set=label_set.manifest.id).manifest.request == make_request()
