"""Whether a process reads from the source what the submitter read there."""

from __future__ import annotations

import json
from collections.abc import Sequence

from pydantic import TypeAdapter, ValidationError

from pipelines.doctor.questions import AskedSample, AskedSource
from pipelines.doctor.report import Reach
from storage.config import SourceConfig
from storage.errors import DecantError
from storage.hashing import checksum
from storage.sources import open_source
from storage.sources.base import Sample, Source, SourceUnit

_CONFIG: TypeAdapter[SourceConfig] = TypeAdapter(SourceConfig)


def ask_about_source(config: SourceConfig) -> AskedSource:
    """List a source, read the first sample of its first and of its last unit, and return what others shall read, too.

    Raises:
        SourceError: it cannot be listed or read from here.
    """
    source = open_source(config)
    units = source.units()
    chosen = [units[0], units[-1]] if len(units) > 1 else units
    return AskedSource(config=config.model_dump(mode="json"), samples=tuple(_asked(source, unit) for unit in chosen))


def _asked(source: Source, unit: SourceUnit) -> AskedSample:
    sample = _first_sample(source, unit)
    fields = {"name": unit.name, "locator": unit.locator, "stat_token": unit.stat_token}
    return AskedSample(
        unit=fields,
        key="" if sample is None else sample.key,
        checksum=None if sample is None or sample.data is None else checksum(sample.data),
    )


def _first_sample(source: Source, unit: SourceUnit) -> Sample | None:
    samples = source.read(unit)
    try:
        return next(samples, None)
    finally:
        close = getattr(samples, "close", None)
        if close is not None:
            close()


def examine_source(asked: AskedSource) -> Reach:
    """Read the samples that the submitter read, and compare."""
    try:
        source = open_source(_CONFIG.validate_json(json.dumps(asked.config)))
    except (DecantError, ValidationError) as error:
        return Reach(problems=(f"the source cannot be opened: {error}",))
    problems = _differences(source, asked.samples)
    return Reach(num_read=len(asked.samples) - len(problems), problems=tuple(problems))


def _differences(source: Source, samples: Sequence[AskedSample]) -> list[str]:
    problems = []
    for asked in samples:
        try:
            unit = SourceUnit(**asked.unit)
            found = _first_sample(source, unit)
        except (DecantError, OSError, TypeError, ValueError) as error:
            problems.append(f"unit {asked.unit.get('name')!r} cannot be read: {error}")
            continue
        if found is None:
            if asked.key:
                problems.append(f"unit {unit.name!r} is empty there, and begins with {asked.key!r} where the command was started")
        elif found.data is None and asked.checksum is not None:
            problems.append(f"sample {found.key!r} of unit {unit.name!r} cannot be read: {found.error}")
        elif found.key != asked.key or (found.data is not None and checksum(found.data) != asked.checksum):
            problems.append(
                f"unit {unit.name!r} begins with another sample than where the command was started ({found.key!r}, there "
                f"{asked.key!r}, or other bytes)"
            )
    return problems
