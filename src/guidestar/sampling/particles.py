"""Populations: several particles a sample, weighed by a reward and resampled on the way."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, Literal

import torch
from torch import Tensor

from ..core.evaluation import drive
from ..core.levels import Grid
from ..core.rng import Draw, checked_seeds
from .run import advance, noise
from .solver import Predict, Solver

Reward = Callable[[Tensor], Tensor]
"""``reward(x0 [N, *S]) -> [N]``: of clean samples, or of clean estimates on the way; need not be
differentiable.
"""

Potential = Literal["difference", "max", "sum"]


@dataclass(frozen=True, kw_only=True)
class Population:
    """What a run of particles gave.

    Args:
        x: particles ``[B, K, *S]``.
        rewards: of each, ``[B, K]``, CPU float64.
        weights: ``[B, K]``, with sum 1 over K: particle k stands for that share of the tilted
            distribution.
        sizes: effective sample size ``(Σ w)²/Σ w²`` of the potential after each step (and at the
            end, of ``weights``), one ``[B]`` a step.
        starts: how many of the K starts the weights rest on,
            ``1/Σ_a (Σ w of those from start a)²``, ``[B]``: at most the last of ``sizes``, which
            does not know that particles are copies.
        evaluations: network evaluations of each particle, ``B·K`` of them.
    """

    x: Tensor
    rewards: Tensor
    weights: Tensor
    sizes: tuple[Tensor, ...]
    starts: Tensor
    evaluations: tuple[int, ...] = ()

    @property
    def best(self) -> Tensor:
        """The particle of the highest reward of each sample, ``[B, *S]``."""
        return self.x[torch.arange(len(self.x)), self.rewards.argmax(1)]

    def mean(self, of: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
        """Return the weighted mean of ``of(x [B·K, *S])`` over each sample's particles."""
        values = of(self.x.flatten(0, 1)).unflatten(0, self.x.shape[:2])
        weights = self.weights.to(values.device, values.dtype)
        return (weights.reshape(*weights.shape, *[1] * (values.ndim - 2)) * values).sum(1)


def crowd(seeds: Sequence[int], particles: int) -> list[int]:
    """Return a seed for each particle, ``[B·K]``, those of a sample one after the other.

    The first particle of each sample has the sample's own seed.
    """
    _check_count("particles", particles, 1, MOST_PARTICLES)
    return [seed if k == 0 else _mixed(seed, k) for seed in seeds for k in range(particles)]


def _mixed(seed: int, k: int) -> int:
    return int.from_bytes(
        hashlib.blake2b(f"particle/{seed}/{k}".encode(), digest_size=7).digest(), "big"
    )


def effective_size(log_weights: Tensor) -> Tensor:
    """Return ``(Σ w)²/Σ w²``: K for equal weights, 1 where one has it all."""
    return 1 / (log_weights.softmax(-1) ** 2).sum(-1)


def systematic(weights: Tensor, u: float) -> Tensor:
    """Choose K ancestors by systematic resampling: those at ``(u + i)/K`` of the cumulated weights.

    Particle k is chosen ⌊K w⌋ or ⌈K w⌉ times, and K w times on average over u.

    Args:
        weights: with sum 1.
        u: uniform in [0, 1).
    """
    places = (u + torch.arange(len(weights), dtype=weights.dtype)) / len(weights)
    return torch.searchsorted(weights.cumsum(0), places, right=True).clamp_max(len(weights) - 1)


@dataclass
class _Weighing:
    """The potentials ``[B, K]`` of each particle's way: those multiplied in, and what the next is
    made of.
    """

    potential: Potential
    spent: Tensor
    seen: Tensor

    def log(self, score: Tensor, last: bool) -> Tensor:
        """Return the log-weights ``[B, K]``: of the next potential, were particles resampled now.

        At the end it is what makes the product of all of a way's potentials ``exp(score)``.
        """
        if last or self.potential == "difference":
            return score - self.spent
        return self._met(score)

    def _met(self, score: Tensor) -> Tensor:
        return torch.maximum(self.seen, score) if self.potential == "max" else self.seen + score

    def take(self, score: Tensor, ancestors: Tensor, resampled: Tensor) -> None:
        """Multiply the potential in where samples are resampled, and let particles have their
        ancestors' way.
        """
        spent = self.spent + torch.where(resampled[:, None], self.log(score, False), 0.0)
        self.spent, self.seen = spent.gather(1, ancestors), self._met(score).gather(1, ancestors)


