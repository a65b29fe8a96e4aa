"""Whether cache, source and teacher can be reached from everywhere, how fast, and how far clocks are apart."""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.doctor.clocks import Offset, offset_to_store
from pipelines.doctor.findings import HERE, Finding, Heard
from pipelines.doctor.report import Reach, StoreReach

SLOW_READ_SECONDS, HOPELESS_READ_SECONDS = 0.5, 5.0
"""A unit needs a dozen small requests beside its data: beyond these they cost seconds, and then minutes, a unit."""

SKEW_WARNING_SECONDS, SKEW_ERROR_SECONDS = 5.0, 300.0
"""Google's tokens bear a few minutes, S3's signatures 15; beyond, every request is refused."""

_SHARED = "Use a path that every host sees: an object store (s3://, gs://), or an absolute path on a shared file system"


def judge_cache(heard: Heard) -> Iterator[Finding]:
    """Yield what is wrong with the cache as each process sees it."""
    seen = [(name, report.cache) for name, report in heard.everyone if report.cache is not None]
    for name, cache in seen:
        yield from _cache_problems(name, cache)
    works = [cache for _, cache in seen if cache.works]
    if not works:
        return
    slowest = max(cache.read_seconds or 0.0 for cache in works)
    slowest_write = max(cache.write_seconds or 0.0 for cache in works)
    if len(works) == len(seen):
        yield Finding(
            level="ok",
            topic="cache",
            message=f"{works[0].url}: read and written from everywhere; at most {milliseconds(slowest)} a read, "
            f"{milliseconds(slowest_write)} a write",
        )


def _cache_problems(name: str, cache: StoreReach) -> Iterator[Finding]:
    def finding(message: str, remedy: str, *, error: bool = True) -> Finding:
        return Finding(level="error" if error else "warning", topic="cache", message=message, remedy=remedy, places=(name,))

    if cache.elsewhere:
        yield finding(f"{cache.url} is another place there: what was written to it here cannot be found", _SHARED)
    if cache.read_problem is not None:
        yield finding(
            f"{cache.url} cannot be read: {cache.read_problem}",
            "Check endpoint, credentials and network of that host: a worker has the environment of its pool, not the submitter's",
        )
    if cache.write_problem is not None:
        yield finding(
            f"{cache.url} can be read but not written: {cache.write_problem}",
            "Parts are written by workers: give them the right to write and to remove, and space",
        )
    if cache.creates_at_once is False:
        yield finding(
            f"{cache.url} cannot create a file only if there is none",
            "Every commit waits a second (docs/object_stores.md): use a store that honours If-None-Match, a disk with hard links",
            error=False,
        )
    if cache.read_seconds is not None and cache.read_seconds > SLOW_READ_SECONDS:
        yield finding(
            f"{cache.url} takes {cache.read_seconds:.1f} s to read a few bytes",
            "Each unit makes a dozen such requests: put workers and store into one region, or raise source.unit_size",
            error=cache.read_seconds > HOPELESS_READ_SECONDS,
        )


def judge_source(heard: Heard) -> Iterator[Finding]:
    """Yield what a process cannot read of the source."""
    yield from _judge(
        heard,
        topic="source",
        remedy=f"{_SHARED}, and give every host its credentials",
        ok="first samples of {num} of its units are the same from everywhere",
    )


def judge_teacher(heard: Heard) -> Iterator[Finding]:
    """Yield what a process lacks of the teacher."""
    yield from _judge(
        heard,
        topic="teacher",
        remedy="Put the same files and packages on every host, at the same paths, for instance by the worker's image; or name a "
        "model of the Hugging Face hub",
        ok="its local files ({num}) are the same from everywhere",
    )


def _judge(heard: Heard, *, topic: str, remedy: str, ok: str) -> Iterator[Finding]:
    seen: list[tuple[str, Reach]] = []
    for name, report in heard.everyone:
        reach = report.source if topic == "source" else report.teacher
        if reach is not None:
            seen.append((name, reach))
    for name, reach in seen:
        for problem in reach.problems:
            yield Finding(level="error", topic=topic, message=problem, remedy=remedy, places=(name,))
        for note in reach.notes:
            yield Finding(level="ok", topic=topic, message=note, places=(name,))
    if seen and not any(reach.problems for _, reach in seen):
        num = max(reach.num_read for _, reach in seen)
        if num:
            yield Finding(level="ok", topic=topic, message=ok.format(num=num))


def judge_clocks(heard: Heard) -> Iterator[Finding]:
    """Yield clocks that are apart: workers' against this machine's, and this machine's against the store's."""
    differences = [
        (heard.name(worker), "this machine's", offset) for worker, offset in zip(heard.workers, heard.offsets, strict=True)
    ]
    if heard.here.clock is not None:
        differences.append((HERE, "the store's", offset_to_store(heard.here.clock)))
    apart = [found for name, other, offset in differences for found in _skew(name, other, offset)]
    yield from apart
    if not apart and differences:
        surest = max(abs(offset.middle) + offset.doubt for _, _, offset in differences)
        yield Finding(level="ok", topic="clocks", message=f"no two are known to be apart; at most {max(surest, 0.1):.1f} s")


def _skew(name: str, other: str, offset: Offset) -> Iterator[Finding]:
    if offset.certain_seconds <= SKEW_WARNING_SECONDS:
        return
    where = "ahead of" if offset.middle > 0 else "behind"
    yield Finding(
        level="error" if offset.certain_seconds > SKEW_ERROR_SECONDS else "warning",
        topic="clocks",
        message=f"the clock is {abs(offset.middle):,.1f} s {where} {other}, give or take {offset.doubt:.1f} s",
        remedy="Let the hosts keep time (chrony, systemd-timesyncd): stores refuse requests whose time is minutes off",
        places=(name,),
    )


def milliseconds(seconds: float) -> str:
    """Return a short time as people read it."""
    return f"{seconds * 1000:,.0f} ms" if seconds >= 0.01 else f"{seconds * 1000:.2g} ms"
