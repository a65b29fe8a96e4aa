"""The base of every config model."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A frozen, strict config section; every field carries a description, from which docs/configuration.md is made."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
