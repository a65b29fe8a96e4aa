"""What travels to workers is small and refers to classes by name: a worker runs its own code, which is checked."""

from __future__ import annotations

import base64
import pickletools
import zlib

from apache_beam.internal import pickler

from pipelines.transforms import LabelUnits, ReadTasks
from storage.cache import Cache
from storage.config import load_config
from tests.pipelines.support import ROOT


def names_in(data):
    """The modules and names that a pickle refers to."""
    return {text for _, text, _ in pickletools.genops(data) if isinstance(text, str)}


def test_every_config_travels_whole_and_small(tmp_path):
    num_seen = 0
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        config = load_config(path)
        if config.teacher is None or config.source is None:
            continue
        made = LabelUnits(
            cache=Cache.at(str(tmp_path / "cache")),
            run="runs/r",
            requests={},
            teacher=config.teacher,
            source=config.source,
            generation=config.generation,
        )
        data = pickler.dumps(made)
        assert len(data) < 10_000
        again = pickler.loads(data)
        assert again._teacher_config == config.teacher
        assert again._source_config == config.source
        assert again._generation == config.generation
        assert again._expected == made._expected
        num_seen += 1
    assert num_seen > 10


def test_functions_hold_no_code(tmp_path):
    cache = Cache.at(str(tmp_path / "cache"))
    config = load_config(ROOT / "configs" / "fashion_mnist.yaml")
    label_units = LabelUnits(
        cache=cache, run="runs/r", requests={}, teacher=config.teacher, source=config.source, generation=config.generation
    )
    for made in (label_units, ReadTasks(cache.store)):
        names = names_in(zlib.decompress(base64.b64decode(pickler.dumps(made, use_zlib=True))))
        assert type(made).__name__ in names
        assert not any("cloudpickle" in name for name in names)
