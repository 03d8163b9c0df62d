"""The rows of one step of a learnt pipeline, as a run reads a call of a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.denoiser import Condition
from ..objects import Arguments
from .families import Family
from .probe import Combination, Layout

ROWS = "rows"
"""The name of the tensor of a condition that holds its rows of a call."""
_FAMILY = Family(encodes=())


@dataclass(eq=False)
class StepRows:
    """A step's rows, as `Run` reads a call of a network."""

    c: Combination
    layout: Layout
    arguments: Arguments
    family: Family = _FAMILY
    has_settings: bool = True

    @property
    def parts(self) -> tuple[str, ...]:
        """Whose rows there are."""
        return tuple(self.layout.parts)

    @property
    def batch(self) -> int:
        """How many samples."""
        return self.layout.batch

    @property
    def whole(self) -> Tensor:
        """What the scheduler steps with."""
        return self.c.sample

    @property
    def prompts(self) -> dict[str, Tensor]:
        """The request's tensors, and the rows."""
        return dict(self.condition("cond"))

    def encoded(
        self, tensors: Mapping[str, Tensor], names: int, *, away: bool = False
    ) -> Condition:
        """Refuse prompts in the expression: which of the network's arguments they are is not
        known.
        """
        raise ValueError("prompts within an expression are not supported here")

    def condition(self, part: str) -> Condition:
        """Return the condition of one part, for all samples."""
        place, batch = self.layout.parts[part], self.layout.batch
        rows = torch.arange(place.block * batch, (place.block + 1) * batch)
        call = self.c.calls[place.call]
        prompts = {name: t[rows.to(t.device)] for name, t in call.prompts().items()}
        # The rows of different calls have another width, so that they stay in calls of their own.
        return Condition({**prompts, ROWS: rows[:, None].expand(-1, place.call + 1)})
