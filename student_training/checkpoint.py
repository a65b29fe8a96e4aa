"""Checkpoints on disk: whole or not there, proven by a checksum, read without executing anything.

A checkpoint is `step-00000042.pt` and, committed after it, `step-00000042.json` with its size and checksum. Only checkpoints with
a record that fits are ever loaded.
"""

from __future__ import annotations

import json
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import xxhash

from storage.errors import CorruptError
from student_training.output_folder import OutputError, writing

logger = logging.getLogger(__name__)

_VERSION = 1
_CHUNK_BYTES = 1 << 22


class CheckpointStore:
    """The checkpoints of one run; the newest few are kept."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        self._folder = folder
        self._keep = keep

    def save(self, state: dict[str, Any], *, step: int) -> Path:
        """Commit the state after `step` updates and drop older checkpoints; a kill at any instant leaves the earlier ones.

        Args:
            state: tensors and plain data.
            step: updates done.

        Raises:
            OutputError: it cannot be written; the earlier ones are whole.
        """
        path = self._folder / f"step-{step:08d}.pt"
        temporary = path.with_suffix(".pt.tmp")
        try:
            with writing(f"the checkpoint of step {step}", folder=self._folder):
                return self._commit(state, step=step, path=path, temporary=temporary)
        except OutputError:
            # What a full disk took of it would be in the way of the next one.
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise

    def _commit(self, state: dict[str, Any], *, step: int, path: Path, temporary: Path) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        size, checksum = temporary.stat().st_size, _checksum(temporary)
        # An older record of this step must not vouch for the new bytes, should this process die between the two renames.
        path.with_suffix(".json").unlink(missing_ok=True)
        temporary.replace(path)
        write_json(path.with_suffix(".json"), {"version": _VERSION, "step": step, "bytes": size, "xxh3": checksum})
        for old in self._records()[self._keep :]:
            old.unlink()
            old.with_suffix(".pt").unlink(missing_ok=True)
        return path

    def load_newest(self) -> dict[str, Any] | None:
        """Return the newest state that is whole, tensors on the CPU; None if there is no checkpoint.

        A damaged checkpoint is renamed to `.damaged`, named in the log, and the one before it is used.

        Raises:
            CorruptError: there are checkpoints but none is whole.
        """
        damaged = []
        for record_path in self._records():
            try:
                return self._load(record_path)
            except CorruptError as error:
                logger.warning("%s; it is set aside and the checkpoint before it is used", error)
                damaged.append(str(error))
                data_path = record_path.with_suffix(".pt")
                if data_path.exists():
                    data_path.replace(data_path.with_suffix(".pt.damaged"))
                record_path.replace(record_path.with_suffix(".json.damaged"))
        if damaged:
            raise CorruptError(f"no checkpoint in {self._folder} is whole: {'; '.join(damaged)}. Start over with --restart")
        return None

    def _records(self) -> list[Path]:
        """Return the records of committed checkpoints, newest first."""
        return sorted(self._folder.glob("step-*.json"), reverse=True)

    def _load(self, record_path: Path) -> dict[str, Any]:
        path = record_path.with_suffix(".pt")
        try:
            record = json.loads(record_path.read_bytes())
            version, size, checksum = record["version"], record["bytes"], record["xxh3"]
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptError(f"checkpoint record {record_path} is damaged ({error})") from error
        if version != _VERSION:
            raise CorruptError(f"checkpoint {path} has format version {version}, and this release reads {_VERSION}")
        if not path.is_file():
            raise CorruptError(f"checkpoint {path} is missing, though it was committed")
        if path.stat().st_size != size:
            raise CorruptError(f"checkpoint {path} has {path.stat().st_size} bytes where {size} were committed")
        if _checksum(path) != checksum:
            raise CorruptError(f"checkpoint {path} is damaged: its bytes are not those that were committed")
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return state


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that the file is there in full or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _checksum(path: Path) -> str:
    state = xxhash.xxh3_64()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            state.update(chunk)
    return state.hexdigest()
