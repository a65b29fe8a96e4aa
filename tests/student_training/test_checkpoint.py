"""Checkpoints are whole or not there."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch

from storage.errors import CorruptError
from student_training.checkpoint import CheckpointStore
from student_training.rng import capture_generators, restore_generators, seed_generators

CPU = torch.device("cpu")


def save(store, step):
    return store.save({"step": step, "weights": torch.full((10,), float(step))}, step=step)


def test_the_newest_few_are_kept(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints", keep=2)
    assert store.load_newest() is None
    for step in (5, 10, 100):
        save(store, step)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step-00000010.json",
        "step-00000010.pt",
        "step-00000100.json",
        "step-00000100.pt",
    ]
    assert store.load_newest()["weights"].tolist() == [100.0] * 10


def test_bytes_without_a_record_do_not_count(tmp_path):
    """What a kill before the commit leaves: temporary files, or data whose record is not written yet."""
    store = CheckpointStore(tmp_path, keep=2)
    save(store, 1)
    (tmp_path / "step-00000002.pt.tmp").write_bytes(b"half")
    (tmp_path / "step-00000003.pt").write_bytes(b"whole, perhaps")
    (tmp_path / "step-00000004.json.tmp").write_text("{")
    assert store.load_newest()["step"] == 1


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "record", "version"])
def test_every_damage_is_found(tmp_path, damage, caplog):
    store = CheckpointStore(tmp_path, keep=3)
    save(store, 1)
    path = save(store, 2)
    record = path.with_suffix(".json")
    if damage == "flip":
        data = bytearray(path.read_bytes())
        data[-20] ^= 1
        path.write_bytes(data)
    elif damage == "truncate":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "delete":
        path.unlink()
    elif damage == "record":
        record.write_text('{"version": 1')
    else:
        record.write_text(json.dumps({**json.loads(record.read_text()), "version": 99}))
    assert store.load_newest()["step"] == 1
    assert "step-00000002" in caplog.text
    caplog.clear()
    assert store.load_newest()["step"] == 1
    assert caplog.text == ""


def test_nothing_is_executed_when_a_checkpoint_is_read(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("a checkpoint ran code",))

    store = CheckpointStore(tmp_path, keep=1)
    store.save({"bomb": Bomb()}, step=1)
    with pytest.raises(Exception, match="Weights only load failed"):
        store.load_newest()


def test_all_damaged_is_an_error(tmp_path):
    store = CheckpointStore(tmp_path, keep=1)
    save(store, 1).write_bytes(b"")
    with pytest.raises(CorruptError, match="Start over with --restart"):
        store.load_newest()


def test_generators_go_on_where_they_were(tmp_path):
    def draw():
        return random.random(), np.random.rand(), np.random.randn(), torch.rand(3).tolist(), random.gauss(0, 1)  # noqa: NPY002

    seed_generators(3)
    first = draw()
    store = CheckpointStore(tmp_path, keep=1)
    store.save({"generators": capture_generators(CPU)}, step=1)
    expected = draw()
    seed_generators(3)
    assert draw() == first
    restore_generators(store.load_newest()["generators"], device=CPU)
    assert draw() == expected
