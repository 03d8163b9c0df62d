"""SA-Solver: stochastic Adams methods, as predictor and corrector."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ..core.levels import Level, Step, Value
from .exponential import adams, check_orders, moments, order_at
from .unipc import PredictorCorrector, Weights


@dataclass(frozen=True, kw_only=True)
class SA(PredictorCorrector):
    """SA-Solver: exponential Adams methods for the SDE whose noise is τ, with η = τ².

        x_s = α_s x0 + σ_s e^{−ηh} ε + α_s Σ_j w_j (D̄_j − D̄_t) + σ_s √(1 − e^{−2ηh}) z,
        w_j = ∫_0^h (1 + η) e^{−(1 + η)(h − u)} ℓ_j(u) du

    The corrector replaces the polynomial by one through the new estimate too, with the same z.

    Args:
        order: how many estimates the predictor uses, from 1 to 4.
        corrector_order: how many the corrector uses, the new one among them; 0: no corrector.
        tau: size of the noise; 0 is the ODE.
        interval: noise ratios [lo, hi] where a step has noise; 0 elsewhere.
        first_order_steps: how many of the first steps are of first order.
        lower_order_final: whether the order falls to 1 over the last steps.

    References:
        SA-Solver: Stochastic Adams Solver for Fast Sampling of Diffusion Models,
        https://arxiv.org/abs/2309.05019
            Shuchen Xue, Mingyang Yi, Weijian Luo, Shifeng Zhang, Jiacheng Sun, Zhenguo Li,
            Zhi-Ming Ma
    """

    order: int = 3
    corrector_order: int = 3
    tau: float = 1.0
    interval: tuple[float, float] = (0.0, math.inf)
    first_order_steps: int = 1
    lower_order_final: bool = True
    name = "sa"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_orders(self.name, self.first_order_steps, order=self.order)
        if self.corrector_order != 0 or isinstance(self.corrector_order, bool):
            check_orders(self.name, 1, corrector_order=self.corrector_order)
        if not 0 <= self.tau <= 3:
            raise ValueError(f"sa: tau must be from 0 to 3, not {self.tau!r}")
        if len(self.interval) != 2 or not 0 <= self.interval[0] < self.interval[1]:
            raise ValueError(
                "sa: the interval must be two noise ratios with 0 <= lo < hi, not "
                f"{self.interval!r}"
            )

    @property
    def stochastic(self) -> bool:
        return self.tau > 0

    @property
    def convergence(self) -> int:
        """Order of the corrector, or of the predictor; with noise the weak order is 2 at most."""
        order = min(self.order + 1, self.corrector_order) if self.corrector_order else self.order
        return min(order, 2) if self.tau else order

    @property
    def keeps(self) -> int:
        return max(self.order, self.corrector_order - 1)

    @property
    def corrects(self) -> bool:
        return self.corrector_order > 0

    def noise(self, level: Level) -> Value:
        low, high = self.interval
        rho = level.rho
        if isinstance(rho, Tensor):
            return ((rho >= low) & (rho <= high)).double() * self.tau**2
        return self.tau**2 if low <= rho <= high else 0.0

    def orders(self, step: Step, history: int) -> int:
        return order_at(self, step, history)

    def predicting(self, h: float, eta: float, places: Weights) -> Weights:
        return adams(h, 1 + eta, places)

    def correcting(self, h: float, eta: float, places: Weights, order: int) -> Weights:
        if self.corrector_order == 1:  # the new estimate alone stands for the whole step
            return (moments((1 + eta) * h, 1)[0] if 0 < h < math.inf else 0.0,)
        return adams(h, 1 + eta, (h, *places[: self.corrector_order - 2]))
