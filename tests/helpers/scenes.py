"""Three samples at a step of each kind of schedule, what the toy network says of them, and how
guidance is checked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from guidestar import Guided, Step
from helpers.toys import COND, NEGATIVE, UNCOND, Judge, Spy, col, net, noise, steps, toy

PLACES = ("vp", "ve", "flow", "mixed")
TARGET, SEEDS = torch.tensor([3, 0, 7]), [11, 12, 13]


def weak(x: Tensor, level: Any, c: Any) -> Tensor:
    """A worse network: half as sure."""
    return toy(0.8 * x, level, c) / 2


@dataclass
class Scene:
    """Three samples at a step, and what the network says of them."""

    step: Step
    x: Tensor

    def __post_init__(self) -> None:
        t, s = self.step.t, self.step.s
        self.a, self.s, self.a_s, self.s_s = (
            col(v, self.x) + 0 * self.x for v in (t.alpha, t.sigma, s.alpha, s.sigma)
        )
        self.c, self.u, self.n = (self.d(v) for v in (COND, UNCOND, NEGATIVE))

    def d(self, c: Any) -> Tensor:
        return toy(self.x, self.step.t, c)

    def eps(self, d: Tensor) -> Tensor:
        return (self.x - self.a * d) / self.s

    def guided(self, guidance: Any, *, spy: Any = None, **own: Any) -> Guided:
        nets = {"main": net(spy or Spy(), **own), "weak": net(Spy(weak), **own)}
        return Guided(
            guidance, nets, classifiers={"classifier": Judge()}, target=TARGET, seeds=SEEDS
        )

    def run(self, guidance: Any, state: Any = None, *, step: Step | None = None, **own: Any) -> Any:
        return self.guided(guidance, **own)(self.x, step or self.step, state)

    def check(self, guidance: Any, x0: Tensor, eps: Tensor | None = None, **nets: Any) -> None:
        out = self.run(guidance, **nets)[0]
        torch.testing.assert_close(out.x0, x0, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(
            out.eps, self.eps(x0) if eps is None else eps, rtol=1e-9, atol=1e-9
        )


def scenes(place: str, shape: tuple[int, ...] = (3, 4, 2)) -> list[Scene]:
    made = []
    for i, step in enumerate(steps(place)):
        x = noise(*shape, seed=i)
        made.append(Scene(step, x * (col(step.t.alpha, x) ** 2 + col(step.t.sigma, x) ** 2).sqrt()))
    return made


def total(x: Tensor) -> Tensor:
    return x.flatten(1).sum(1).reshape(-1, *[1] * (x.ndim - 1))
