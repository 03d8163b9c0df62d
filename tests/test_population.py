"""Particles: exact counts, the formula of the effective size, and the exact tilted distribution."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from _toys import noise
from guidestar import DDPM, VP, Draw, Population, crowd, sample, steer, trajectory
from guidestar.levels import log_snr
from guidestar.prediction import Prediction
from guidestar.sampling import effective_size, systematic

WEIGHTS, MEANS, VAR = (0.7, 0.3), (-1.0, 1.5), 0.16
GRID = log_snr(VP.linear(), 30)


def mixture(x: Tensor, step: Any, gstate: Any) -> Any:
    """The exact prediction of Σ π_k N(m_k, VAR), number by number."""
    a, s = step.t.alpha, step.t.sigma
    total = a**2 * VAR + s**2
    logs = torch.stack([math.log(w) - (x - a * m) ** 2 / (2 * total) for w, m in zip(WEIGHTS, MEANS, strict=True)])
    clean = torch.stack([m + a * VAR / total * (x - a * m) for m in MEANS])
    return Prediction.from_x0(x, step.t, (logs.softmax(0) * clean).sum(0)), gstate


def run(particles: int, seeds: Any = (3,), **more: Any) -> Population:
    options = {"grid": GRID, "shape": (1,), "reward": lambda x0: x0[:, 0], "dtype": torch.float64, **more}
    return steer(mixture, seeds=seeds, particles=particles, **options)


@pytest.mark.parametrize("u", [0.0, 0.37, 0.999])
def test_systematic_resampling_has_exact_counts(u):
    weights = torch.tensor([0.05, 0.5, 0.0, 0.21, 0.24], dtype=torch.float64)
    counts = systematic(weights, u).bincount(minlength=5)
    assert all(math.floor(5 * w) <= c <= math.ceil(5 * w) for w, c in zip(weights.tolist(), counts.tolist(), strict=True))
    even = torch.full((8,), 1 / 8, dtype=torch.float64)
    assert torch.equal(systematic(even, 0.5), torch.arange(8))


def test_systematic_resampling_is_written_out_and_right_on_average():
    weights = noise(6, seed=2).softmax(0)
    edges = [0.0, *weights.cumsum(0).tolist()]
    total = torch.zeros(6)
    for j in range(1000):
        u = (j + 0.5) / 1000
        chosen = [next(k for k in range(6) if (u + i) / 6 < edges[k + 1]) for i in range(6)]
        got = systematic(weights, u)
        assert got.tolist() == chosen
        total += got.bincount(minlength=6)
    torch.testing.assert_close(total.double() / 1000, 6 * weights, rtol=0, atol=2e-3)


def test_the_last_particle_is_the_last_also_where_the_weights_fall_short_of_one():
    assert systematic(torch.tensor([0.3, 0.7 - 1e-12], dtype=torch.float64), 1 - 1e-13).tolist() == [1, 1]


def test_effective_size():
    w = torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.5, 0.0]], dtype=torch.float64)
    expected = [1 / (0.01 + 0.04 + 0.49), 2.0]
    assert effective_size((w + 1e-300).log() + 5).tolist() == pytest.approx(expected)
    assert float(effective_size(torch.zeros(7))) == pytest.approx(7.0)


def tilted_mean(strength: float) -> float:
    """Of the mixture times e^{λx}: weights π_k e^{λ m_k + λ² v/2}, means m_k + λ v."""
    w = [p * math.exp(strength * m) for p, m in zip(WEIGHTS, MEANS, strict=True)]
    return sum(a * (m + strength * VAR) for a, m in zip(w, MEANS, strict=True)) / sum(w)


@pytest.mark.parametrize("potential", ["difference", "max", "sum"])
def test_the_weighted_mean_is_that_of_the_tilted_mixture(potential):
    """The sampler's own error at 30 steps and the Monte-Carlo error are within the tolerance; without weights it is far."""
    strength = {"difference": 0.8, "max": 0.3, "sum": 0.02}[potential]  # the others' potentials pile up along the way
    found = run(1500, strength=strength, potential=potential)
    error = math.sqrt(1.6 / min(float(s) for s in found.sizes[-1]))
    assert float(found.mean()[0, 0]) == pytest.approx(tilted_mean(strength), abs=3 * error + 0.02)
    plain = sum(p * m for p, m in zip(WEIGHTS, MEANS, strict=True))
    assert potential != "difference" or tilted_mean(strength) - plain > 6 * error


