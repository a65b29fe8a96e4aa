"""Tags: names of label sets that people set, and that only they move.

An experiment's name follows its newest label set; a tag stays where it was put. Both are files in names/, so that one name never
means two things.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any

from storage.cache import Cache, NamedLabelSet
from storage.errors import CacheError, FormatError, MismatchError
from storage.label_set import LabelSet
from storage.upkeep.reading import hold_label_set

_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_ID_LIKE = re.compile(r"[0-9A-Fa-f]{8,}")


def check_tag(name: str) -> None:
    """Refuse what cannot be a tag: it must be a file name everywhere, and no label set's id.

    Raises:
        CacheError: the name and what would do instead.
    """
    if not _TAG.fullmatch(name):
        plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
        instead = re.sub(r"[^A-Za-z0-9._-]+", "-", plain).lstrip("._-").rstrip("-")[:128]
        hint = f", for instance {instead!r}" if instead and not _ID_LIKE.fullmatch(instead) else ""
        shown = name if len(name) <= 80 else f"{name[:77]}..."
        raise CacheError(
            f"{shown!r} cannot be a tag: give 1 to 128 of the letters A-Z and a-z, digits, '.', '_' and '-', the first a letter "
            f"or a digit{hint}"
        )
    if _ID_LIKE.fullmatch(name):
        raise CacheError(
            f"{name!r} cannot be a tag: it looks like the id of a label set; give, for instance, {'v-' + name[:126]!r}"
        )


def check_experiment_name(cache: Cache, *, name: str, label_set: str) -> None:
    """Refuse, before anything is computed, an experiment whose name is a tag of another label set than it will commit.

    Raises:
        MismatchError: it is.
    """
    try:
        named = cache.find_name(name)
    except FormatError:
        return
    if named is not None and named.is_tag and named.label_set != label_set:
        raise MismatchError(
            f"name: {name!r} is a tag of {cache.store.url} that points at {named.label_set}, and this experiment would make "
            f"{label_set}; only people move tags. Give the experiment another name, or take the tag away with "
            f"`decant cache tag {cache.store.url} {named.label_set} {name} --delete`"
        )


def set_tag(url: str, *, label_set: str, name: str, force: bool = False) -> dict[str, Any]:
    """Let a tag point at a label set, given by name or id.

    Args:
        force: also where the name points at another label set already, or is an experiment's.

    Raises:
        CacheError: the name cannot be a tag, or is taken; or the label set was removed meanwhile.
    """
    check_tag(name)
    cache = Cache.at(url)
    opened = LabelSet.open(cache, name_or_id=label_set)
    identity = opened.manifest.id
    data = NamedLabelSet(label_set=identity, is_tag=True).to_bytes(name=name)
    before = _replaceable(cache, name=name, label_set=identity, force=force)
    # Garbage collection may be about to remove what had no name until now.
    with hold_label_set(opened):
        if not force and not cache.store.create(f"names/{name}.json", data):
            # Somebody may have taken the name since: look again.
            before = _replaceable(cache, name=name, label_set=identity, force=force)
        if force:
            cache.store.write(f"names/{name}.json", data)
    moved = f", moved from {before}" if before not in {None, identity} else ""
    doubt = "" if force or cache.store.creates_at_once else "; this store cannot create a file only if there is none: look again"
    return {"tag": name, "label_set": identity, "before": before, "text": f"{name} points at {identity}{moved}{doubt}"}


def _replaceable(cache: Cache, *, name: str, label_set: str, force: bool) -> str | None:
    """Return the id a name points at, None if it is free.

    Raises:
        CacheError: it may not be set without force.
    """
    names, _ = cache.read_names()
    clashing = next((other for other in names if other != name and other.casefold() == name.casefold()), None)
    if clashing is not None:
        raise MismatchError(
            f"{name!r} differs from {clashing!r} of {cache.store.url} only in capitals; on some file systems both are one file. "
            "Choose another tag"
        )
    try:
        named = cache.find_name(name)
    except FormatError as error:
        if force:
            return None
        raise FormatError(f"{error}; or give --force to set the tag in its place") from error
    if named is None or force:
        return named.label_set if named is not None else None
    if named.label_set == label_set and named.is_tag:
        return label_set
    if named.is_tag:
        raise MismatchError(f"{name!r} is a tag of {named.label_set} already; give --force to move it to {label_set}")
    raise MismatchError(
        f"{name!r} is the name of an experiment, which follows its newest label set (now {named.label_set}). Choose another tag, "
        f"or give --force to make it a tag of {label_set}: `decant label` then refuses to use the name"
    )


def delete_tag(url: str, *, name: str, label_set: str | None = None, force: bool = False) -> dict[str, Any]:
    """Take a tag away; the label set stays.

    Args:
        label_set: the one it is thought to point at, by name or id; another one is refused.
        force: also an experiment's name, and a name whose file is damaged.

    Raises:
        CacheError: there is no such tag.
    """
    cache = Cache.at(url)
    try:
        named = cache.find_name(name)
    except FormatError as error:
        if not force:
            raise FormatError(f"{error}; or give --force to remove it") from error
        cache.store.remove(f"names/{name}.json")
        return {"tag": name, "label_set": None, "text": f"{name} was damaged and is removed"}
    if named is None:
        tags = sorted(tag for tag, found in cache.read_names()[0].items() if found.is_tag)
        raise MismatchError(f"{url} has no tag {name!r}; it has {', '.join(tags) if tags else 'none'}")
    if not named.is_tag and not force:
        raise MismatchError(
            f"{name!r} is the name of an experiment, no tag; it follows its newest label set (now {named.label_set}). Give "
            "--force to remove it all the same"
        )
    if label_set is not None and not named.label_set.startswith(label_set):
        expected = _id_of(cache, label_set)
        if expected != named.label_set:
            raise MismatchError(f"{name!r} points at {named.label_set}, not at {expected}; nothing was removed")
    cache.store.remove(f"names/{name}.json")
    return {"tag": name, "label_set": named.label_set, "text": f"{name} is removed; {named.label_set} stays"}


def _id_of(cache: Cache, name_or_id: str) -> str:
    named = cache.find_name(name_or_id)
    return named.label_set if named is not None else LabelSet.open(cache, name_or_id=name_or_id).manifest.id
