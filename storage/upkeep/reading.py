"""Readers hold what they read, so that gc waits for them, too."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pyarrow.compute as pc

from storage.errors import CacheError, CorruptError
from storage.label_set import LabelSet
from storage.standing import still_stands
from storage.upkeep.leases import hold_requests


@contextlib.contextmanager
def hold_label_set(label_set: LabelSet) -> Iterator[None]:
    """Keep gc off a label set and the parts it names until the block ends.

    A cache that cannot be written is read without a hold, and without a word: whoever may not write there cannot ask gc to wait.

    Raises:
        CorruptError: the label set is not there any more as it was opened.
        CacheError: gc has been removing for too long.
    """
    cache, manifest = label_set.cache, label_set.manifest
    if not _can_be_written(label_set):
        yield
        return
    requests = {manifest.request.fingerprint(), *pc.unique(label_set.parts.column("request")).to_pylist()}
    hold = hold_requests(cache, requests=requests)
    hold.__enter__()
    try:
        if not still_stands(cache, manifest):
            raise CorruptError(
                f"{cache.store.url}/{label_set.folder} was removed or replaced while it was opened; run the same command again, "
                f"or, where decant cache gc took it, {label_set.again}"
            )
        yield
    finally:
        # What was read is read: a store that cannot be reached now takes nothing from it, and gc forgets the hold in a day.
        with contextlib.suppress(CacheError):
            hold.__exit__(None, None, None)


def _can_be_written(label_set: LabelSet) -> bool:
    try:
        label_set.cache.store.check_writable()
    except CacheError:
        return False
    return True
