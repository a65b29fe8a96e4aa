"""Detached runs beside others: what they left stays held until somebody has made a label set of it."""

from __future__ import annotations

from storage.label_runs.under_way import release_ended
from storage.label_set import UsedPart, label_set_id
from storage.sources import index_source
from storage.upkeep.garbage import collect_garbage
from storage.upkeep.leases import held_runs, leave_hold
from tests.storage.caches import make_labeller
from tests.storage.label_runs.made import start_run


def test_the_hold_of_a_run_stays_until_its_own_label_set_is_there(tmp_path):
    labeller = make_labeller(tmp_path)
    store, request = labeller.cache.store, labeller.request.fingerprint()
    names = [indexed.unit.name for indexed in index_source(labeller.source).units for _ in range(2)]
    draft = start_run(labeller)
    used = [
        UsedPart(unit_name=name, part=part, first_view=part.first_view, num_views=1)
        for name, part in zip(names, draft.parts, strict=True)
    ]
    run = start_run(labeller, label_set=label_set_id(request=request, parts=used))
    leave_hold(labeller.cache, run=run.folder.name, requests=[request])
    for number in range(6):
        run.commit(number)
    # It is done. Somebody else commits labels of the same request, of which these are not.
    release_ended(store, requests={request})
    assert held_runs(store, now=store.now()) == {run.folder.name}
    collect_garbage(store.url, delete=True, grace_hours=0)
    assert all(labeller.cache.find_part(part) is not None for part in run.parts)
    committed = labeller.label(views_per_part=1)
    assert committed.manifest.id == run.info.targets[0].label_set
    release_ended(store, requests={request})
    assert held_runs(store, now=store.now()) == frozenset()