@pytest.mark.parametrize("potential", ["difference", "max", "sum"])
def test_whatever_the_potentials_a_way_weighs_as_its_end(potential):
    found = run(5, every=0, strength=1.7, potential=potential)
    torch.testing.assert_close(found.weights, (1.7 * found.x[..., 0]).softmax(1), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.rewards, found.x[..., 0])


@pytest.mark.parametrize("potential", ["difference", "max", "sum"])
def test_the_potentials_on_the_way_are_written_out(potential):
    """Of the clean estimates r_t: exp(λ(r_t − r_before)), exp(λ max r) and exp(λ Σ r); the effective sizes tell."""
    draw = Draw(crowd([3], 5))
    start = GRID[0].sigma * draw.at(-1).normal("start", (1,)).double()
    states = list(trajectory(mixture, start, grid=GRID, solver=DDPM(), draw=draw))
    way = 1.7 * torch.stack([state.prediction.x0[:, 0] for state in states[:-1]])
    gain = {"difference": way - torch.cat([0 * way[:1], way[:-1]]), "max": way.cummax(0).values, "sum": way.cumsum(0)}[potential]
    log = torch.cat([gain.cumsum(0), 1.7 * states[-1].x[None, :, 0]])
    w = (log - log.max(1, keepdim=True).values).exp()
    found = run(5, every=0, strength=1.7, potential=potential)
    torch.testing.assert_close(torch.cat(found.sizes), w.sum(1) ** 2 / (w**2).sum(1), rtol=1e-9, atol=1e-9)


def test_best_of_k_is_the_best_of_independent_samples():
    seeds = [3, 9]
    found = run(4, seeds=seeds, every=0)
    alone = sample(mixture, grid=GRID, solver="ddpm", seeds=crowd(seeds, 4), shape=(1,), dtype=torch.float64).reshape(2, 4, 1)
    torch.testing.assert_close(found.x, alone, rtol=1e-12, atol=1e-12)
    assert torch.equal(found.best, alone.max(1).values)
    assert run(3, solver="ddim", every=0).x.shape == (1, 3, 1)


def test_one_particle_is_an_ordinary_sample():
    assert torch.equal(run(1, seeds=[3, 4]).x[:, 0], sample(mixture, grid=GRID, solver="ddpm", seeds=[3, 4], shape=(1,), dtype=torch.float64))


def test_a_sample_depends_on_its_own_seed_alone():
    several, alone = run(6, seeds=[3, 9, 4], strength=3.0), run(6, seeds=[9], strength=3.0)
    torch.testing.assert_close(several.x[1:2], alone.x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(several.weights[1:2], alone.weights, rtol=1e-9, atol=1e-12)
    assert torch.equal(run(6, seeds=[9], strength=3.0).x, alone.x)
    assert len(set(crowd([3, 9], 6))) == 12 and crowd([3, 9], 6)[::6] == [3, 9]


def test_it_resamples_where_the_effective_size_is_low_and_carries_what_is_remembered():
    ways: list[Tensor] = []

    def remembering(x: Tensor, step: Any, gstate: Any) -> Any:
        """Each particle remembers its first x; its own row travels with it."""
        start = gstate.get("start", x)
        ways.append(torch.unique(start))
        return mixture(x, step, gstate)[0], {"start": start}

    options = {"grid": GRID, "seeds": [3], "particles": 8, "shape": (1,), "reward": lambda x0: x0[:, 0], "strength": 6.0, "dtype": torch.float64}
    steer(remembering, **options)
    assert len(ways[0]) == 8 and len(ways[-1]) < 8
    ways.clear()
    steer(remembering, threshold=0.0, **options)
    assert len(ways[-1]) == 8


def test_it_resamples_after_every_so_many_steps():
    counts = []

    def remembering(x: Tensor, step: Any, gstate: Any) -> Any:
        start = gstate.get("start", x)
        counts.append(len(torch.unique(start)))
        return mixture(x, step, gstate)[0], {"start": start}

    options = {"grid": GRID, "seeds": [3], "shape": (1,), "reward": lambda x0: x0[:, 0], "dtype": torch.float64}
    steer(remembering, particles=40, every=10, threshold=2.0, strength=4.0, **options)
    assert counts[:10] == [40] * 10 and counts[10:20] == [counts[10]] * 10 and counts[20:] == [counts[20]] * 10 and 40 > counts[10] > counts[20]


def test_what_it_refuses():
    for options, said in (
        ({"solver": "ddim"}, "'ddim' draws no noise"),
        ({"potential": "mean"}, "the potential must be"),
        ({"every": -1}, "0 or more"),
        ({"reward": lambda x0: x0}, "one number for each of 4 particles"),
    ):
        with pytest.raises(ValueError, match=said):
            run(4, **options)
