"""What the tables of a recipe share: nothing misspelt, nothing converted."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

# TOML has lists only, so these alone may be converted; every other value must be of its own type.
Widths = Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1, strict=False)]
Shares = Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(strict=False)]
Words = Annotated[tuple[str, ...], Field(strict=False)]
Rate = Annotated[float, Field(ge=0, lt=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
