"""Load a tokenizer, whatever library made it."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from typing import Any

from pipelines.teachers.base import describe
from storage.errors import DecantError, TeacherError
from storage.sources.files import open_store, reaching
from storage.text.tokenizer import TextTokenizer
from storage.text.tokenizer_backends import wrap_tokenizer

_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def load_tokenizer(name: str, *, kwargs: Mapping[str, Any] | None = None) -> TextTokenizer:
    """Load a tokenizer.

    Args:
        name: `package.module:factory` that returns a tokenizer of transformers or tokenizers; the path or URL of a JSON file of
            tokenizers; a hub id or local folder that transformers' AutoTokenizer takes.
        kwargs: further arguments of the factory or of AutoTokenizer.

    Raises:
        TeacherError: there is none of that name, it does not load, or it is no tokenizer whose ids are a function of the text.
    """
    arguments = dict(kwargs or {})
    try:
        if _FACTORY.fullmatch(name):
            module, _, attribute = name.partition(":")
            return wrap_tokenizer(getattr(importlib.import_module(module), attribute)(**arguments), name=name)
        if name.endswith(".json"):
            return wrap_tokenizer(_read_json(name), name=name)
        from transformers import AutoTokenizer

        return wrap_tokenizer(AutoTokenizer.from_pretrained(name, **arguments), name=name)
    except (DecantError, MemoryError):
        raise
    except Exception as error:  # libraries and factories raise what they like
        raise TeacherError(
            f"tokenizer {name} cannot be loaded: {describe(error)}. Give a hub id, a local folder with tokenizer.json, a JSON "
            "file of tokenizers, or package.module:factory"
        ) from error


def _read_json(url: str) -> Any:
    from tokenizers import Tokenizer

    fs, path = open_store(url)
    with reaching(url, action="read the tokenizer"):
        data: bytes = fs.cat_file(path)
    return Tokenizer.from_buffer(data)
