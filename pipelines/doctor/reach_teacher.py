"""Whether a process finds what loading the teacher needs: files, modules, repositories of the Hugging Face hub."""

from __future__ import annotations

import importlib
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from pipelines.doctor.questions import AskedFile, AskedTeacher
from pipelines.doctor.report import Reach
from storage.config import TeacherConfig
from storage.hashing import checksum
from storage.teacher_files import local_files

_END_BYTES = 1 << 16
_CONNECT_SECONDS = 5.0
_HUB_TAG = re.compile(r"^hf[-_]hub:([^@]+)")
_FACTORY = re.compile(r"([A-Za-z_][\w.]*):[A-Za-z_]\w*")
_PROXIES = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")


def ask_about_teacher(config: TeacherConfig) -> AskedTeacher:
    """Look at what a teacher is made of here, and return what others shall find, too.

    Raises:
        OSError: one of its files cannot be read.
    """
    return AskedTeacher(
        name=config.name,
        files=tuple(_asked(file) for file in local_files(config)),
        modules=tuple(_modules(config)),
        hub=tuple(dict.fromkeys(_repositories(config))),
        device=config.device,
    )


def _asked(file: Path) -> AskedFile:
    size, ends = _look(file)
    return AskedFile(path=str(file), num_bytes=size, ends=ends)


def _look(file: Path) -> tuple[int, int]:
    """Return the size of a file and the checksum of its first and last bytes: weights may be hundreds of gigabytes."""
    with file.open("rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        data = opened.read(_END_BYTES)
        opened.seek(max(0, size - _END_BYTES))
        return size, checksum(data + opened.read(_END_BYTES))


def _modules(config: TeacherConfig) -> Iterator[str]:
    yield "timm" if config.kind == "timm" else "torch" if "factory" in config.kind else "transformers"
    for name in (config.name if "factory" in config.kind else "", config.tokenizer or ""):
        match = _FACTORY.fullmatch(name)
        if match is not None:
            yield match[1]


def _repositories(config: TeacherConfig) -> Iterator[str]:
    """Yield the repositories of the hub whose files are fetched by who loads the teacher."""
    tag = _HUB_TAG.match(config.name)
    if config.kind == "timm":
        if tag is not None:
            yield tag[1]
        elif config.checkpoint is None and ":" not in config.name:
            # timm says where a name's weights are; which names there are, it says when the teacher is loaded.
            from timm.models import get_pretrained_cfg

            try:
                known = get_pretrained_cfg(config.name)
            except RuntimeError:
                known = None
            if known is not None and known.hf_hub_id:
                yield str(known.hf_hub_id)
    elif "factory" not in config.kind and not Path(config.name).exists():
        yield config.name
    if config.tokenizer is not None and not (
        Path(config.tokenizer).exists() or config.tokenizer.endswith(".json") or _FACTORY.fullmatch(config.tokenizer)
    ):
        yield config.tokenizer


def examine_teacher(asked: AskedTeacher) -> Reach:
    """Look for what loading the teacher needs. Modules are imported, weights are not loaded."""
    problems = [problem for file in asked.files if (problem := _file_problem(file)) is not None]
    num_read = len(asked.files) - len(problems)
    for module in asked.modules:
        try:
            importlib.import_module(module)
        except (Exception, SystemExit) as error:  # modules of users, and broken installations, raise what they like
            problems.append(f"module {module} cannot be imported: {type(error).__name__}: {error}")
    notes = []
    for repository in asked.hub:
        problem, note = _look_for(repository)
        problems += [problem] if problem is not None else []
        notes += [note] if note is not None else []
    return Reach(num_read=num_read, problems=tuple(problems), notes=tuple(notes))


def _file_problem(asked: AskedFile) -> str | None:
    try:
        size, ends = _look(Path(asked.path))
    except FileNotFoundError:
        return f"{asked.path} does not exist there"
    except OSError as error:
        return f"{asked.path} cannot be read there: {error.strerror or error}"
    if (size, ends) != (asked.num_bytes, asked.ends):
        return f"{asked.path} is another file than where the command was started: {size:,} bytes, {asked.num_bytes:,} expected"
    return None


def _look_for(repository: str) -> tuple[str | None, str | None]:
    """Return a problem and a note about a repository of the hub."""
    from huggingface_hub import constants

    missing = f"{repository} is not in the Hugging Face cache {constants.HF_HUB_CACHE}"
    folder = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "snapshots"
    if folder.is_dir() and any(folder.iterdir()):
        return None, f"{repository} is in the Hugging Face cache"
    if constants.is_offline_mode():
        return (
            f"{repository} is not in the Hugging Face cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids to fetch it",
            None,
        )
    if any(os.environ.get(name) for name in _PROXIES):
        return None, f"{repository} will be downloaded through a proxy, which was not tried"
    place = urlsplit(constants.ENDPOINT)
    port = place.port or (80 if place.scheme == "http" else 443)
    try:
        socket.create_connection((place.hostname or "", port), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        return f"{missing}, and {constants.ENDPOINT} cannot be reached ({error})", None
    return None, f"{repository} will be downloaded"
