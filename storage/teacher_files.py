"""The local files a teacher is made of, by content: what names its memo in a cache, and what its labels say of it."""

from __future__ import annotations

import functools
import hashlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from storage.config import TeacherConfig
from storage.hashing import fingerprint

_CHUNK_BYTES = 1 << 22
LOCAL_FOLDER = "local-dir:"
"""What timm writes before a local folder."""
_OF_TRANSFORMERS = ("transformers", "masked_lm", "causal_lm", "sequence_classifier")


def memo_name(config: TeacherConfig) -> str | None:
    """Return the name in a cache of what is remembered of a teacher: a hash of all that makes it.

    None for a teacher that is not wholly in local files (a hub tag, a factory's code), or whose library is not here.
    """
    folder = local_folder(config)
    named = config.kind == "timm" and ":" not in config.name and "/" not in config.name
    files = local_files(config)
    if not (folder or named) or not files or not all(file.is_file() for file in files):
        return None
    if config.tokenizer is not None and not Path(config.tokenizer).exists():
        return None
    try:
        library = version("transformers" if config.of_text else config.kind)
    except PackageNotFoundError:
        return None
    about = {
        "version": 3,
        # A local folder's own place is no part of what the teacher is.
        "name": None if folder is not None else config.name,
        # What a name or a folder means is the library's to say.
        "library": library,
        "settings": config.model_dump(mode="json", exclude={"device", "checkpoint", "name", "tokenizer"}),
        "files": [[file.name if str(file) != config.checkpoint else None, file_sha256(file)] for file in files],
    }
    return f"teachers/{fingerprint(about)}.json"


def local_files(config: TeacherConfig) -> list[Path]:
    """Return the local files a teacher is made of: its folder's, its tokenizer's, its checkpoint, which may be missing."""
    files = files_of(local_folder(config))
    if config.tokenizer is not None:
        tokenizer = Path(config.tokenizer)
        files += [tokenizer] if tokenizer.is_file() else files_of(tokenizer)
    return files if config.checkpoint is None else [*files, Path(config.checkpoint)]


def files_of(folder: Path | None) -> list[Path]:
    """Return the files of a folder in order of their names; none of one that is not there."""
    return sorted(item for item in folder.iterdir() if item.is_file()) if folder is not None and folder.is_dir() else []


def local_folder(config: TeacherConfig) -> Path | None:
    """Return the local folder that the config names, or None."""
    if config.kind == "timm" and config.name.startswith(LOCAL_FOLDER):
        return Path(config.name.removeprefix(LOCAL_FOLDER))
    if config.kind in _OF_TRANSFORMERS and Path(config.name).is_dir():
        return Path(config.name) / str(config.kwargs.get("subfolder", ""))
    return None


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes; read once while its time and size stay.

    Raises:
        OSError: it cannot be read.
    """
    about = path.stat()
    return _sha256(path.absolute(), about.st_mtime_ns, about.st_size, about.st_ino)


@functools.lru_cache(maxsize=256)
def _sha256(path: Path, *_marks: int) -> str:
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            hasher.update(chunk)
    return hasher.hexdigest()
