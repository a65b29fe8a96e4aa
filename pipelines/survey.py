"""What a config says, checked against the world before anything runs: the requests it makes, and what its source holds."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass

from tqdm import tqdm

from pipelines.request import check_classes, label_set_names, resolve_requests
from pipelines.teacher_memo import TeacherMemo, facts_of
from pipelines.transforms import shared_teacher
from storage.cache import Cache
from storage.config import ExperimentConfig, SourceConfig, TeacherConfig
from storage.errors import CacheError, ConfigError, SourceError
from storage.hashing import fingerprint
from storage.samples import MAX_UNIT_SAMPLES
from storage.sources import IndexedUnit, SourceMemo, index_source, open_source
from storage.sources.base import Source
from storage.specs import RequestSpec

_INDEX_THREADS = 4


@dataclass(frozen=True, kw_only=True)
class Survey:
    """A config of one target, checked against the world: the request it makes and what its source holds.

    Attributes:
        config: its name is that of the label set.
    """

    config: ExperimentConfig
    cache: Cache
    source: Source
    source_config: SourceConfig
    teacher_config: TeacherConfig
    request: RequestSpec
    units: tuple[IndexedUnit, ...]
    teacher_loaded: bool


def config_of_each_target(config: ExperimentConfig) -> dict[str, ExperimentConfig]:
    """Return, by the names of targets, a config of each one alone; its name is that of the target's label set."""
    names = label_set_names(config)
    return {
        name: config.model_copy(update={"name": names[name], "target": target, "targets": None})
        for name, target in config.named_targets.items()
    }


def survey_run(config: ExperimentConfig, *, progress: bool, writes: bool = False) -> Survey:
    """Check a config of one target against the world. Loads the teacher only if nobody did before.

    Args:
        writes: see `survey_targets`.

    Raises:
        DecantError: anything that would stop the run, found before it starts.
    """
    surveys = survey_targets(config, progress=progress, writes=writes)
    if len(surveys) > 1:
        raise ConfigError(f"{config.name} has several targets ({', '.join(surveys)}), where one was asked for")
    return next(iter(surveys.values()))


def survey_targets(config: ExperimentConfig, *, progress: bool, writes: bool = False) -> dict[str, Survey]:
    """Check a config against the world, and return what each of its targets asks for, by their names.

    Args:
        writes: refuse a cache that cannot be written, before anything is read; else one that many may only read serves, and what
            would be remembered there is found out again the next time.

    Raises:
        DecantError: anything that would stop the run, found before it starts.
    """
    missing = [name for name in ("cache", "source", "teacher") if getattr(config, name) is None]
    if missing:
        raise ConfigError("\n".join(f"{name}: is needed to label" for name in missing))
    assert config.cache is not None
    assert config.source is not None
    assert config.teacher is not None
    cache = Cache.at(config.cache)
    if writes and (warning := cache.store.check_writable()) is not None:
        sys.stderr.write(f"decant: warning: {warning}\n")
    source = open_source(config.source)
    memo = TeacherMemo(cache)
    facts = memo.find(config.teacher)
    loaded = facts is None
    if facts is None:
        facts = facts_of(shared_teacher(config.teacher))
        with contextlib.nullcontext() if writes else contextlib.suppress(CacheError):
            memo.remember(config.teacher, facts=facts)
    requests = resolve_requests(config, facts=facts)
    source_memo = SourceMemo(
        f"{cache.store.url}/sources/{fingerprint(config.source.model_dump(mode='json'))[:32]}.parquet", must_save=writes
    )
    with tqdm(unit="unit", desc="index", file=sys.stderr, disable=not (progress and sys.stderr.isatty())) as bar:
        index = index_source(
            source,
            memo=source_memo,
            num_threads=_INDEX_THREADS,
            on_progress=lambda done, total: _advance(bar, done=done, total=total),
        )
    check_classes(facts, source_classes=source.classes)
    _check_units(index.units)
    configs = config_of_each_target(config)
    return {
        name: Survey(
            config=configs[name],
            cache=cache,
            source=source,
            source_config=config.source,
            teacher_config=config.teacher,
            request=request,
            units=index.units,
            teacher_loaded=loaded,
        )
        for name, request in requests.items()
    }


def _check_units(units: tuple[IndexedUnit, ...]) -> None:
    """Refuse units of more samples than a part holds.

    Raises:
        SourceError: the largest such unit.
    """
    largest = max(units, key=lambda unit: unit.num_samples, default=None)
    if largest is not None and largest.num_samples > MAX_UNIT_SAMPLES:
        raise SourceError(
            f"unit {largest.unit.name!r} holds {largest.num_samples:,} samples, a part at most {MAX_UNIT_SAMPLES:,}: split the "
            "file, or give it without compression, so that it is cut into units (source.unit_size)"
        )


def _advance(bar: tqdm[None], *, done: int, total: int) -> None:
    bar.total = total
    bar.update(done - bar.n)
