"""Create a file if there is none of that name, also where a store cannot do that at once.

Why it is safe: docs/object_stores.md.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

from storage.retries import StillFailingError

SETTLE_SECONDS = 1.0
"""In a store that cannot create at once, how long a file must stay before its writer counts as the one that made it."""
PROBE = ".probe-"

_WRITER = "decant-writer"
_ONE_REQUEST_BYTES = 5 * 2**30
"""What S3 takes in one request. Fewer stores keep their word when a file comes in pieces."""


def create_at_once(fs: Any, path: str, data: bytes) -> bool:
    """Let a remote store create a file, if there is none; return whether this call made it.

    A try whose answer was lost finds its own file at the next one. S3 keeps with a file who wrote it, so that this is seen;
    elsewhere the answer is then False, and who asked finds the bytes it wanted to write.

    Raises:
        OSError: the store failed, or knows no such request.
    """
    options, writer = _signed(fs)
    if options:
        options["chunksize"] = _ONE_REQUEST_BYTES
    try:
        fs.pipe_file(path, data, mode="create", **options)
    except OSError as error:
        if not _says_taken(error):
            raise
        return bool(options) and _is_by(fs, path, writer=writer)
    return True


def create_by_turns(*, is_there: Callable[[], bool], write: Callable[[], None], is_mine: Callable[[], bool]) -> bool:
    """Create a file with plain writes: look, write, wait, look who wrote last (Fischer's algorithm); return whether this one did.

    Of calls at the same time one makes it, and its file stays, as long as no call needs longer from its first look to the end of
    its write than `SETTLE_SECONDS`. A call that stalls in between may write over a file that another one made.
    """
    if is_there():
        return False
    write()
    time.sleep(SETTLE_SECONDS)
    return is_mine()


def create_in_turns_remotely(fs: Any, path: str, data: bytes) -> bool:
    """Create a file in a remote store that cannot do so at once, as `create_by_turns` does."""
    options, writer = _signed(fs)

    def is_there() -> bool:
        fs.invalidate_cache()
        return bool(fs.exists(path))

    def is_mine() -> bool:
        return _is_by(fs, path, writer=writer) if options else bool(fs.cat_file(path) == data)

    return create_by_turns(is_there=is_there, write=lambda: fs.pipe_file(path, data, **options), is_mine=is_mine)


def can_create_at_once(fs: Any, folder: str) -> bool:
    """Return whether a remote store creates a file only if there is none: a probe is created twice, and read between.

    Raises:
        OSError: the store cannot be written at all.
    """
    path = f"{folder.rstrip('/')}/{PROBE}{uuid.uuid4().hex}"
    try:
        return _creates(fs, path, b"first") is True and _creates(fs, path, b"second") is False and fs.cat_file(path) == b"first"
    finally:
        fs.rm_file(path)


def _creates(fs: Any, path: str, data: bytes) -> bool | None:
    """Return whether a file was created, None where the store refuses to be asked."""
    try:
        return create_at_once(fs, path, data)
    except StillFailingError:
        raise
    except Exception:  # 501, 400, or a client that knows no such argument
        fs.pipe_file(path, data)
        return None


def _says_taken(error: OSError) -> bool:
    # Not every store says in its answer which condition failed, and s3fs looks for that.
    response = getattr(error.__cause__, "response", None)
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
    return isinstance(error, FileExistsError) or status == 412


def _signed(fs: Any) -> tuple[dict[str, Any], str]:
    writer = uuid.uuid4().hex
    return ({"Metadata": {_WRITER: writer}} if "s3" in fs.protocol else {}), writer


def _is_by(fs: Any, path: str, *, writer: str) -> bool:
    try:
        return bool(fs.getxattr(path, _WRITER) == writer)
    except FileNotFoundError:
        return False
