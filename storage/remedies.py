"""How what was lost or damaged is made again: labels by the teacher that ran here, imported ones from the files they came in."""

from __future__ import annotations

from storage.specs import ImportedTeacher, RequestSpec

LABEL_AGAIN = "run decant label again"
IMPORT_AGAIN = "import these labels again (decant cache import-tinyvit, with the same options)"
EITHER_AGAIN = f"{LABEL_AGAIN}, or, where labels were imported, the import"


def how_to_make_again(request: RequestSpec) -> str:
    """Return what makes labels of a request again, to follow "remove it and"."""
    return IMPORT_AGAIN if isinstance(request.teacher, ImportedTeacher) else LABEL_AGAIN
