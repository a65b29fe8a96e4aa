"""A cache made by real runs of `decant label`, what it must say, and what reading it the way a student does gives."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.engine import pipeline_options
from pipelines.label import plan_run, run_label
from storage.cache import Cache
from storage.catalogue import verify_label_sets
from storage.config import ExperimentConfig
from storage.errors import DecantError
from storage.label_set import LabelSet
from storage.serving import served_target
from storage.sources import open_source
from storage.streams.label_stream import LabelStream
from tests.pipelines import support
from tests.pipelines.networks import DRIFT
from tests.reliability.damage import Fault, Victims

NUM_VIEWS = 4
_REMEDY = re.compile(r"decant label|decant repair|remove|restore", re.IGNORECASE)


def file_kind(name: str) -> str:
    """Return what a file of a cache is, for tables."""
    if name.startswith("requests/"):
        return "tar" if name.endswith(".tar") else "spec.json" if name.endswith("spec.json") else "part record"
    if name.startswith("label_sets/"):
        base = name.rsplit("/", 1)[-1]
        return {"manifest.json": "manifest"}.get(base, "class means" if base.startswith("class_means") else "parts table")
    return {"names": "name", "sources": "source memo", "teachers": "teacher memo"}[name.split("/", 1)[0]]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Every row of a label set as a student gets it, view by view, and the class means."""

    keys: tuple[tuple[str, ...], ...]
    images: tuple[tuple[bytes, ...], ...]
    arrays: tuple[bytes, ...]

    @classmethod
    def of(cls, config: ExperimentConfig) -> Reading:
        """Open a label set by name, check that it serves the config, and read all of it."""
        label_set = LabelSet.open(Cache.at(str(config.cache)), name_or_id=config.name)
        target = served_target(label_set, config=config)
        assert config.source is not None
        stream = LabelStream(label_set, source=open_source(config.source), target=target)
        keys, images, arrays = [], [], [label_set.class_means().tobytes()]
        for epoch in range(label_set.manifest.num_views):
            sizes = stream.block_rows(epoch=epoch)
            block_ids = np.repeat(np.arange(len(sizes)), sizes)
            within = np.concatenate([np.arange(size) for size in sizes])
            rows = stream.read(epoch=epoch, block_ids=block_ids, rows=within)
            keys.append(tuple(rows.keys))
            images.append(tuple(rows.images))
            assert rows.soft_labels is not None
            for array in (rows.labels, rows.view_digests, rows.view_indices, rows.soft_labels.densify()):
                arrays.append(np.ascontiguousarray(array).tobytes())
        return cls(keys=tuple(keys), images=tuple(images), arrays=tuple(arrays))


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a fault.

    Attributes:
        state: "silent" (other rows without an error), "detected", or "harmless".
        clear: the error names a damaged file, or the label set's folder, and a remedy.
        error: its text.
        verify_finds: whether `decant cache verify` complains.
    """

    state: str
    clear: bool = True
    error: str = ""
    verify_finds: bool = False


@dataclass(kw_only=True)
class Specimen:
    """Three experiments in one cache: two teachers on the same pictures, and one that was labelled again after a loss."""

    folder: Path
    configs: dict[str, ExperimentConfig] = field(default_factory=dict)
    truth: dict[str, Reading] = field(default_factory=dict)
    pristine: dict[str, bytes] = field(default_factory=dict)
    older: dict[str, list[bytes]] = field(default_factory=dict)
    lost: dict[str, bytes] = field(default_factory=dict)
    """What lay there before a part was lost, and lies there no more."""
    victims_in_use: Victims = field(init=False)

    @classmethod
    def make(cls, folder: Path) -> Specimen:
        """Label everything; keep what was replaced on the way as older copies."""
        specimen = cls(folder=folder)
        specimen._build()
        return specimen

    @property
    def cache(self) -> Path:
        """Folder of the cache."""
        return self.folder / "cache"

    def _config(self, name: str, *, teacher: dict[str, Any], pictures: Path, views: int = NUM_VIEWS) -> ExperimentConfig:
        data = support.experiment(
            cache=self.cache, source=support.folder_source(pictures, unit_size=8), teacher=teacher, views=views
        )
        return support.config_of({**data, "name": name})

    def _build(self) -> None:
        pictures = support.write_folder(self.folder / "pictures")
        others = support.write_folder(self.folder / "others")
        timm = {
            name: support.timm_teacher(support.save_teacher(self.folder / f"{name}.safetensors", seed=seed))
            for seed, name in enumerate(("first", "second"))
        }
        colours = support.colour_teacher()
        self.label(self._config("first", teacher=timm["first"], pictures=pictures, views=2))
        (others / "red" / "003.png").write_bytes(support.picture(2, 77))
        self.configs = {
            "first": self._config("first", teacher=timm["first"], pictures=pictures),
            "second": self._config("second", teacher=timm["second"], pictures=pictures),
            "third": self._config("third", teacher=colours, pictures=others),
        }
        self.label(self.configs["third"])
        before = self.files()
        # A picture changes; then a part is lost and made anew, a little different, as on another device.
        (others / "red" / "003.png").write_bytes(support.picture(2, 3))
        os.environ[DRIFT] = "1.001"
        try:
            self.label(self.configs["third"])
        finally:
            del os.environ[DRIFT]
        middle = self.files()
        label_set = LabelSet.open(Cache.at(str(self.cache)), name_or_id="third")
        tar = label_set.tar_path(label_set.parts.num_rows - 1)
        (self.cache / tar).unlink()
        (self.cache / f"{tar.rsplit('.', 2)[0]}.json").unlink()
        for config in self.configs.values():
            self.label(config)
        shutil.rmtree(self.cache / "runs")
        self.pristine = self.files()
        self.lost = {name: data for name, data in middle.items() if name not in self.pristine}
        for files in (before, middle):
            for name, data in files.items():
                if self.pristine.get(name, data) != data:
                    self.older.setdefault(name, []).append(data)
        self.victims_in_use = self._victims()
        self.truth = {name: Reading.of(config) for name, config in self.configs.items()}

    def files(self) -> dict[str, bytes]:
        """Return what lies in the cache now."""
        memos = [file for folder in ("sources", "teachers") for file in (self.cache / folder).glob("*") if file.is_file()]
        return support.snapshot(self.cache) | {str(file.relative_to(self.cache)): file.read_bytes() for file in memos}

    def label(self, config: ExperimentConfig) -> None:
        """Run `decant label` in this process."""
        run_label(plan_run(config, progress=False), options=pipeline_options([]), progress=False)

    def _victims(self) -> Victims:
        """Return the files that are in use: those of label sets that names point at, and memos."""
        used = {name for name in self.pristine if file_kind(name) in {"name", "source memo", "teacher memo"}}
        for config in self.configs.values():
            label_set = LabelSet.open(Cache.at(str(self.cache)), name_or_id=config.name)
            used |= {f"{label_set.folder}/{file}" for file in ("manifest.json", label_set.manifest.parts_file)}
            used.add(f"{label_set.folder}/{label_set.manifest.class_means_file}")
            for part in range(label_set.parts.num_rows):
                tar = label_set.tar_path(part)
                used |= {tar, f"{tar.rsplit('.', 2)[0]}.json", f"{tar.rsplit('/', 1)[0]}/spec.json"}
        files = {name: self.pristine[name] for name in sorted(used)}
        peers = {name: tuple(other for other in files if file_kind(other) == file_kind(name) and other != name) for name in files}
        return Victims(files=files, peers=peers, older={name: tuple(self.older.get(name, ())) for name in files})

    @contextlib.contextmanager
    def damaged(self, fault: Fault) -> Iterator[None]:
        """Do the damage; afterwards everything is as it was."""
        for name, data in fault.after.items():
            if data is None:
                (self.cache / name).unlink()
            else:
                (self.cache / name).write_bytes(data)
        try:
            yield
        finally:
            self.restore()

    def restore(self) -> None:
        """Bring back the files as they were, and nothing else."""
        for file in [file for file in self.cache.rglob("*") if file.is_file()]:
            name = str(file.relative_to(self.cache))
            if name not in self.pristine:
                file.unlink()
            elif file.read_bytes() != self.pristine[name]:
                file.write_bytes(self.pristine[name])
        for name in self.pristine:
            if not (self.cache / name).exists():
                (self.cache / name).parent.mkdir(parents=True, exist_ok=True)
                (self.cache / name).write_bytes(self.pristine[name])

    def problem(self) -> tuple[str, bool]:
        """Return the error of reading all experiments ("" for none), and whether rows differ from the truth without one."""
        first = ""
        silent = False
        for name, config in self.configs.items():
            try:
                silent |= Reading.of(config) != self.truth[name]
            except DecantError as error:
                first = first or str(error)
        return first, silent

    def judge(self, fault: Fault) -> Outcome:
        """Read everything under a fault."""
        with self.damaged(fault):
            error, silent = self.problem()
            try:
                finds = bool(verify_label_sets(str(self.cache), progress=False)["problems"])
            except DecantError:
                finds = True
        named = {name.rsplit("/", 1)[-1] if "label_sets" not in name else name.rsplit("/", 1)[0] for name in fault.after}
        named |= {name.rsplit("/", 1)[-1].removesuffix(".json") for name in fault.after if name.startswith("names/")}
        # What is whole but old can only be told by what it says and is not so: the error names that.
        named |= {str(self.cache)} if fault.kind == "older copy" else set()
        clear = any(part in error for part in named) and _REMEDY.search(error) is not None
        state = "silent" if silent else "detected" if error else "harmless"
        return Outcome(state=state, clear=clear if error else True, error=error, verify_finds=finds)

    def heal(self, fault: Fault) -> tuple[str, str]:
        """Do what a person would: run `decant label`; where an error comes again, remove the files it names and run it again.

        Returns:
            ("rerun" or "removed", "") once everything is right, or ("silent", ...) and ("not healed", ...) with what was seen.
        """
        with self.damaged(fault):
            seen: list[str] = []
            removed = False
            for _ in range(12):
                problem = self._rerun()
                if problem is None:
                    return ("removed" if removed else "rerun"), ""
                if problem == "silent":
                    return "silent", "; ".join(seen)
                if problem in seen:
                    files = [file for file in self.cache.rglob("*") if file.is_file() and str(file) in problem]
                    if not files:
                        return "not healed", problem
                    removed = True
                    for file in files:
                        file.unlink()
                seen.append(problem)
            return "not healed", "; ".join(dict.fromkeys(seen))

    def _rerun(self) -> str | None:
        for config in self.configs.values():
            try:
                self.label(config)
            except DecantError as error:
                return str(error)
        error, silent = self.problem()
        if silent:
            return "silent"
        if error:
            return error
        problems = verify_label_sets(str(self.cache), progress=False)["problems"]
        return problems[0] if problems else None
