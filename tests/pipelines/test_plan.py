"""What is planned covers every view once, and interrupting changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.plan import make_plan
from pipelines.tiling import view_ranges
from storage.cache import Cache
from storage.codecs import RankedLabels
from storage.parts import PartStatistics, PartWriter
from storage.samples import SampleTable
from storage.sources import IndexedUnit, SourceUnit
from storage.specs import EvaluationView, ExactCodec, Normalization, PartSpec, RequestSpec, SoftLabelsSpec, TeacherSpec

NUM_VIEWS = st.integers(1, 24)
VIEWS_PER_PART = st.integers(1, 9)
RANGES = st.lists(st.tuples(st.integers(0, 20), st.integers(1, 9)).map(lambda pair: (pair[0], sum(pair))), max_size=6)


@given(num_views=NUM_VIEWS, views_per_part=VIEWS_PER_PART, existing=RANGES)
def test_tiles_cover_every_view_once_whatever_exists(num_views, views_per_part, existing):
    tiles = view_ranges(num_views=num_views, views_per_part=views_per_part, existing=existing)
    assert [view for used, _ in tiles for view in range(*used)] == list(range(num_views))
    for used, known in tiles:
        if known is None:
            assert used[1] - used[0] <= views_per_part
            assert not any(start <= view < stop for view in range(*used) for start, stop in existing)
        else:
            assert known in existing
            assert known[0] <= used[0] < used[1] <= known[1]


@given(num_views=NUM_VIEWS, views_per_part=VIEWS_PER_PART, data=st.data())
def test_an_interrupted_run_and_its_continuation_make_the_parts_of_an_uninterrupted_one(num_views, views_per_part, data):
    whole = [used for used, _ in view_ranges(num_views=num_views, views_per_part=views_per_part, existing=[])]
    committed = data.draw(st.permutations(whole).flatmap(lambda order: st.integers(0, len(order)).map(lambda n: order[:n])))
    rest = view_ranges(num_views=num_views, views_per_part=views_per_part, existing=committed)
    assert [known or used for used, known in rest] == whole
    assert {used for used, known in rest if known is None} == set(whole) - set(committed)


@given(num_views=NUM_VIEWS, more_views=NUM_VIEWS, views_per_part=VIEWS_PER_PART, other_views_per_part=VIEWS_PER_PART)
def test_what_was_made_is_used_for_more_or_fewer_views_and_other_part_sizes(
    num_views, more_views, views_per_part, other_views_per_part
):
    first = view_ranges(num_views=num_views, views_per_part=views_per_part, existing=[])
    made = [used for used, _ in first]
    second = view_ranges(num_views=more_views, views_per_part=other_views_per_part, existing=made)
    computed = [view for used, known in second if known is None for view in range(*used)]
    assert computed == list(range(num_views, more_views))


def test_the_longest_part_is_taken_where_several_cover_a_view():
    assert view_ranges(num_views=6, views_per_part=2, existing=[(0, 1), (0, 4), (3, 6)]) == [((0, 4), (0, 4)), ((4, 6), (3, 6))]


@given(num_views=NUM_VIEWS, views_per_part=VIEWS_PER_PART, existing=RANGES, lent=RANGES)
def test_lent_ranges_serve_only_where_there_are_no_own_ones(num_views, views_per_part, existing, lent):
    tiles = view_ranges(num_views=num_views, views_per_part=views_per_part, existing=existing, lent=lent)
    assert [view for used, _ in tiles for view in range(*used)] == list(range(num_views))

    def within(view, ranges):
        return any(start <= view < stop for start, stop in ranges)

    for used, known in tiles:
        for view in range(*used):
            assert (known in existing) if within(view, existing) else (known in lent) if within(view, lent) else known is None


REQUEST = RequestSpec(
    teacher=TeacherSpec(
        kind="timm",
        architecture="none",
        weights_sha256="0" * 64,
        num_classes=3,
        normalization=Normalization(mean=(0.0,), std=(1.0,)),
        precision="fp32",
    ),
    view=EvaluationView(size=(8, 8), resize_size=(8, 8)),
    target=SoftLabelsSpec(num_classes=3, k=1, codec=ExactCodec()),
)


def unit(number, *, num_samples=2):
    source_unit = SourceUnit(name=f"unit{number}", locator={}, stat_token="")
    return IndexedUnit(unit=source_unit, num_samples=num_samples, digest=f"{number:02x}" * 32, key_hash=0)


def commit(cache, indexed, views, *, request=REQUEST):
    part = PartSpec(request=request.fingerprint(), unit_digest=indexed.digest, first_view=views[0], num_views=views[1] - views[0])
    table = SampleTable(keys=("a", "b"), labels=np.array([0, 1]))
    writer = PartWriter(part=part, target=request.target, samples=table)
    k = request.target.k
    shares = np.full((2, k), -np.log(k + 1), np.float32)
    ids = np.tile(np.arange(k, dtype=np.uint32), (2, 1))
    rows = RankedLabels(class_ids=ids, log_probs=shares, log_rest=shares[:, 0])
    for view in range(*views):
        present = np.ones(2, dtype=bool)
        writer.add_rows(rows, view=view, first_sample=0, present=present, view_digests=np.zeros(2, dtype=np.uint64))
    data, record = writer.finish(
        unit_name=indexed.unit.name,
        class_means=np.full(3, 1 / 3),
        dead_letters=(),
        statistics=PartStatistics(num_rows=2 * (views[1] - views[0])),
        provenance={},
    )
    return cache.commit_part(data, record=record)


def plan(cache, units, *, num_views, request=REQUEST):
    return make_plan(cache, request=request, units=units, num_views=num_views, views_per_part=2)


def test_a_plan_over_an_empty_cache_computes_everything(tmp_path):
    found = plan(Cache.at(str(tmp_path)), [unit(1), unit(2, num_samples=3)], num_views=3)
    assert [(task.unit.name, task.part.first_view, task.part.num_views) for task in found.tasks] == [
        ("unit1", 0, 2),
        ("unit1", 2, 1),
        ("unit2", 0, 2),
        ("unit2", 2, 1),
    ]
    assert (found.num_units, found.num_samples, found.num_rows, found.num_missing_rows) == (2, 5, 15, 15)
    assert [used.part for used in found.parts] == [task.part for task in found.tasks]


def test_committed_parts_are_reused_and_only_the_rest_is_computed(tmp_path):
    cache = Cache.at(str(tmp_path))
    commit(cache, unit(1), (0, 2))
    commit(cache, unit(2), (0, 4))
    found = plan(cache, [unit(1), unit(2), unit(3)], num_views=3)
    assert [(task.unit.name, task.part.first_view, task.part.num_views) for task in found.tasks] == [
        ("unit1", 2, 1),
        ("unit3", 0, 2),
        ("unit3", 2, 1),
    ]
    of_second = [used for used in found.parts if used.unit_name == "unit2"]
    assert [(used.first_view, used.num_views, used.part.num_views) for used in of_second] == [(0, 3, 4)]
    assert found.num_missing_rows == 8


def test_files_that_nobody_committed_are_no_parts(tmp_path):
    cache = Cache.at(str(tmp_path))
    record = commit(cache, unit(1), (0, 2))
    folder = tmp_path / "requests" / REQUEST.fingerprint()
    (folder / f"{record.part.name}.json").unlink()
    (folder / f".{record.part.name}.json.partial").write_bytes(b"half")
    (folder / "spec.json").write_bytes(b"{}")
    (folder / f"{'0' * 32}.vx-y.json").write_bytes(b"{}")
    assert plan(cache, [unit(1)], num_views=2).num_missing_rows == 4


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_a_part_whose_tar_is_not_what_was_committed_is_computed_again(tmp_path, damage):
    cache = Cache.at(str(tmp_path))
    record = commit(cache, unit(1), (0, 2))
    tar = tmp_path / cache.tar_name(record)
    if damage == "missing":
        tar.unlink()
    else:
        tar.write_bytes(tar.read_bytes()[:-512])
    assert plan(cache, [unit(1)], num_views=2).num_missing_rows == 4
    commit(cache, unit(1), (0, 2))
    assert plan(cache, [unit(1)], num_views=2).num_missing_rows == 0


def changed_request(**changes):
    return REQUEST.model_copy(update=changes)


def wider(k, **options):
    return changed_request(target=SoftLabelsSpec(num_classes=3, k=k, codec=ExactCodec(), **options))


def test_parts_of_a_wider_request_are_lent_and_own_ones_come_first(tmp_path):
    cache = Cache.at(str(tmp_path))
    requests = {
        "two": wider(2),
        "three": wider(3),
        "warm": wider(3, generation_temperature=2.0),
        "other teacher": changed_request(teacher=REQUEST.teacher.model_copy(update={"precision": "bf16"})),
        "other view": changed_request(view=EvaluationView(size=(9, 9), resize_size=(9, 9))),
    }
    for request in requests.values():
        cache.add_request(request)
        commit(cache, unit(4), (0, 2), request=request)
    commit(cache, unit(1), (0, 1))
    commit(cache, unit(1), (0, 4), request=requests["three"])
    commit(cache, unit(2), (0, 2), request=requests["two"])
    commit(cache, unit(2), (0, 2), request=requests["three"])
    found = plan(cache, [unit(1), unit(2), unit(3), unit(4)], num_views=2)
    names = {request.fingerprint(): name for name, request in requests.items()} | {REQUEST.fingerprint(): "own"}
    assert [(used.unit_name, names[used.part.request], used.first_view, used.num_views) for used in found.parts] == [
        ("unit1", "own", 0, 1),
        ("unit1", "three", 1, 1),
        ("unit2", "two", 0, 2),
        ("unit3", "own", 0, 2),
        ("unit4", "two", 0, 2),
    ]
    assert [task.unit.name for task in found.tasks] == ["unit3"]
    assert (found.num_lent_rows, found.num_missing_rows, found.num_rows) == (10, 4, 16)
    assert found.not_lending == {requests["warm"].fingerprint(): "target.generation_temperature is 2.0, not 1.0"}


def test_nothing_is_lent_by_a_narrower_request_or_a_lost_tar(tmp_path):
    cache = Cache.at(str(tmp_path))
    cache.add_request(REQUEST)
    cache.add_request(wider(3))
    commit(cache, unit(1), (0, 1))
    lost = commit(cache, unit(1), (0, 1), request=wider(3))
    cache.store.remove(cache.tar_name(lost))
    found = plan(cache, [unit(1)], num_views=1, request=wider(2))
    assert len(found.tasks) == 1
    assert found.not_lending == {REQUEST.fingerprint(): "target.k is 1, less than 2"}
