"""A cache made by real runs of `decant label`: what it must say, and what damage to its files does to those who use it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.engine import pipeline_options
from pipelines.label import plan_runs, run_labels
from pipelines.repair import repair
from storage.cache import Cache
from storage.catalogue import verify_label_sets
from storage.config import ExperimentConfig
from storage.errors import DecantError
from storage.label_runs.folder import known_runs
from storage.label_set import LabelSet
from storage.specs import HiddenStatesSpec, SoftLabelsSpec
from storage.upkeep.tags import set_tag
from tests.pipelines import support
from tests.pipelines.networks import DRIFT
from tests.pipelines.text.models import documents, save_model
from tests.reliability.damage import Fault, Victims
from tests.reliability.reading import Reading

NUM_VIEWS = 4
TAG = "best"
NOTHING_READS = ("source memo", "teacher memo", "run.json", "parts of a run", "notes of a run")
"""Kinds of files that no reader of labels looks at; memos change what the next run does, the others what is seen of a run."""

_REMEDY = re.compile(
    r"decant label|decant repair|remove|restore|nothing but the view of this run is lost|the run has ended", re.IGNORECASE
)


def file_kind(name: str) -> str:
    """Return what a file of a cache is, by its name, for tables."""
    folder, base = name.split("/", 1)[0], name.rsplit("/", 1)[-1]
    if folder == "requests":
        return "tar" if base.endswith(".tar") else "spec.json" if base == "spec.json" else "part record"
    if folder == "label_sets":
        return {"manifest.json": "manifest"}.get(base, "class means" if base.startswith("class_means") else "parts table")
    if folder == "runs":
        return {"run.json": "run.json", "parts.parquet": "parts of a run"}.get(base, "notes of a run")
    if folder == "names":
        return "tag" if base == f"{TAG}.json" else "name"
    return {"heads": "head", "sources": "source memo", "teachers": "teacher memo"}[folder]


def _tar_kind(label_set: LabelSet) -> str:
    of_text = label_set.manifest.request.view.kind in {"tokens", "masked_tokens"}
    what = "labels" if isinstance(label_set.manifest.request.target, SoftLabelsSpec) else "vectors"
    return f"tar, {what} of {'texts' if of_text else 'pictures'}"


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
    """Experiments in one cache: two teachers on the same pictures, one that was labelled again after a loss, vectors, and texts.

    Attributes:
        configs: the experiments, by name.
        truth: what each gives, and the tag.
        kinds: what each file that is in use is.
        lost: what lay there before a part was lost, and lies there no more.
    """

    folder: Path
    configs: dict[str, ExperimentConfig] = field(default_factory=dict)
    truth: dict[str, Reading] = field(default_factory=dict)
    pristine: dict[str, bytes] = field(default_factory=dict)
    older: dict[str, list[bytes]] = field(default_factory=dict)
    lost: dict[str, bytes] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    run: str = ""
    """Name of the run whose folder was kept."""
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

    @property
    def _opened(self) -> Cache:
        return Cache.at(str(self.cache))

    def _config(
        self, name: str, *, teacher: dict[str, Any], pictures: Path, views: int = NUM_VIEWS, **changes: Any
    ) -> ExperimentConfig:
        data = support.experiment(
            cache=self.cache, source=support.folder_source(pictures, unit_size=8), teacher=teacher, views=views
        )
        return support.config_of({**data, "name": name, **changes})

    def _texts(self) -> ExperimentConfig:
        corpus = self.folder / "corpus.txt"
        corpus.write_text("".join(f"{text}\n" for text in documents(20)))
        return support.config_of(
            {
                "name": "texts",
                "cache": str(self.cache),
                "source": {"kind": "text", "path": str(corpus), "unit_size": 10},
                "teacher": {"kind": "masked_lm", "name": str(save_model(self.folder / "bert", "bert")), "device": "cpu"},
                "views": {"kind": "masked_tokens", "length": 16, "count": 2, "seed": 1},
                "targets": {"labels": {"k": 5}, "hidden": {"kind": "hidden_states", "layers": [1, 2], "head": True}},
                "generation": {"batch_size": 4, "torch_threads": 1},
            }
        )

    def _build(self) -> None:
        pictures = support.write_folder(self.folder / "pictures")
        others = support.write_folder(self.folder / "others")
        timm = {
            name: support.timm_teacher(support.save_teacher(self.folder / f"{name}.safetensors", seed=seed))
            for seed, name in enumerate(("first", "second"))
        }
        self.label(self._config("first", teacher=timm["first"], pictures=pictures, views=2))
        (others / "red" / "003.png").write_bytes(support.picture(2, 77))
        self.configs = {
            "first": self._config("first", teacher=timm["first"], pictures=pictures),
            "second": self._config("second", teacher=timm["second"], pictures=pictures),
            "third": self._config("third", teacher=support.colour_teacher(), pictures=others),
            "vectors": self._config(
                "vectors", teacher=timm["second"], pictures=pictures, views=2, target={"kind": "hidden_states", "layers": [0, 1]}
            ),
            "texts": self._texts(),
        }
        self.label(self.configs["third"])
        set_tag(str(self.cache), label_set="third", name=TAG)
        before = self.files()
        # A picture changes; then a part is lost and made anew, a little different, as on another device.
        (others / "red" / "003.png").write_bytes(support.picture(2, 3))
        os.environ[DRIFT] = "1.001"
        try:
            self.label(self.configs["third"])
        finally:
            del os.environ[DRIFT]
        middle = self.files()
        label_set = LabelSet.open(self._opened, name_or_id="third")
        tar = label_set.tar_path(label_set.parts.num_rows - 1)
        (self.cache / tar).unlink()
        (self.cache / f"{tar.rsplit('.', 2)[0]}.json").unlink()
        for config in self.configs.values():
            self.label(config)
        set_tag(str(self.cache), label_set="second", name=TAG, force=True)
        self._keep_one_run(of="second")
        self.pristine = self.files()
        kept = {name: data for name, data in middle.items() if not name.startswith("runs/")}
        self.lost = {name: data for name, data in kept.items() if name not in self.pristine}
        for files in (before, middle):
            for name, data in files.items():
                if self.pristine.get(name, data) != data and data not in self.older.get(name, []):
                    self.older.setdefault(name, []).append(data)
        self.victims_in_use = self._victims()
        self.truth = {name: Reading.of(config) for name, config in self.configs.items()}
        self.truth[TAG] = Reading.of_tag(self._opened, tag=TAG)
        self.truth[self.run] = Reading.of_run(self._opened, run=self.run)

    def _keep_one_run(self, *, of: str) -> None:
        (self.run,) = [folder.name for folder, info in known_runs(self._opened.store) if info.name == of]
        self._remove_other_runs()

    def _remove_other_runs(self) -> None:
        for folder in (self.cache / "runs").iterdir():
            if folder.name != self.run:
                shutil.rmtree(folder)

    def files(self) -> dict[str, bytes]:
        """Return what lies in the cache now."""
        files = [file for file in self.cache.rglob("*") if file.is_file() and not file.name.startswith(".")]
        return {str(file.relative_to(self.cache)): file.read_bytes() for file in files}

    def label(self, config: ExperimentConfig) -> None:
        """Run `decant label` in this process."""
        run_labels(plan_runs(config, progress=False), options=pipeline_options([]), progress=False)

    def _victims(self) -> Victims:
        """Return the files that are in use: those of label sets that names point at, the tag, memos, and those of a run."""
        self.kinds = {
            name: file_kind(name) for name in self.pristine if name.split("/", 1)[0] in {"names", "sources", "teachers", "runs"}
        }
        for name in sorted({name for config in self.configs.values() for name in config.label_set_names.values()}):
            label_set = LabelSet.open(self._opened, name_or_id=name)
            manifest, target = label_set.manifest, label_set.manifest.request.target
            used = {
                f"{label_set.folder}/{file}" for file in ("manifest.json", manifest.parts_file, manifest.class_means_file) if file
            }
            if isinstance(target, HiddenStatesSpec) and target.head_sha256 is not None:
                used.add(f"heads/{target.head_sha256}.head")
            for part in range(label_set.parts.num_rows):
                tar = label_set.tar_path(part)
                used |= {f"{tar.rsplit('.', 2)[0]}.json", f"{tar.rsplit('/', 1)[0]}/spec.json"}
                self.kinds[tar] = _tar_kind(label_set)
            self.kinds |= {name: file_kind(name) for name in used}
        files = {name: self.pristine[name] for name in sorted(self.kinds)}
        peers = {
            name: tuple(other for other in files if self.kinds[other] == self.kinds[name] and other != name) for name in files
        }
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
        self._remove_other_runs()
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

    def _readings(self, *, of_run: bool) -> Iterator[tuple[str, Reading | str]]:
        """Yield what each experiment, the tag, and a run if asked for, gives now, or its error."""
        for name in self.truth:
            if name == self.run and not of_run:
                continue
            try:
                if name in self.configs:
                    yield name, Reading.of(self.configs[name])
                elif name == TAG:
                    yield name, Reading.of_tag(self._opened, tag=TAG)
                else:
                    yield name, Reading.of_run(self._opened, run=self.run)
            except DecantError as error:
                yield name, str(error)

    def problem(self, *, of_run: bool = False) -> tuple[str, bool]:
        """Return the error of reading everything ("" for none), and whether rows differ from the truth without one.

        Args:
            of_run: also follow the run; what is missing of its parts shows there, too, and is no damage to it.
        """
        first = ""
        silent = False
        for name, found in self._readings(of_run=of_run):
            if isinstance(found, str):
                first = first or found
            else:
                silent |= found != self.truth[name]
        return first, silent

    def judge(self, fault: Fault) -> Outcome:
        """Read everything under a fault."""
        with self.damaged(fault):
            error, silent = self.problem(of_run=any(name.startswith("runs/") for name in fault.after))
            try:
                finds = bool(verify_label_sets(str(self.cache), progress=False)["problems"])
            except DecantError:
                finds = True
        named = {name.rsplit("/", 1)[-1] if "label_sets" not in name else name.rsplit("/", 1)[0] for name in fault.after}
        named |= {name.rsplit("/", 1)[-1].removesuffix(".json") for name in fault.after if name.startswith("names/")}
        named |= {self.run for name in fault.after if name.startswith("runs/")}
        # What is whole but old can only be told by what it says and is not so: the error names that.
        named |= {str(self.cache)} if fault.kind == "older copy" else set()
        clear = any(part in error for part in named) and _REMEDY.search(error) is not None
        state = "silent" if silent else "detected" if error else "harmless"
        return Outcome(state=state, clear=clear if error else True, error=error, verify_finds=finds)

    def heal(self, fault: Fault) -> tuple[str, str]:
        """Do what a person would: run `decant label`; where an error comes again, `decant repair`; then remove the files it names.

        A tag that was lost is set again: only people move tags.

        Returns:
            ("rerun", "repaired" or "removed", "") once everything is right, by the last of these that was needed; or ("silent",
            ...) and ("not healed", ...) with what was seen.
        """
        with self.damaged(fault):
            seen: list[str] = []
            how = "rerun"
            for _ in range(12):
                problem = self._rerun()
                if problem is None:
                    return how, ""
                if problem == "silent":
                    return "silent", "; ".join(seen)
                if problem in seen and how == "rerun":
                    how = "repaired"
                    for config in self.configs.values():
                        with contextlib.suppress(DecantError):
                            repair(config, options=pipeline_options([]), progress=False)
                elif problem in seen:
                    files = [file for file in self.cache.rglob("*") if file.is_file() and str(file) in problem]
                    if not files:
                        return "not healed", problem
                    how = "removed"
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
        with contextlib.suppress(DecantError):
            set_tag(str(self.cache), label_set="second", name=TAG)
        error, silent = self.problem()
        if silent:
            return "silent"
        if error:
            return error
        problems = verify_label_sets(str(self.cache), progress=False)["problems"]
        return problems[0] if problems else None
