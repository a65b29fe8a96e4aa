"""What the JSON pages of clusters' processes say."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

_ANSWER_SECONDS = 5.0


def ask(url: str) -> dict[str, Any] | None:
    """Return what an address answers, None while nothing answers there."""
    # Never through a proxy of the environment: it is this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=_ANSWER_SECONDS) as answer:
            found: dict[str, Any] = json.load(answer)
            return found
    except (OSError, urllib.error.URLError, ValueError):
        return None