def steer(
    predict: Predict,
    *,
    grid: Grid,
    solver: Solver | str = "ddpm",
    seeds: Sequence[int],
    particles: int,
    reward: Reward,
    shape: Sequence[int],
    strength: float = 1.0,
    potential: Potential = "difference",
    every: int | None = None,
    threshold: float = 0.5,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Population:
    """Sample from ``p(x_0) exp(λ r(x_0))`` with K particles a sample (Feynman–Kac steering).

    After each ``every`` steps particle k is weighed by a potential, and where the effective sample
    size of its sample falls below a share of K, the K particles are resampled, which multiplies the
    potential in. With r_t the rewards of the clean estimates after those steps, they are

        difference: exp(λ(r_t − r_u)), u the last resampling;  max: exp(λ max r);  sum: exp(λ Σ r)

    and the last, at data, is what makes the product of all that were multiplied in
    ``exp(λ r(x_0))``: as K grows, the weighted particles are exactly of the sampler's distribution
    times ``exp(λ r(x_0))``, whatever the rewards on the way.

    max and sum tilt anew at each resampling, so on the way particles stand for more than the end
    wants: resample a few times a run only. Where that went wrong, ``starts`` is small.

    Args:
        predict: a `Guided` of B·K samples (conditions of each sample K times; seeds
            ``crowd(seeds, K)``), or any ``predict(x_t, step, gstate)``.
        grid: levels to walk.
        solver: a solver that draws noise, or its name.
        seeds: one integer a sample.
        particles: K.
        reward: of clean samples, ``[N, *S] -> [N]``; a classifier's ``log_prob`` makes its
            posterior.
        shape: of one sample.
        strength: λ.
        potential: "difference", "max" or "sum".
        every: resample after each so many steps at most; by default each step for "difference", and
            a third of the run for the others. 0 for never, which leaves K independent samples: with
            ``best``, best-of-K.
        threshold: the share of K below which the effective sample size lets particles be resampled.
        device: of the samples.
        dtype: of the samples.

    K evaluations a step, and K rewards. Nothing is differentiated.

    Raises:
        ValueError: a reward that is not one finite number a particle; a solver that draws no noise,
            by which copies of a particle would stay equal.

    References:
        A General Framework for Inference-time Scaling and Steering of Diffusion Models,
        https://arxiv.org/abs/2501.06848
            Raghav Singhal, Zachary Horvitz, Ryan Teehan, Mengye Ren, Zhou Yu, Kathleen McKeown,
            Rajesh Ranganath
        Practical and Asymptotically Exact Conditional Sampling in Diffusion Models,
        https://arxiv.org/abs/2306.17775
            Luhuan Wu, Brian L. Trippe, Christian A. Naesseth, David M. Blei, John P. Cunningham
    """
    from . import get_solver

    solver = get_solver(solver)
    _check(solver, particles, potential, every, strength, threshold)
    solver.check(predict, grid)
    own = Draw(checked_seeds(seeds))
    draw = Draw(crowd(own.seeds, particles))
    x = noise(shape, grid[0], draw, device=device, dtype=dtype)
    zeros = torch.zeros(len(seeds), particles, dtype=torch.float64)
    weighing = _Weighing(potential, zeros, zeros if potential != "max" else zeros - torch.inf)
    every = (
        every if every is not None else 1 if potential == "difference" else max(1, grid.steps // 3)
    )
    starts = torch.arange(particles).expand(len(seeds), -1)
    state, sizes, rewards, log = None, [], zeros, zeros
    for index in range(grid.steps):
        last = index + 1 == grid.steps
        (state,) = drive(advance(predict, solver, x, grid.step(index), draw, state))
        x = state.x
        with torch.no_grad():
            rewards = _rewards(reward, x if last else state.prediction.x0, zeros)
        log = weighing.log(strength * rewards, last)
        sizes.append(effective_size(log))
        if not last and every and (index + 1) % every == 0:
            resampled = sizes[-1] < threshold * particles
            ancestors = _ancestors(log.softmax(1), own.at(index).uniform("resample"), resampled)
            weighing.take(strength * rewards, ancestors, resampled)
            starts = starts.gather(1, ancestors)
            rows = (ancestors + particles * torch.arange(len(seeds))[:, None]).flatten()
            x = x[rows.to(x.device)]
            state = replace(state, memory=_taken(state.memory, rows), kept=_taken(state.kept, rows))
    weights = log.softmax(1)
    return Population(
        x=x.unflatten(0, zeros.shape),
        evaluations=state.evaluations if state else (),
        rewards=rewards,
        weights=weights,
        sizes=tuple(sizes),
        starts=_starts(weights, starts),
    )


def _starts(weights: Tensor, starts: Tensor) -> Tensor:
    """Return the effective number of starts, ``1/Σ_a (Σ w of those from start a)²``, ``[B]``."""
    return 1 / (torch.zeros_like(weights).scatter_add(1, starts, weights) ** 2).sum(1)


def _check(
    solver: Solver,
    particles: int,
    potential: str,
    every: int | None,
    strength: float,
    threshold: float,
) -> None:
    every = 1 if every is None else every
    _check_count("particles", particles, 1, MOST_PARTICLES)
    _check_count("every", every, 0, 10_000)
    if not math.isfinite(strength) or not threshold >= 0:
        raise ValueError(
            "the strength must be finite, and the threshold a share of the particles (above 1: "
            f"always), not {strength!r} and {threshold!r}"
        )
    if potential not in ("difference", "max", "sum"):
        raise ValueError(f"the potential must be difference, max or sum, not {potential!r}")
    if every and particles > 1 and not solver.stochastic:
        raise ValueError(
            f"the solver {solver.name!r} draws no noise, so copies of a particle would stay "
            "equal; use ddpm, or every=0 for independent samples"
        )


MOST_PARTICLES = 100_000
"""Particles of one sample; each takes the memory of a sample."""


def _check_count(name: str, value: Any, least: int, most: int) -> None:
    if (
        isinstance(value, bool)
        or not isinstance(value, Integral)
        or not least <= int(value) <= most
    ):
        raise ValueError(f"{name} must be a whole number from {least:,} to {most:,}, not {value!r}")


def _rewards(reward: Reward, x0: Tensor, like: Tensor) -> Tensor:
    values = reward(x0)
    if not isinstance(values, Tensor) or values.shape != (len(x0),):
        told = (
            f"a tensor {tuple(values.shape)}"
            if isinstance(values, Tensor)
            else f"a {type(values).__name__}"
        )
        raise ValueError(
            f"a reward must return one number for each of {len(x0)} particles, not {told}"
        )
    if not bool(values.isfinite().all()):
        raise ValueError(
            "a reward must be finite for every particle; where something is forbidden, give it a "
            "large negative number"
        )
    return values.detach().to("cpu", torch.float64).reshape(like.shape)


def _ancestors(weights: Tensor, u: Tensor, resampled: Tensor) -> Tensor:
    """Return each particle's ancestor among its sample's, ``[B, K]``; itself where nothing is
    resampled.
    """
    own = torch.arange(weights.shape[1])
    return torch.stack(
        [
            systematic(w, float(v)) if chosen else own
            for w, v, chosen in zip(weights, u, resampled, strict=True)
        ]
    )


def _taken(kept: Any, rows: Tensor) -> Any:
    """Select particles of what solver and guidance keep: every tensor that has one row a
    particle.
    """
    if isinstance(kept, Mapping):
        return {name: _taken(v, rows) for name, v in kept.items()}
    if isinstance(kept, tuple):
        return tuple(_taken(v, rows) for v in kept)
    return (
        kept[rows.to(kept.device)] if isinstance(kept, Tensor) and len(kept) == len(rows) else kept
    )
