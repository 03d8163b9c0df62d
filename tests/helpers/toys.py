"""A small world for the tests of passes and guidance, written in plain torch.

`toy` is a denoiser whose answer depends on x, the level and the condition, is smooth, not linear,
different for each position, and unchanged when (x, alpha, sigma) are all divided by the same
number.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from guidestar import VE, VP, Flow, Level, Net, Step, uniform
from guidestar.core.denoiser import Condition
from guidestar.core.evaluation import evaluate
from guidestar.core.perturbation import Attention
from guidestar.core.rounds import Evaluated, Group, Round

SCHEDULES = {"vp": VP.linear(), "ve": VE(), "flow": Flow()}
COND, UNCOND, NEGATIVE = 1.0, 0.0, -0.7
WORDS = {"": 0.0, "cat": 0.4, "dog": -0.9, "blurry": 1.7}


def col(value: Any, x: Tensor) -> Tensor:
    """Shape a number, or one number a sample, like x."""
    value = torch.as_tensor(value, dtype=x.dtype)
    return value.reshape(-1, *[1] * (x.ndim - 1)) if value.ndim else value


def toy(x: Tensor, level: Level, c: Any) -> Tensor:
    a, s, c = col(level.alpha, x), col(level.sigma, x), col(c, x)
    pattern = torch.linspace(-1, 1, x[0].numel(), dtype=x.dtype).reshape(x.shape[1:])
    h = (
        x * (a * a + s * s).rsqrt() * (1 + 0.3 * c)
        + c * pattern
        + 0.2 * a * (a * a + s * s).rsqrt()
    )
    return 1.5 * h / (1 + h.abs())


def log_prob(x: Tensor, level: Level, target: Tensor) -> Tensor:
    """``−(2 + y) Σ (x/n − y/10)²/2``, whose gradient is ``−(2 + y)(x/n − y/10)/n``."""
    n, y = (col(level.alpha, x) ** 2 + col(level.sigma, x) ** 2).sqrt(), col(target, x)
    return (-(2 + y) * (x / n - y / 10) ** 2 / 2).flatten(1).sum(1)


def log_prob_gradient(x: Tensor, level: Level, target: Tensor) -> Tensor:
    n, y = (col(level.alpha, x) ** 2 + col(level.sigma, x) ** 2).sqrt(), col(target, x)
    return -(2 + y) * (x / n - y / 10) / n


@dataclass
class Spy:
    """The toy denoiser; it remembers the conditions and inputs of each call."""

    answer: Any = toy
    calls: list[list[float]] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)
    levels: list[Level] = field(default_factory=list)
    moved: Any = None

    def layers(self) -> ToyLayers:
        return ToyLayers(self)

    def __call__(self, x: Tensor, level: Level, cond: Condition) -> Any:
        c = cond["c"] if cond else torch.zeros(len(x))
        assert len(c) == len(x)
        assert all(not isinstance(v, Tensor) or len(v) == len(x) for v in level)
        self.calls.append([round(v, 3) for v in c.tolist()])
        self.inputs.append(x)
        self.levels.append(level)
        return self.answer(x, level, c + self.moved(x, level, cond).to(c) if self.moved else c)

    @property
    def rows(self) -> int:
        return sum(map(len, self.calls))


@dataclass
class ToyLayers:
    """The layers of the toy: a perturbation moves the condition it is told, by as much as the
    layer's output changes.

    The layer "flat" attends among all numbers of a sample, "map" among its places, "map2" too, more
    sharply.
    """

    spy: Spy

    def find(self, kind: str, names: Any = ()) -> tuple[str, ...]:
        assert set(names) <= {"flat", "map", "map2"}
        return tuple(names) or ("flat",)

    @contextmanager
    def moving(self, by: Any, rows: Any = None):
        before = self.spy.moved

        def moved(x: Tensor, level: Level, cond: Condition) -> Tensor:
            if rows is None:
                return by(x, level, cond)
            assert len(x) == rows.of
            mine = torch.arange(rows.start, rows.stop)
            shift = by(x[mine], level.take(mine), cond.take(mine) if cond else cond).double()
            return (
                before(x, level, cond).double() if before else shift.new_zeros(len(x))
            ).index_copy(0, mine, shift)

        self.spy.moved = moved
        try:
            yield
        finally:
            self.spy.moved = before

    def attending(self, names: Any, attend: Any, rows: Any = None):
        def by(x: Tensor, level: Level, cond: Condition) -> Tensor:
            places = bool({"map", "map2"} & set(names))
            h = x * (col(level.alpha, x) ** 2 + col(level.sigma, x) ** 2).rsqrt()
            h = (
                (h.flatten(2).mT if h.ndim > 2 else h[:, None])
                if places
                else h.flatten(1)[..., None]
            )
            q, k, v = (t[:, None] for t in ((6 if "map2" in names else 3) * h, h, 2 * h))
            grid = lambda: tuple(x.shape[2:] if places else x.shape[1:])
            a = Attention(
                query=q,
                key=k,
                value=v,
                image=slice(0, h.shape[1]),
                with_query=lambda q: F.scaled_dot_product_attention(q, k, v),
                find_grid=grid,
            )
            return (attend(a) - a.compute()).square().mean((1, 2, 3)) / 2

        return self.moving(by, rows)

    def contrasting(self, names: Any, contrast: Any):
        def by(x: Tensor, level: Level, cond: Condition) -> Tensor:
            h = (x * (col(level.alpha, x) ** 2 + col(level.sigma, x) ** 2).rsqrt()).flatten(1)[
                :, None, :, None
            ]
            good, bad = (torch.tanh(h + col(cond[name], h)) for name in ("c", "against_c"))
            return (contrast(good, bad) - good).mean((1, 2, 3))

        return self.moving(by)

    def list_names(self, kind: str) -> tuple[str, ...]:
        return ("flat", "map", "map2")

    def silencing(self, names: Any, rows: Any = None):
        return self.moving(lambda x, level, cond: torch.full((len(x),), -0.25), rows)

    def skipping(self, names: Any, rows: Any = None):
        return self.moving(lambda x, level, cond: torch.full((len(x),), 0.5), rows)

    def entering(self, names: Any, change: Any, rows: Any = None):
        """Each number of a sample is a token."""

        def by(x: Tensor, level: Level, cond: Condition) -> Tensor:
            h = x * (col(level.alpha, x) ** 2 + col(level.sigma, x) ** 2).rsqrt()
            tokens = h.flatten(1)[..., None]
            return (change(tokens) - tokens).square().mean((1, 2)) / 2

        return self.moving(by, rows)


@dataclass
class Judge:
    """A classifier as a model carries one."""

    rho_max: float | None = None
    answer: Any = log_prob

    def log_prob(self, x: Tensor, level: Level, target: Tensor) -> Tensor:
        return self.answer(x, level, target)


@dataclass
class Seer:
    """A CLIP as a model carries one: a caption is embedded as a number, ten times its word's."""

    noise_aware: bool = True
    rho_max: float | None = None
    answer: Any = log_prob

    def embed_text(self, captions: list[str]) -> Tensor:
        return torch.tensor([[10 * WORDS[c]] for c in captions], dtype=torch.float64)

    def log_prob(self, x: Tensor, level: Level, target: Tensor) -> Tensor:
        return self.answer(x, level, target[:, 0])


