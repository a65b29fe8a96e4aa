"""Refuse targets whose blocks could not be stored, before a worker finds out."""

from __future__ import annotations

from storage.block_limits import why_too_large
from storage.errors import ConfigError
from storage.specs import TargetSpec, TextViewSpec


def check_blocks(target: TargetSpec, *, view: TextViewSpec | None, key: str) -> None:
    """Refuse a target of which a full block is more than a block may hold.

    Args:
        view: of texts; None of soft labels of pictures.
        key: of the target in the config, for messages.

    Raises:
        ConfigError: what is too much, and what to choose.
    """
    found = why_too_large(target, view=view)
    if found is not None:
        field, words = found
        raise ConfigError(f"{key}.{field}: {words}")
