"""Particles: exact counts, the formula of the effective size, and the exact tilted distribution."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from guidestar import DDPM, VP, Draw, Grid, Population, crowd, sample, steer
from guidestar.core.prediction import Prediction
from guidestar.sampling import effective_size, systematic
from guidestar.sampling.grids import log_snr
from helpers.toys import moved, noise

WEIGHTS, MEANS, VAR = (0.7, 0.3), (-1.0, 1.5), 0.16
GRID = log_snr(VP.linear(), 30)


def mixture(x: Tensor, step: Any, gstate: Any) -> Any:
    """The exact prediction of Σ π_k N(m_k, VAR), number by number."""
    a, s = step.t.alpha, step.t.sigma
    total = a**2 * VAR + s**2
    logs = torch.stack(
        [math.log(w) - (x - a * m) ** 2 / (2 * total) for w, m in zip(WEIGHTS, MEANS, strict=True)]
    )
    clean = torch.stack([m + a * VAR / total * (x - a * m) for m in MEANS])
    return Prediction.from_x0(x, step.t, (logs.softmax(0) * clean).sum(0)), gstate


def run(particles: int, seeds: Any = (3,), **more: Any) -> Population:
    options = {
        "grid": GRID,
        "shape": (1,),
        "reward": lambda x0: x0[:, 0],
        "dtype": torch.float64,
        **more,
    }
    return steer(mixture, seeds=seeds, particles=particles, **options)


@pytest.mark.parametrize("u", [0.0, 0.37, 0.999])
def test_systematic_resampling_has_exact_counts(u):
    weights = torch.tensor([0.05, 0.5, 0.0, 0.21, 0.24], dtype=torch.float64)
    counts = systematic(weights, u).bincount(minlength=5)
    assert all(
        math.floor(5 * w) <= c <= math.ceil(5 * w)
        for w, c in zip(weights.tolist(), counts.tolist(), strict=True)
    )
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
    assert systematic(
        torch.tensor([0.3, 0.7 - 1e-12], dtype=torch.float64), 1 - 1e-13
    ).tolist() == [1, 1]


def test_effective_size():
    w = torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.5, 0.0]], dtype=torch.float64)
    expected = [1 / (0.01 + 0.04 + 0.49), 2.0]
    assert effective_size((w + 1e-300).log() + 5).tolist() == pytest.approx(expected)
    assert float(effective_size(torch.zeros(7))) == pytest.approx(7.0)


def tilted_mean(strength: float) -> float:
    """Of the mixture times e^{λx}: weights π_k e^{λ m_k + λ² v/2}, means m_k + λ v."""
    w = [p * math.exp(strength * m) for p, m in zip(WEIGHTS, MEANS, strict=True)]
    return sum(a * (m + strength * VAR) for a, m in zip(w, MEANS, strict=True)) / sum(w)


POTENTIALS = ["difference", "max", "sum"]


@pytest.mark.parametrize("potential", POTENTIALS)
@pytest.mark.parametrize("strength", [0.3, 0.8])
def test_the_weighted_mean_is_that_of_the_tilted_mixture(potential, strength):
    """The sampler's own error at 30 steps and the Monte-Carlo error are within the tolerance;
    without weights it is far.
    """
    found = run(1500, strength=strength, potential=potential)
    error = math.sqrt(1.6 / float(found.starts))
    assert found.starts > 300
    assert float(found.mean()[0, 0]) == pytest.approx(tilted_mean(strength), abs=3 * error + 0.02)
    plain = sum(p * m for p, m in zip(WEIGHTS, MEANS, strict=True))
    assert tilted_mean(strength) - plain > 3 * error + 0.02


def gaussian(x: Tensor, step: Any, gstate: Any) -> Any:
    """The exact prediction of N(0, 1)."""
    a, s = step.t.alpha, step.t.sigma
    return Prediction.from_x0(x, step.t, a / (a**2 + s**2) * x), gstate


def variances(grid: Any) -> tuple[list[float], float]:
    """Of the clean estimates along an ancestral run on N(0, 1) that starts from σ_T z, and of its
    end.
    """
    variance, clean = grid[0].sigma ** 2, []
    for i in range(grid.steps):
        (a, s), (a_s, s_s) = grid[i][:2], grid[i + 1][:2]
        slope = a / (a**2 + s**2)
        small = s_s**2 * (s**2 - (a / a_s) ** 2 * s_s**2) / s**2
        clean.append(slope**2 * variance)
        moved = a_s * slope + math.sqrt(max(0.0, s_s**2 - small)) * (1 - a * slope) / s
        variance = moved**2 * variance + small
    return clean, variance


@pytest.mark.slow
@pytest.mark.parametrize("every", [None, 20])
@pytest.mark.parametrize("potential", POTENTIALS)
def test_the_tilted_normal_has_the_closed_form_of_the_samplers_own_law(potential, every):
    """Samples are N(0, v), so tilted by e^x they are N(v, v). Of 60 steps max gave 2.4 and sum 2.8
    once, at 966 of 1,000.
    """
    grid = log_snr(VP.linear(), 60)
    options = {"grid": grid, "shape": (1,), "reward": lambda x: x[:, 0], "dtype": torch.float64}
    found = steer(gaussian, seeds=[1], particles=2000, potential=potential, every=every, **options)
    variance = variances(grid)[1]
    x, w = found.x[..., 0], found.weights
    mean = (w * x).sum(1)
    spread = (w * (x - mean[:, None]) ** 2).sum(1)
    assert (found.starts > 500).all()
    assert mean.tolist() == pytest.approx([variance], abs=4 / math.sqrt(float(found.starts.min())))
    assert spread.tolist() == pytest.approx(
        [variance], abs=6 / math.sqrt(float(found.starts.min()))
    )


def test_effective_sizes_on_the_way_have_their_closed_form():
    """Clean estimates are N(0, u): weights e^{λ r} have ``E[w]²/E[w²] = e^{−λ² u}``."""
    options = {"grid": GRID, "shape": (1,), "reward": lambda x: x[:, 0], "dtype": torch.float64}
    found = steer(gaussian, seeds=[5], particles=5000, strength=0.5, every=0, **options)
    clean, end = variances(GRID)
    expected = [math.exp(-0.25 * u) for u in (*clean[:-1], end)]
    got = [float(size) / 5000 for size in found.sizes]
    assert got == pytest.approx(expected, abs=0.03) and min(expected) < 0.85
    assert float(found.starts) == pytest.approx(float(found.sizes[-1]))


@pytest.mark.slow
@pytest.mark.parametrize(("potential", "strength"), [("max", 1.0), ("sum", 0.3)])
def test_a_mixture_of_two_is_tilted_right_when_resampled_twenty_steps_apart(potential, strength):
    """.6 N(−1, .3²) + .4 N(1.5, .4²), 60 ancestral steps, 1,500 particles: max 1.387, sum .504."""
    parts = ((0.6, -1.0, 0.09), (0.4, 1.5, 0.16))

    def predict(x: Tensor, step: Any, gstate: Any) -> Any:
        a, s = step.t.alpha, step.t.sigma
        totals = [a**2 * v + s**2 for *_, v in parts]
        logs = torch.stack(
            [
                math.log(w) - 0.5 * math.log(t) - (x - a * m) ** 2 / (2 * t)
                for (w, m, _), t in zip(parts, totals, strict=True)
            ]
        )
        clean = torch.stack(
            [m + a * v / t * (x - a * m) for (_, m, v), t in zip(parts, totals, strict=True)]
        )
        return Prediction.from_x0(x, step.t, (logs.softmax(0) * clean).sum(0)), gstate

    grid = log_snr(VP.linear(), 60)
    options = {
        "grid": grid,
        "shape": (1,),
        "reward": lambda x: x[:, 0],
        "dtype": torch.float64,
        "strength": strength,
    }
    found = steer(predict, seeds=[0, 1], particles=1500, potential=potential, every=20, **options)
    plain = steer(predict, seeds=[0, 1], particles=1500, every=0, **options)
    tilted = [w * math.exp(strength * m + strength**2 * v / 2) for w, m, v in parts]
    truth = sum(t * (m + strength * v) for t, (_, m, v) in zip(tilted, parts, strict=True)) / sum(
        tilted
    )
    assert truth == pytest.approx({"max": 1.387, "sum": 0.504}[potential], abs=1e-3)
    assert float(found.mean().mean()) == pytest.approx(truth, abs=0.1)  # 60 steps fall short of it
    assert float(found.mean().mean()) == pytest.approx(float(plain.mean().mean()), abs=0.05)


@pytest.mark.parametrize("potential", POTENTIALS)
def test_whatever_the_potentials_a_way_weighs_as_its_end(potential):
    found = run(5, every=0, strength=1.7, potential=potential)
    torch.testing.assert_close(
        found.weights, (1.7 * found.x[..., 0]).softmax(1), rtol=1e-9, atol=1e-12
    )
    torch.testing.assert_close(found.rewards, found.x[..., 0])


@pytest.mark.parametrize("every", [1, 3, 7, None])
@pytest.mark.parametrize("potential", POTENTIALS)
def test_potentials_are_multiplied_in_where_particles_are_resampled_and_at_the_end(
    potential, every
):
    """The algorithm of the paper, particle by particle: what a resampling multiplied in is taken
    out at the end.
    """
    strength, count, seed = 1.7, 6, 3
    step_every = every or (1 if potential == "difference" else GRID.steps // 3)
    draw, own = Draw(crowd([seed], count)), Draw([seed])
    x = GRID[0].sigma * draw.at(-1).normal("start", (1,)).double()
    product, met, starts = [0.0] * count, [[] for _ in range(count)], list(range(count))
    log, sizes, times = [], [], 0
    for i in range(GRID.steps):
        step, last = GRID.step(i), i + 1 == GRID.steps
        clean = mixture(x, step, {})[0].x0[:, 0]
        x, _ = moved(DDPM(), mixture, x, step, draw.at(i))
        r = [strength * float(v) for v in (x[:, 0] if last else clean)]
        if last or potential == "difference":
            log = [a - b for a, b in zip(r, product, strict=True)]
        else:
            log = [
                (max if potential == "max" else sum)([*m, a]) for m, a in zip(met, r, strict=True)
            ]
        w = [math.exp(v - max(log)) for v in log]
        sizes.append(sum(w) ** 2 / sum(v * v for v in w))
        if last or (i + 1) % step_every:
            continue
        met = [[*m, a] for m, a in zip(met, r, strict=True)]
        if sizes[-1] < count / 2:
            u, edges, times = (
                float(own.at(i).uniform("resample")),
                torch.tensor(w, dtype=torch.float64).cumsum(0) / sum(w),
                times + 1,
            )
            chosen = [
                next(k for k in range(count) if (u + j) / count < edges[k]) for j in range(count)
            ]
            product = [product[k] + log[k] for k in chosen]
            met, starts, x = [met[k] for k in chosen], [starts[k] for k in chosen], x[chosen]
    found = run(count, every=every, strength=strength, potential=potential)
    weights = torch.tensor(log, dtype=torch.float64).softmax(0)
    assert times >= 1
    torch.testing.assert_close(found.x[0], x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.weights[0], weights, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        torch.cat(found.sizes), torch.tensor(sizes, dtype=torch.float64), rtol=1e-9, atol=1e-9
    )
    shares = [
        sum(float(v) for v, a in zip(weights, starts, strict=True) if a == start)
        for start in range(count)
    ]
    assert float(found.starts) == pytest.approx(1 / sum(v * v for v in shares))


def test_best_of_k_is_the_best_of_independent_samples():
    seeds = [3, 9]
    found = run(4, seeds=seeds, every=0)
    alone = sample(
        mixture, grid=GRID, solver="ddpm", seeds=crowd(seeds, 4), shape=(1,), dtype=torch.float64
    ).reshape(2, 4, 1)
    torch.testing.assert_close(found.x, alone, rtol=1e-12, atol=1e-12)
    assert torch.equal(found.best, alone.max(1).values)
    assert run(3, solver="ddim", every=0).x.shape == (1, 3, 1)


def test_one_particle_is_an_ordinary_sample():
    assert torch.equal(
        run(1, seeds=[3, 4]).x[:, 0],
        sample(mixture, grid=GRID, solver="ddpm", seeds=[3, 4], shape=(1,), dtype=torch.float64),
    )


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

    options = {
        "grid": GRID,
        "seeds": [3],
        "particles": 8,
        "shape": (1,),
        "reward": lambda x0: x0[:, 0],
        "strength": 6.0,
        "dtype": torch.float64,
    }
    steer(remembering, **options)
    assert len(ways[0]) == 8 and len(ways[-1]) < 8
    ways.clear()
    steer(remembering, threshold=0.0, **options)
    assert len(ways[-1]) == 8


def test_a_grid_of_one_level_is_its_noise_and_no_evaluation():
    found = run(3, seeds=[3, 4], grid=Grid(levels=GRID.levels[:1], schedule=GRID.schedule))
    assert found.evaluations == () and found.sizes == () and found.x.shape == (2, 3, 1)
    assert torch.equal(found.weights, torch.full((2, 3), 1 / 3, dtype=torch.float64))


def test_it_resamples_after_every_so_many_steps():
    counts = []

    def remembering(x: Tensor, step: Any, gstate: Any) -> Any:
        start = gstate.get("start", x)
        counts.append(len(torch.unique(start)))
        return mixture(x, step, gstate)[0], {"start": start}

    options = {
        "grid": GRID,
        "seeds": [3],
        "shape": (1,),
        "reward": lambda x0: x0[:, 0],
        "dtype": torch.float64,
    }
    steer(remembering, particles=40, every=10, threshold=2.0, strength=4.0, **options)
    assert (
        counts[:10] == [40] * 10
        and counts[10:20] == [counts[10]] * 10
        and counts[20:] == [counts[20]] * 10
        and 40 > counts[10] > counts[20]
    )


def test_what_it_refuses():
    for options, said in (
        ({"solver": "ddim"}, "'ddim' draws no noise"),
        ({"potential": "mean"}, "the potential must be"),
        ({"every": -1}, "from 0 to 10,000, not -1"),
        ({"every": 1.5}, "every"),
        ({"reward": lambda x0: x0}, "one number for each of 4 particles"),
    ):
        with pytest.raises(ValueError, match=said):
            run(4, **options)
