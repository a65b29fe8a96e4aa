"""What a config said of a teacher when it labelled, so that another teacher is recognised where neither can be loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from storage.config import TeacherConfig
from storage.parts import Info
from storage.teacher_files import file_sha256, files_of, local_folder

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5")
_SETTINGS = ("config.json", "preprocessor_config.json")
_NOT_KEPT = frozenset({"cache_dir", "force_download", "local_files_only", "proxies", "token", "trust_remote_code"})
"""Arguments of transformers that are of a machine or a secret; `revision` and `subfolder` say which files are meant."""


class TeacherRecord(Info):
    """The teacher of a config: provenance beside the spec, whose weights only a loaded teacher knows."""

    name: str
    files: dict[str, str] | None = None
    """sha256 of the weights and configs in a local folder, by file; None: `name` is no local folder."""
    checkpoint: str | None = None
    checkpoint_sha256: str | None = None
    """Of the file's bytes; None: it could not be read, or there is no checkpoint."""
    kwargs: dict[str, Any]

    @classmethod
    def of(cls, config: TeacherConfig) -> Self:
        """Return the record of a config's teacher, whose local files are read."""
        said = config.model_dump(mode="json", include={"kwargs"})["kwargs"]
        return cls(
            name=config.name,
            files=_folder_digests(config),
            checkpoint=config.checkpoint,
            checkpoint_sha256=None if config.checkpoint is None else _digest_of(Path(config.checkpoint)),
            kwargs={key: value for key, value in said.items() if key not in config.transport.keys() & _NOT_KEPT},
        )

    def why_other(self, config: TeacherConfig) -> list[str]:
        """Return every field of a config's teacher that is not as it was; files count by content, wherever they lie now."""
        now = type(self).of(config)
        return [*_other_name(now, then=self), *_other_checkpoint(now, then=self), *_other_kwargs(now, then=self)]


def _other_name(now: TeacherRecord, *, then: TeacherRecord) -> list[str]:
    said = f"teacher.name: the config names {now.name!r}, the labels were made by {then.name!r}"
    if then.files is None or now.files is None:
        if now.name == then.name:
            return []
        unread = then.files is not None or now.files is not None
        return [f"{said}; without the files of both, nothing shows that they are the same" if unread else said]
    return [
        f"{said}, whose {file} was {_short(then.files.get(file))}, not {_short(now.files.get(file))}"
        for file in sorted(then.files.keys() | now.files.keys())
        if then.files.get(file) != now.files.get(file)
    ]


def _other_checkpoint(now: TeacherRecord, *, then: TeacherRecord) -> list[str]:
    digests = now.checkpoint_sha256, then.checkpoint_sha256
    same_path = now.checkpoint == then.checkpoint
    if same_path and (None in digests or digests[0] == digests[1]):
        return []
    if not same_path and digests[0] is not None and digests[0] == digests[1]:
        return []
    said = f"teacher.checkpoint: the config names {now.checkpoint!r}, the labels were made with {then.checkpoint!r}"
    if now.checkpoint is None or then.checkpoint is None:
        return [said]
    if None in digests:
        return [f"{said}; without both files, nothing shows that they are the same"]
    return [f"{said} ({_short(digests[0])}, not {_short(digests[1])})"]


def _other_kwargs(now: TeacherRecord, *, then: TeacherRecord) -> list[str]:
    return [
        f"teacher.kwargs.{key}: the config asks for {now.kwargs.get(key)!r}, the labels were made with {then.kwargs.get(key)!r}"
        for key in sorted(now.kwargs.keys() | then.kwargs.keys())
        if (key in now.kwargs) != (key in then.kwargs) or now.kwargs.get(key) != then.kwargs.get(key)
    ]


def _short(sha256: str | None) -> str:
    return "not there" if sha256 is None else f"sha256 {sha256[:12]}"


def _folder_digests(config: TeacherConfig) -> dict[str, str] | None:
    folder = local_folder(config)
    if folder is None or not folder.is_dir():
        return None
    counted = [file for file in files_of(folder) if file.suffix in _WEIGHTS or file.name in _SETTINGS]
    return {file.name: digest for file in counted if (digest := _digest_of(file)) is not None}


def _digest_of(path: Path) -> str | None:
    try:
        return file_sha256(path)
    except OSError:
        return None
