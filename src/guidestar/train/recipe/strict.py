"""What the tables of a recipe share: nothing misspelt, nothing converted."""

from __future__ import annotations

from abc import ABC
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

# TOML has lists only, so these alone may be converted; every other value must be of its own type.
# The bounds are beyond what anybody trains, and below what takes a machine down unnoticed.
Width = Annotated[int, Field(gt=0, le=65_536)]
Depth = Annotated[int, Field(gt=0, le=1_000)]
Pixels = Annotated[int, Field(gt=0, le=16_384)]
StepCount = Annotated[int, Field(gt=0, le=10_000)]
Widths = Annotated[tuple[Width, ...], Field(min_length=1, max_length=16, strict=False)]
Shares = Annotated[
    tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(max_length=1_000, strict=False)
]
Words = Annotated[tuple[str, ...], Field(max_length=1_000_000, strict=False)]
Rate = Annotated[float, Field(ge=0, lt=1)]


class Strict(BaseModel, ABC):
    """A table of a recipe: unknown keys, and values of another type, are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
