"""How what was lost or damaged is made again: labels by the teacher that ran here, imported ones from the files they came in."""

from __future__ import annotations

from storage.specs import ImportedTeacher, RequestSpec

LABEL_AGAIN = "run decant label again"
IMPORT_AGAIN = "import these labels again (decant cache import-tinyvit, with the same options)"
EITHER_AGAIN = f"{LABEL_AGAIN}, or, where labels were imported, the import"
REPAIR = "run decant repair CONFIG, with the config that made these labels: only what is damaged or missing is computed anew"
EITHER_REPAIR = f"{REPAIR}; where labels were imported, remove it and run the import again"


def are_imported(request: RequestSpec) -> bool:
    """Return whether no teacher that ran here made labels of a request."""
    return isinstance(request.teacher, ImportedTeacher)


def how_to_make_again(request: RequestSpec) -> str:
    """Return what makes labels of a request again, to follow "remove it and"."""
    return IMPORT_AGAIN if are_imported(request) else LABEL_AGAIN


def how_to_mend(*, imported: bool, missing: bool = False) -> str:
    """Return what makes a damaged part whole, or anew one that is missing."""
    if not imported:
        return REPAIR
    return IMPORT_AGAIN if missing else f"remove this tar and {IMPORT_AGAIN}: only its part is imported anew"
