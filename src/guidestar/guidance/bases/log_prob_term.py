"""The base of classifier and CLIP guidance: the gradient of a log-probability."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal, Protocol, cast, runtime_checkable

from torch import Tensor

from ...core.levels import Level, Step
from ...core.passes import COND, NULL, Pass
from ...core.prediction import Prediction
from ...core.rounds import Group
from ...core.slopes import Slope
from ..context import one_each
from ..term import Direction, Live, Traits

LogProb = Callable[[Tensor, Level, Tensor], Tensor]
"""``log_prob(x [B, *S], level, target) -> [B]``, differentiable in x."""


@runtime_checkable
class LogProbModel(Protocol):
    """A classifier, or a CLIP model."""

    def log_prob(self, x: Tensor, level: Level, target: Tensor, /) -> Tensor:
        """Return ``log p(target | x)`` of each sample, ``[B]``."""
        ...


def _owner(function: object) -> object:
    """Return the object whose method a function is, if any."""
    return getattr(function, "__self__", None)


class Climbing(Direction, ABC):
    """A term that climbs ``log_prob(x, level, target)``, of x_t or of a clean estimate.

    A method declares ``through`` among its arguments: the pass of the clean estimate (None: x_t).
    """

    through: Literal["cond", "uncond"] | None

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

    @property
    @abstractmethod
    def climbed(self) -> tuple[LogProb | None, Tensor | None]:
        """The function that it climbs, and its target of each sample of the run, ``[B, …]``."""

    def slope(self, group: Group) -> Slope | None:
        """Return the gradient at x_t of a model's log-probability; a user's function is called
        for its own run alone.
        """
        log_prob, target = self.climbed
        if self.through or log_prob is None or target is None:
            return None
        if not isinstance(_owner(log_prob), LogProbModel):
            return None
        own = group.own_rows(target)
        what = f"{self.name}: the log-probability"

        def climb(x: Tensor, level: Level, target: Tensor | None) -> Tensor:
            return one_each(what, log_prob(x, level, cast("Tensor", target)), x)

        return Slope(
            function=climb,
            key=log_prob,
            x=group.x_t,
            level=group.step.t,
            target=own.to(group.x_t.device, non_blocking=True),
        )

    def ascend(
        self,
        live: Live,
        log_prob: LogProb | None,
        target: Tensor | None,
        predictions: Sequence[Prediction],
    ) -> Tensor:
        """Return ``∇_{x_t} log_prob`` ``[b, *S]``; a clean estimate is at the clean level.

        Args:
            live: the samples.
            log_prob: as the term is bound to it.
            target: of these samples (None: a user's function that needs none).
            predictions: of ``passes(step)``.
        """
        if live.requested_slope is not None:
            return live.requested_slope.gradient
        assert log_prob is not None
        level = live.step.grid.schedule.clean if self.through else live.step.t
        return live.slope(
            f"{self.name}: the log-probability",
            lambda x: log_prob(x, level, cast("Tensor", target)),
            predictions[0] if predictions else None,
        )

    def usable_interval(self, net: object, name: str) -> tuple[float, float] | None:
        """Return the interval of ``net``: as written, else up to its calibrated ``rho_max``.

        Raises:
            ValueError: calibration found no noise ratio at which it is of use.
        """
        rho_max: float | None = getattr(net, "rho_max", None)
        if self.interval is not None or self.through is not None or rho_max is None:
            return self.interval
        if not rho_max > 0:
            raise ValueError(
                f"{self.name}: calibration found {name!r} of no use at any noise ratio; give "
                "interval= to use it all the same"
            )
        return 0.0, rho_max
