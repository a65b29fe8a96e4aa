"""What lies beside the blocks of a cache, broken: records, manifests, tables of parts, requests, names and tags."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage.cache import Cache, NamedLabelSet
from storage.hashing import canonical_json, digest, seal, unseal
from storage.label_set import LabelSet
from storage.part_listing import PartListing
from storage.parts import PartRecord
from storage.parts_table import PARTS_SCHEMA
from storage.sources import index_source
from storage.standing import find_standing, vouched_parts
from tests.reliability.fuzz_target import Reading, Target
from tests.reliability.mutation import mutated, replaced
from tests.storage.caches import Labeller

NOT_IN_A_TABLE = (pa.ArrowException, ValueError, TypeError, AttributeError, OverflowError)
"""What Arrow raises where no table of some columns can say what was drawn."""


def forms_of(data: bytes) -> tuple[tuple[bool, bytes], ...]:
    """Return a sealed file as it is, and what its seal is of, to be sealed again when it was changed."""
    body = unseal(data)
    assert body is not None
    return (False, data), (True, body)


def mutated_form(made: tuple[bool, bytes], rng: random.Random) -> tuple[bool, bytes]:
    """Return a form of a sealed file with other bytes."""
    return made[0], mutated(made[1], rng)


def bytes_of(made: tuple[bool, bytes]) -> bytes:
    """Return the file of a form."""
    return seal(made[1]) if made[0] else made[1]


def row_of_a_table(rows: list[Any], rng: random.Random) -> list[Any]:
    """Return the rows of a table with something in one of them replaced."""
    place = rng.randrange(len(rows))
    return [*rows[:place], replaced(rows[place], rng), *rows[place + 1 :]]


def parquet_of(rows: list[Any], schema: pa.Schema) -> bytes | None:
    """Return a Parquet file of rows; None where no file of these columns can say them."""
    try:
        table = pa.Table.from_pylist(rows, schema=schema)
    except NOT_IN_A_TABLE:
        return None
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


def cache_targets(labeller: Labeller, label_set: LabelSet) -> Iterator[Target]:
    """Yield the targets of the files of a cache that was made by hand; what they break lies in memory."""
    yield from _records(labeller)
    yield from _manifests(label_set)
    yield from _tables(labeller, label_set)
    yield from _requests_and_names(label_set)


def _records(labeller: Labeller) -> Iterator[Target]:
    units = index_source(labeller.source).units
    records = tuple(labeller.make_part(unit, first_view=0, num_views=2)[1].to_bytes() for unit in units)

    def read(data: bytes) -> Reading:
        return partial(PartRecord.from_bytes, data, origin="here")

    yield Target(
        name="part records: bytes, seal right or not",
        seeds=tuple(form for record in records for form in forms_of(record)),
        change=mutated_form,
        prepare=lambda made: read(bytes_of(made)),
        weight=14,
    )
    yield Target(
        name="part records: values, seal right",
        seeds=tuple(json.loads(unseal(record) or b"") for record in records),
        change=replaced,
        prepare=lambda made: read(seal(canonical_json(made))),
        weight=14,
    )


def _manifests(label_set: LabelSet) -> Iterator[Target]:
    store, folder = label_set.cache.store, label_set.folder
    manifest = store.read(f"{folder}/manifest.json")
    memory = Cache.at("memory://fuzz-manifests")
    for name in (label_set.manifest.parts_file, label_set.manifest.class_means_file):
        memory.store.write(f"{folder}/{name}", store.read(f"{folder}/{name}"))

    def opened(data: bytes) -> Reading:
        def read() -> object:
            memory.store.write(f"{folder}/manifest.json", data)
            return LabelSet.open_id(memory, label_set=label_set.manifest.id).class_means()

        return read

    yield Target(
        name="manifests: bytes, seal right or not",
        seeds=forms_of(manifest),
        hostile=((True, b"[" * 20_000),),
        change=mutated_form,
        prepare=lambda made: opened(bytes_of(made)),
        weight=3,
    )
    yield Target(
        name="manifests: values, seal right",
        seeds=(json.loads(unseal(manifest) or b""),),
        change=replaced,
        prepare=lambda made: opened(seal(canonical_json(made))),
        weight=3,
    )


def _tables(labeller: Labeller, label_set: LabelSet) -> Iterator[Target]:
    manifest = label_set.manifest
    table = label_set.cache.store.read(f"{label_set.folder}/{manifest.parts_file}")
    rows = label_set.parts.to_pylist()
    memory = Cache.at("memory://fuzz-plans")
    fingerprint = manifest.request.fingerprint()
    units = index_source(labeller.source).units
    listing = PartListing.of(label_set.cache.store, label_set.cache.request_folder(fingerprint))
    means = f"{label_set.folder}/{manifest.class_means_file}"
    memory.store.write(means, label_set.cache.store.read(means))

    def read(data: bytes) -> Reading:
        forged = manifest.model_copy(update={"parts_sha256": digest(data)})
        sealed = seal(canonical_json(forged.model_dump(mode="json")))

        def open_it() -> object:
            memory.store.write(f"{label_set.folder}/{manifest.parts_file}", data)
            memory.store.write(f"{label_set.folder}/manifest.json", sealed)
            return LabelSet.open_id(memory, label_set=manifest.id).parts

        return open_it

    def planned(data: bytes) -> Reading:
        forged = manifest.model_copy(update={"parts_sha256": digest(data)})

        def plan() -> object:
            memory.store.write(f"{label_set.folder}/{manifest.parts_file}", data)
            vouched_parts(memory, listings={fingerprint: listing}, manifests=[forged])
            standing = find_standing(
                memory, request=fingerprint, units=units, num_views=manifest.num_views, listing=listing, manifests=[forged]
            )
            return None if standing is None else list(standing.parts)

        return plan

    def of_rows(use: Callable[[bytes], Reading]) -> Callable[[list[Any]], Reading | None]:
        def prepare(made: list[Any]) -> Reading | None:
            data = parquet_of(made, PARTS_SCHEMA)
            return None if data is None else use(data)

        return prepare

    for what, use in (("read", read), ("planned over", planned)):
        yield Target(name=f"tables of parts, {what}: bytes", seeds=(table,), change=mutated, prepare=use, weight=1)
        yield Target(
            name=f"tables of parts, {what}: values", seeds=(rows,), change=row_of_a_table, prepare=of_rows(use), weight=1
        )


def _requests_and_names(label_set: LabelSet) -> Iterator[Target]:
    memory = Cache.at("memory://fuzz-names")

    def requested(made: Any) -> Reading:
        data = canonical_json(made)
        name = f"requests/{digest(data)}/spec.json"

        def read() -> object:
            memory.store.write(name, data)
            try:
                return memory.request(digest(data))
            finally:
                memory.store.remove(name)

        return read

    yield Target(
        name="requests: values, name right",
        seeds=(label_set.manifest.request.to_json(),),
        change=replaced,
        prepare=requested,
        weight=3,
    )
    files = [NamedLabelSet(label_set=label_set.manifest.id, is_tag=is_tag).to_bytes(name="tiny") for is_tag in (False, True)]

    def named(data: bytes) -> Reading:
        def read() -> object:
            memory.store.write("names/tiny.json", data)
            return memory.find_name("tiny")

        return read

    yield Target(
        name="names and tags: bytes, seal right or not",
        seeds=tuple(form for file in files for form in forms_of(file)),
        hostile=((True, b"[" * 20_000),),
        change=mutated_form,
        prepare=lambda made: named(bytes_of(made)),
        weight=4,
    )
    yield Target(
        name="names and tags: values, seal right",
        seeds=tuple(json.loads(unseal(file) or b"") for file in files),
        change=replaced,
        prepare=lambda made: named(seal(canonical_json(made))),
        weight=4,
    )
