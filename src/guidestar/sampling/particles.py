"""Populations: several particles a sample, weighted by a reward and resampled during the run."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral

import torch
from torch import Tensor

from ..core.evaluation import drive
from ..core.levels import Grid
from ..core.rng import Draw, checked_seeds
from .resampling import (
    Potential,
    Weighing,
    choose_ancestors,
    count_starts,
    effective_size,
    take_particles,
)
from .run import advance, noise
from .solver import Predict, Solver

Reward = Callable[[Tensor], Tensor]
"""``reward(x0 [N, *S]) -> [N]``, of samples or clean estimates; need not be differentiable."""


@dataclass(frozen=True, kw_only=True)
class Population:
    """The result of a run of particles.

    Args:
        x: particles ``[B, K, *S]``.
        rewards: of the particles, ``[B, K]``, CPU float64.
        weights: the particles' shares of the tilted distribution, ``[B, K]``, with sum 1 over K.
        sizes: effective sample size ``(Σ w)²/Σ w²`` of the potential after each step, ``[B]`` each;
            the last one is that of ``weights``.
        starts: effective number of starts, ``1/Σ_a (Σ w of those from start a)²``, ``[B]``. It is
            at most the last of ``sizes``, which counts copies of a particle as different.
        evaluations: network evaluations of each of the ``B·K`` particles.
    """

    x: Tensor
    rewards: Tensor
    weights: Tensor
    sizes: tuple[Tensor, ...]
    starts: Tensor
    evaluations: tuple[int, ...] = ()

    @property
    def best(self) -> Tensor:
        """The particle with the highest reward of each sample, ``[B, *S]``."""
        return self.x[torch.arange(len(self.x)), self.rewards.argmax(1)]

    def mean(self, of: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
        """Return the weighted mean of ``of(x [B·K, *S])`` over each sample's particles."""
        values = of(self.x.flatten(0, 1)).unflatten(0, self.x.shape[:2])
        weights = self.weights.to(values.device, values.dtype)
        return (weights.reshape(*weights.shape, *[1] * (values.ndim - 2)) * values).sum(1)


def crowd(seeds: Sequence[int], particles: int) -> list[int]:
    """Return a seed for each of the ``B·K`` particles, those of a sample one after the other.

    The first particle of each sample has the sample's own seed.

    Args:
        seeds: one integer a sample.
        particles: K.

    Raises:
        ValueError: a number of particles out of range.
    """
    _check_count("particles", particles, 1, MOST_PARTICLES)
    return [_particle_seed(seed, k) if k else seed for seed in seeds for k in range(particles)]


def _particle_seed(seed: int, k: int) -> int:
    digest = hashlib.blake2b(f"particle/{seed}/{k}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")


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

    After every ``every`` steps the particles are weighted by a potential. If the effective sample
    size of a sample is below a share of K, its K particles are resampled. With r_t the rewards of
    the clean estimates after those steps, the potentials are

        difference: exp(λ(r_t − r_u)), u the last resampling;  max: exp(λ max r);  sum: exp(λ Σ r)

    The last potential, at data, makes the product of all that were used ``exp(λ r(x_0))``. So for
    large K the weighted particles have the sampler's distribution times ``exp(λ r(x_0))``, whatever
    the rewards during the run.

    max and sum tilt again at each resampling, more than the end needs, so they should be resampled
    only a few times a run. If that fails, ``starts`` is small.

    Args:
        predict: a `Guided` of B·K samples (each condition K times; seeds ``crowd(seeds, K)``), or
            any ``predict(x_t, step, state)``.
        grid: levels to walk.
        solver: a solver that draws noise, or its name.
        seeds: one integer a sample.
        particles: K.
        reward: of clean samples, ``[N, *S] -> [N]``; a classifier's ``log_prob`` gives its
            posterior.
        shape: of one sample.
        strength: λ.
        potential: "difference", "max" or "sum".
        every: number of steps between resamplings; by default 1 for "difference", and a third of
            the run for the others. With 0 the K samples are independent: with ``best``, best-of-K.
        threshold: resample if the effective sample size is below this share of K.
        device: of the samples.
        dtype: of the samples.

    K evaluations a step, and K rewards. Nothing is differentiated.

    Raises:
        ValueError: a reward that is not one finite number a particle; a solver without noise, as
            copies of a particle would stay equal; an argument out of range.

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
    weighing = Weighing(potential, zeros, zeros if potential != "max" else zeros - torch.inf)
    if every is None:
        every = 1 if potential == "difference" else max(1, grid.steps // 3)
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
            u = own.at(index).uniform("resample")
            ancestors = choose_ancestors(log.softmax(1), u, resampled)
            weighing = weighing.resample(strength * rewards, ancestors, resampled)
            starts = starts.gather(1, ancestors)
            rows = (ancestors + particles * torch.arange(len(seeds))[:, None]).flatten()
            x = x[rows.to(x.device)]
            memory = take_particles(state.memory, rows)
            state = replace(state, memory=memory, kept=take_particles(state.kept, rows))
    weights = log.softmax(1)
    return Population(
        x=x.unflatten(0, zeros.shape),
        evaluations=state.evaluations if state else (),
        rewards=rewards,
        weights=weights,
        sizes=tuple(sizes),
        starts=count_starts(weights, starts),
    )


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
"""The most particles of one sample; each takes the memory of a sample."""


def _check_count(name: str, value: object, least: int, most: int) -> None:
    if (
        isinstance(value, bool)
        or not isinstance(value, Integral)
        or not least <= int(value) <= most
    ):
        raise ValueError(f"{name} must be a whole number from {least:,} to {most:,}, not {value!r}")


def _rewards(reward: Reward, x0: Tensor, like: Tensor) -> Tensor:
    values = reward(x0)
    if not isinstance(values, Tensor) or values.shape != (len(x0),):
        tensor = isinstance(values, Tensor)
        found = f"a tensor {tuple(values.shape)}" if tensor else f"a {type(values).__name__}"
        raise ValueError(
            f"a reward must return one number for each of {len(x0)} particles, not {found}"
        )
    if not bool(values.isfinite().all()):
        raise ValueError(
            "a reward must be finite for every particle; to forbid a sample, return a large "
            "negative number"
        )
    return values.detach().to("cpu", torch.float64).reshape(like.shape)
