"""What classifier and CLIP guidance share: the gradient of a log-probability, at x_t or through the
clean estimate of a pass.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Sequence
from typing import Any, Literal

from torch import Tensor

from ...core.levels import Level, Step
from ...core.passes import COND, NULL, Pass
from ...core.prediction import Prediction
from ..term import Direction, Live, Traits

LogProb = Callable[[Tensor, Level, Tensor], Tensor]


class Climbing(Direction, ABC):
    """A term that climbs ``log_prob(x, level, target) -> [B]``: of x_t, or through the clean
    estimate of a pass.
    """

    through: (
        Literal["cond", "uncond"] | None
    )  # a method has it among its arguments, in a place of its own

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.through not in (None, "cond", "uncond"):
            raise ValueError(
                f"{self.name}: through must be one of None, cond, uncond, not {self.through!r}"
            )

    @property
    def traits(self) -> Traits:
        return Traits(gradients=1, differentiates=self._through)

    @property
    def _through(self) -> Pass | None:
        return {None: None, "cond": COND, "uncond": NULL}[self.through]

    def passes(self, step: Step) -> tuple[Pass, ...]:
        return (self._through,) if self._through else ()

    def uphill(
        self,
        live: Live,
        log_prob: LogProb,
        target: Tensor | None,
        predictions: Sequence[Prediction],
    ) -> Tensor:
        """Return ``∇_{x_t} log_prob`` ``[b, *S]``; a clean estimate is looked at as data, at the
        clean level.
        """
        level = live.step.grid.schedule.clean if self.through else live.step.t
        return live.slope(
            f"{self.name}: the log-probability",
            lambda x: log_prob(x, level, target),  # type: ignore[reportArgumentType]
            predictions[0] if predictions else None,
        )

    def trusted(self, net: Any, name: str) -> tuple[float, float] | None:
        """Return where ``net`` is to be used: as written, else up to the noise ratio to which it is
        trusted.

        Raises:
            ValueError: it was found to know nothing anywhere.
        """
        rho_max = getattr(net, "rho_max", None)
        if self.interval is not None or self.through is not None or rho_max is None:
            return self.interval
        if not rho_max > 0:
            raise ValueError(
                f"{self.name}: {name!r} was found to know nothing at any noise ratio; give "
                "interval= to use it all the same"
            )
        return 0.0, rho_max