@dataclass
class Critic:
    """A discriminator as a model carries one."""

    answer: Any = log_prob

    def log_odds(self, x: Tensor, level: Level) -> Tensor:
        return self.answer(x, level, 3.0)


@dataclass
class Scaled:
    """A linear operator on samples of any shape: ``A x = k x``."""

    k: float = 1.5

    def __call__(self, x: Tensor) -> Tensor:
        return self.k * x

    def transpose(self, y: Tensor) -> Tensor:
        return self.k * y


def condition(*c: float) -> Condition:
    return Condition(c=torch.tensor(c, dtype=torch.float64))


def encode(names: list[str | int]) -> Condition:
    return condition(*(WORDS[n] if isinstance(n, str) else n / 10 for n in names))


def net(denoiser: Any, cond: Condition | None = None, **more: Any) -> Net:
    more = {"negative": condition(NEGATIVE), "encode": encode, **more}
    return Net(denoiser=denoiser, cond=cond or condition(COND), null=condition(UNCOND), **more)


def evaluated(
    passes: Any,
    x: Tensor,
    at: Level | Step,
    nets: Any,
    through: Any = frozenset(),
    streams: Any = None,
    **options: Any,
) -> dict[Any, Evaluated]:
    """Return the predictions of passes at one level, or step, of all samples."""
    step = at if isinstance(at, Step) else Step(at, at, 0, uniform(Flow(), 2))
    group = Group(x_t=x, step=step, batch=len(x), streams=streams)
    return evaluate(
        Round(group=group, passes=passes, nets=nets, through=through, needs_grad=True, **options)
    )[0]


def moved(
    solver: Any, predict: Any, x: Tensor, step: Step, draw: Any, memory: Any = None
) -> tuple[Tensor, Any]:
    """Return where a solver moves ``x`` in one step, with the step's own ``draw``, and what it
    keeps.
    """
    with torch.no_grad():
        moving = solver.move(x, step, memory or {}, draw)
        point = next(moving)
        while True:
            try:
                point = moving.send(predict(point.x, point.step, {})[0])
            except StopIteration as end:
                return end.value


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def mixed_step(name: str, rho_t: list[float], rho_s: list[float], index: int = 3) -> Step:
    schedule = SCHEDULES[name]
    t, s = (schedule.at_rho(torch.tensor(r, dtype=torch.float64)) for r in (rho_t, rho_s))
    return Step(t, s, index, uniform(schedule, 10))


def steps(name: str) -> list[Step]:
    """Two successive steps: of a VP, VE or flow schedule, or of three samples at levels of their
    own.
    """
    if name == "mixed":
        return [
            mixed_step("flow", [9.0, 1.3, 0.2], [5.0, 0.7, 0.1], 3),
            mixed_step("flow", [5.0, 0.7, 0.1], [2.0, 0.3, 0.05], 4),
        ]
    return [uniform(SCHEDULES[name], 10).step(i) for i in (4, 5)]
