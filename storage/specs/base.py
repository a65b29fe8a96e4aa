"""The base of every spec."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from storage.hashing import fingerprint


class Spec(BaseModel):
    """A frozen, strict description whose fingerprint depends on its fields and nothing else."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form that is hashed and stored."""
        return self.model_dump(mode="json")

    def fingerprint(self) -> str:
        """Return the sha256 of the canonical JSON form."""
        return fingerprint(self.to_json())
