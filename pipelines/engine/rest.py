"""Ask an engine over HTTP; what goes wrong is one kind of error, with the reason in words."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

_ANSWER_SECONDS = 10


class SilentError(Exception):
    """No answer, or one that is no JSON."""


def ask(url: str, *, method: str = "GET", seconds: float = _ANSWER_SECONDS) -> Any:
    """Return the JSON of an answer; None of an empty one.

    Raises:
        SilentError: nobody answers, the answer is an error, or it is something else than JSON.
    """
    try:
        request = urllib.request.Request(url, method=method)
        with urllib.request.urlopen(request, timeout=seconds) as answer:
            text = answer.read()
    except urllib.error.HTTPError as error:
        raise SilentError(f"it answers {error.code} {error.reason} to {url}") from error
    except urllib.error.URLError as error:
        reason = error.reason
        raise SilentError(str(getattr(reason, "strerror", None) or reason)) from error
    except (OSError, ValueError) as error:
        raise SilentError(str(error) or type(error).__name__) from error
    except Exception as error:
        # http.client's own, of a server that speaks another protocol.
        raise SilentError(f"it speaks no HTTP ({type(error).__name__})") from error
    try:
        return json.loads(text) if text else None
    except ValueError as error:
        raise SilentError(f"what {url} says is no JSON") from error
