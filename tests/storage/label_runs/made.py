"""Runs that are written down as `decant label` does it, with parts that tests commit one by one."""

from __future__ import annotations

from dataclasses import dataclass

from storage.label_runs.folder import PartsTable, RunFolder, RunInfo, RunTarget, new_run_name
from storage.sources import index_source
from storage.specs import PartSpec
from tests.storage.caches import Labeller

ROWS_PER_UNIT = (7, 7, 3)


@dataclass(frozen=True, kw_only=True)
class MadeRun:
    """A run over the three units of a labeller, a part for each view.

    Attributes:
        parts: in the order of units, then views.
    """

    labeller: Labeller
    folder: RunFolder
    info: RunInfo
    parts: tuple[PartSpec, ...]

    def commit(self, number, **changes):
        """Commit one of the parts; return its record."""
        unit, view = divmod(number, self.info.num_parts // 3)
        indexed = index_source(self.labeller.source).units[unit]
        data, record = self.labeller.make_part(indexed, first_view=view, num_views=1)
        assert record.part == self.parts[number]
        return self.labeller.cache.commit_part(data, record=record)

    def hear(self, worker="host-1-0"):
        """A worker's beat."""
        self.folder.store.write(f"{self.folder.path}/alive/{worker}.json", b"{}")


def info_of(labeller, *, parts, rows, name="tiny", label_set="0" * 32, **changes):
    """What a run says of itself."""
    return RunInfo(
        **{
            "run": new_run_name(),
            "name": name,
            "targets": (RunTarget(name=name, request=labeller.request.fingerprint(), label_set=label_set),),
            "runner": "FlinkRunner",
            "local": False,
            "detached": True,
            "workers": 1,
            "host": "submitter",
            "started": "2026-01-31T12:00:00Z",
            "decant": "0.1.0",
            "jobs": ("decant-tiny-1",),
            "command": "decant label tiny.yaml",
            "of_text": False,
            "num_units": len(parts),
            "num_parts": len(parts),
            "num_rows": sum(rows),
            **changes,
        }
    )


def start_run(labeller, *, num_views=2, replaces=None, **changes):
    """Write down a run that makes a part of each view of each unit.

    Args:
        replaces: tar names by number of the part, of parts in which dead letters are tried again.
    """
    request = labeller.cache.add_request(labeller.request)
    table, parts, rows = PartsTable(), [], []
    for unit in index_source(labeller.source).units:
        for view in range(num_views):
            parts.append(PartSpec(request=request, unit_digest=unit.digest, first_view=view, num_views=1))
            rows.append(unit.num_samples)
            tar_name = (replaces or {}).get(len(parts) - 1)
            table.add(request=request, part=parts[-1].name, num_rows=rows[-1], replaces=tar_name)
    info = info_of(labeller, parts=parts, rows=rows, **changes)
    folder = RunFolder(store=labeller.cache.store, name=info.run)
    return MadeRun(labeller=labeller, folder=folder, info=folder.write(info, parts=table.finish()), parts=tuple(parts))
