"""PiGDM and MMPS against exact posteriors of normal data, operators against their transposes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from guidestar import (
    DDIM,
    Blur,
    Colour,
    Downsample,
    Draw,
    Guided,
    Heun,
    Identity,
    Inpaint,
    Level,
    Linear,
    Network,
    Observation,
    get_operator,
    mmps,
    pigdm,
    sample,
    uniform,
)
from guidestar.guidance.methods.posterior import least_residual
from guidestar.sampling import diverged
from helpers.scenes import PLACES
from helpers.toys import SCHEDULES, col, mixed_step, moved, noise, steps

D = 5
MEAN = torch.tensor([0.3, -1.0, 0.5, 2.0, -0.2], dtype=torch.float64)
ROOT = noise(D, D, seed=3) / 2
SIGMA = ROOT @ ROOT.T + 0.2 * torch.eye(D, dtype=torch.float64)
MATRIX = noise(2, D, seed=4)


class Matrix:
    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.rows.T

    def transpose(self, y: Tensor) -> Tensor:
        return y @ self.rows


def levels(level: Level, count: int) -> list[tuple[float, float]]:
    return [
        tuple(float(v[i]) if isinstance(v, Tensor) else v for v in level[:2]) for i in range(count)
    ]


def denoiser(covariance: Tensor) -> Any:
    """The exact one of data N(MEAN, covariance)."""

    def denoise(x: Tensor, level: Level, cond: Any) -> Tensor:
        rows = []
        for row, (a, s) in zip(x, levels(level, len(x)), strict=True):
            total = a**2 * covariance + s**2 * torch.eye(D, dtype=x.dtype)
            rows.append(MEAN + a * covariance @ torch.linalg.solve(total, row - a * MEAN))
        return torch.stack(rows)

    return denoise


def posterior_mean(x: Tensor, level: Level, y: Tensor, covariance: Tensor, noise_: float) -> Tensor:
    """E[x_0 | x_t, y], by conditioning the joint normal of x_0 and (x_t, y)."""
    eye, rows = torch.eye(D, dtype=x.dtype), []
    for row, seen, (a, s) in zip(x, y, levels(level, len(x)), strict=True):
        h = torch.cat([a * eye, MATRIX])
        added = torch.block_diag(s**2 * eye, noise_**2 * torch.eye(2, dtype=x.dtype))
        told = torch.cat([row, seen])
        rows.append(
            MEAN
            + covariance @ h.T @ torch.linalg.solve(h @ covariance @ h.T + added, told - h @ MEAN)
        )
    return torch.stack(rows)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("made", "covariance"), [(pigdm, torch.eye(D, dtype=torch.float64)), (mmps, SIGMA)]
)
def test_the_posterior_mean_of_normal_data_is_exact(place, made, covariance):
    x, step, y = noise(3, D), steps(place)[0], noise(3, 2, seed=1)
    observed = Observation(Matrix(MATRIX), y, noise=0.4)
    out, _ = Guided(made(1.0, observed), denoiser(covariance))(x, step)
    exact = posterior_mean(x, step.t, y, covariance, 0.4)
    torch.testing.assert_close(out.x0, exact, rtol=1e-8, atol=1e-8)
    a, s = col(step.t.alpha, x), col(step.t.sigma, x)
    torch.testing.assert_close(out.eps, (x - a * exact) / s, rtol=1e-8, atol=1e-8)


def test_pigdm_is_its_formula_also_where_it_is_not_exact():
    x, y, step = (
        noise(3, D),
        noise(3, 2, seed=1),
        mixed_step("flow", [2.0, 1.0, 0.5], [1.0, 0.5, 0.2]),
    )
    out, _ = Guided(pigdm(0.8, Observation(Matrix(MATRIX), y, noise=0.3)), denoiser(SIGMA))(x, step)
    at = x.clone().requires_grad_()
    clean = denoiser(SIGMA)(at, step.t, None)
    rho = step.t.sigma / step.t.alpha
    r2 = col(rho**2 / (1 + rho**2), x)
    share = torch.stack(
        [
            torch.linalg.solve(v * MATRIX @ MATRIX.T + 0.09 * torch.eye(2, dtype=x.dtype), b)
            for v, b in zip(r2, y - clean @ MATRIX.T, strict=True)
        ]
    )
    score = torch.autograd.grad(clean, at, share.detach() @ MATRIX)[0]
    torch.testing.assert_close(
        out.x0,
        (clean + 0.8 * col(step.t.sigma**2 / step.t.alpha, x) * score).detach(),
        rtol=1e-8,
        atol=1e-8,
    )


def test_known_pixels_without_noise_become_what_was_observed():
    x, step, mask = noise(2, D), steps("flow")[0], torch.tensor([1.0, 0, 1, 1, 0])
    y = noise(2, D, seed=1)
    for made, covariance in ((pigdm, torch.eye(D, dtype=x.dtype)), (mmps, SIGMA)):
        out, _ = Guided(
            made(1.0, Observation(Inpaint(mask=mask), mask * y), iterations=4), denoiser(covariance)
        )(x, step)
        torch.testing.assert_close(mask * out.x0, mask * y, rtol=1e-8, atol=1e-8)


def by(matrix: Tensor) -> Any:
    """``v -> M v`` of each sample."""
    return lambda v: (matrix @ v[..., None])[..., 0]


def spaces(matrix: Tensor, b: Tensor, floor: float = 0.0) -> list[Tensor]:
    """The least ``‖b − M v‖`` over v in span(b, M b, …, M^k b), k = 0, 1, …, by least squares."""
    basis, found = b[:, None], []
    for _ in range(len(b)):
        found.append(basis @ torch.linalg.lstsq(matrix @ basis, b).solution)
        basis = torch.linalg.qr(torch.cat([basis, matrix @ basis[:, -1:]], 1)).Q
    return found


SYMMETRIC = torch.stack([m @ m.T + 0.1 * torch.eye(4, dtype=m.dtype) for m in noise(3, 4, 4)])
TURNING = SYMMETRIC + torch.stack([m - m.T for m in noise(3, 4, 4, seed=7)])


@pytest.mark.parametrize("matrix", [SYMMETRIC, TURNING], ids=["symmetric", "not symmetric"])
def test_the_system_of_each_sample_is_solved_by_itself(matrix):
    b = noise(3, 4, seed=1)
    b[1] = 0
    solved = least_residual(by(matrix), b, 12)
    torch.testing.assert_close(solved, torch.linalg.solve(matrix, b), rtol=1e-8, atol=1e-10)
    alone = least_residual(by(matrix[:1]), b[:1], 12)
    torch.testing.assert_close(alone, solved[:1], rtol=1e-12, atol=1e-12)
    assert torch.equal(least_residual(lambda v: 0 * v, b, 3), 0 * b)


@pytest.mark.parametrize("matrix", [SYMMETRIC, TURNING], ids=["symmetric", "not symmetric"])
def test_each_iteration_has_the_least_residual_of_its_space(matrix):
    b = noise(3, 4, seed=1)
    for k in range(4):
        got = least_residual(by(matrix), b, k + 1)
        exact = torch.stack([spaces(m, row)[k] for m, row in zip(matrix, b, strict=True)])
        torch.testing.assert_close(got, exact, rtol=1e-8, atol=1e-9)


def test_a_sample_stops_where_its_curvature_is_below_the_floor():
    """Of ``M = diag(2, −1, 3)``: b along the first is solved, along the second left alone."""
    turns = torch.diag(torch.tensor([2.0, -1.0, 3.0], dtype=torch.float64)).repeat(3, 1, 1)
    b = torch.tensor([[4.0, 0, 0], [0, 4.0, 0], [1.0, 4.0, 0]], dtype=torch.float64)
    assert least_residual(by(turns), b, 3).tolist() == [[2, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert least_residual(by(turns[:1]), b[:1], 3, floor=2.5).tolist() == [[0, 0, 0]]
    assert least_residual(by(turns[:1]), b[:1], 3, floor=2.0).tolist() == [[2, 0, 0]]
    # two steps down, and then negative: (b, M b) = 9·2 − 1 > 0, but not of what is left
    b = torch.tensor([[3.0, 1.0, 0]], dtype=torch.float64)
    first = 17 / (36 + 1) * b
    left = b - first * torch.tensor([2.0, -1.0, 3.0])
    assert float((left**2 * torch.tensor([2.0, -1.0, 3.0])).sum()) < 0
    for iterations in (1, 2, 3):
        torch.testing.assert_close(least_residual(by(turns[:1]), b, iterations), first)


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-13), (torch.float32, 1e-4)])
def test_iterations_go_on_to_rounding_and_stay_there(dtype, close):
    diagonal, b = torch.linspace(1, 40, 30, dtype=dtype), noise(2, 30, dtype=dtype)
    for iterations in (40, 60, 100):
        solved = least_residual(lambda v: diagonal * v, b, iterations)
        assert ((diagonal * solved - b).norm(dim=1) < close * b.norm(dim=1)).all()


# --- networks whose Jacobian is no covariance

WIDE = 16
SHOWN = noise(6, WIDE, seed=9) / WIDE**0.5


def crooked(seed: int, size: float) -> Any:
    """The exact denoiser of a normal, and an error of ``σ E x`` with E not symmetric."""
    root, error = noise(WIDE, WIDE, seed=seed) / 4, noise(WIDE, WIDE, seed=seed + 1) / WIDE**0.5
    covariance, eye = root @ root.T + 0.05 * torch.eye(WIDE).double(), torch.eye(WIDE).double()

    def denoise(x: Tensor, level: Level, cond: Any) -> Tensor:
        a, s = float(level.alpha), float(level.sigma)
        if not s:
            return x
        jacobian = a * torch.linalg.solve(a**2 * covariance + s**2 * eye, covariance).T
        return x @ (jacobian + size * s * error).T

    return denoise


def small_network(seed: int, name: str) -> Any:
    w, v = noise(64, WIDE, seed=seed) / 4, noise(WIDE, 64, seed=seed + 1) / 5
    out = lambda x, t: torch.tanh(x @ w.T) @ v.T
    return Network(out, predicts="velocity" if name == "flow" else "v")


@pytest.mark.parametrize("noise_", [0.01, 0.1])
@pytest.mark.parametrize("name", ["vp", "flow"])
@pytest.mark.parametrize("made", [mmps, pigdm])
def test_no_sample_diverges_where_the_jacobian_is_not_symmetric(made, name, noise_):
    """With conjugate gradients 3 iterations of mmps diverged in 133 of 1,024 such runs, by up to
    1e8.
    """
    y = noise(8, len(SHOWN), seed=3)
    observed = Observation(Matrix(SHOWN), y, noise=noise_)
    everyone = [crooked(seed, size) for seed in (0, 1) for size in (0.2, 0.5)]
    for denoise in (*everyone, *(small_network(seed, name) for seed in (0, 2))):
        guided = Guided(made(1.0, observed), denoise)
        options = {"grid": uniform(SCHEDULES[name], 20), "shape": (WIDE,), "dtype": torch.float64}
        for solver in ("ddim", "ddpm"):
            x = sample(guided, seeds=range(8), solver=solver, **options)
            assert not diverged(x, scale=0.6).any(), (made, float(x.abs().max()))


@pytest.mark.parametrize("place", PLACES)
def test_the_published_pigdm_adds_its_gradient_to_x_s_and_leaves_eps(place):
    """Algorithm 1, in VP coordinates:
    ``x_s = √ᾱ_s D + c_1 z + c_2 ε + √ᾱ_t r² Jᵀ Aᵀ (r² A Aᵀ + σ_y²)⁻¹ (y − A D)``.
    """
    x, step, y = noise(3, D), steps(place)[0], noise(3, 2, seed=1)
    observed = Observation(Matrix(MATRIX), y, noise=0.3)
    guided = Guided(pigdm(0.8, observed, form="published"), denoiser(SIGMA))
    at = x.clone().requires_grad_()
    clean = denoiser(SIGMA)(at, step.t, None)
    (a, s), (a_s, s_s) = ([col(v, x) for v in level[:2]] for level in (step.t, step.s))
    n, n_s, r2 = (a**2 + s**2).sqrt(), (a_s**2 + s_s**2).sqrt(), s**2 / (a**2 + s**2)
    rows = zip(r2.expand(3, 1)[:, 0], y - clean.detach() @ MATRIX.T, strict=True)
    eye = torch.eye(2, dtype=x.dtype)
    g = torch.stack(
        [v * torch.linalg.solve(v * MATRIX @ MATRIX.T + 0.09 * eye, b) for v, b in rows]
    )
    # ∂D/∂(x_t/n) = n ∂D/∂x_t
    gradient = n * torch.autograd.grad(clean, at, g @ MATRIX)[0]
    eps = (x - a * clean.detach()) / s
    bar, bar_s = (a / n) ** 2, (a_s / n_s) ** 2
    published = (
        bar_s.sqrt() * clean.detach() + (1 - bar_s).sqrt() * eps + bar.sqrt() * 0.8 * gradient
    )
    x_s, _ = moved(DDIM(), guided, x, step, Draw([0, 1, 2]))
    torch.testing.assert_close(x_s / n_s, published.detach(), rtol=1e-8, atol=1e-8)
    out, _ = guided(x, step)
    torch.testing.assert_close(out.eps, eps, rtol=1e-8, atol=1e-8)
    with pytest.raises(ValueError, match="the form must be linked or published, not 'mean'"):
        pigdm(1.0, observed, form="mean")
    with pytest.raises(ValueError, match="pigdm splits the prediction"):
        sample(
            guided,
            grid=uniform(SCHEDULES["flow"], 3),
            solver=Heun(form="flow"),
            seeds=[0, 1, 2],
            shape=(D,),
        )


# --- operators

MASK = (noise(1, 8, 12) > 0).double()
EVERY = {
    "identity": Identity(),
    "inpaint": Inpaint(mask=MASK),
    "downsample": Downsample(factor=4),
    "blur": Blur(deviation=1.3),
    "wide blur": Blur(deviation=2.0, radius=3),
    "gray": Colour(),
    "colours": Colour(matrix=((0.2, 0.5, 0.1), (1.0, -1.0, 0.3))),
}


@pytest.mark.parametrize("name", EVERY)
def test_an_operator_is_linear_and_has_its_transpose(name):
    operator, x, z = EVERY[name], noise(2, 3, 8, 12), noise(2, 3, 8, 12, seed=1)
    shown = operator(x)
    y = noise(*shown.shape, seed=2)
    assert isinstance(operator, Linear)
    torch.testing.assert_close(
        (shown * y).flatten(1).sum(1), (x * operator.transpose(y)).flatten(1).sum(1)
    )
    torch.testing.assert_close(operator(2 * x - z), 2 * shown - operator(z))
    torch.testing.assert_close(operator(x[1:]), shown[1:])
    assert operator(x.float()).dtype == operator.transpose(y.float()).dtype == torch.float32


def test_what_the_operators_show():
    x = noise(2, 3, 8, 12)
    torch.testing.assert_close(Downsample(factor=4)(x)[1, 2, 1, 2], x[1, 2, 4:8, 8:12].mean())
    torch.testing.assert_close(
        Colour()(x)[:, 0], 0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2]
    )
    assert torch.equal(Inpaint(mask=MASK)(x), MASK * x)
    spot = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
    spot[..., 4, 4] = 1
    i = torch.arange(-2, 3, dtype=torch.float64)
    kernel = (-(i**2) / 4.5).exp() / (-(i**2) / 4.5).exp().sum()
    torch.testing.assert_close(
        Blur(deviation=1.5, radius=2)(spot)[0, 0, 2:7, 2:7], kernel[:, None] * kernel
    )
    assert torch.equal(Blur(deviation=2.0)(x), Blur(deviation=2.0, radius=6)(x))


def test_means_of_squares_are_those_of_the_last_two_dimensions_whatever_the_others():
    x, y = noise(2, 3, 8, 12), noise(2, 3, 2, 3, seed=1)
    for shape in ((6,), (2, 3, 1)):
        torch.testing.assert_close(
            Downsample(factor=4)(x.reshape(*shape, 8, 12)),
            Downsample(factor=4)(x).reshape(*shape, 2, 3),
        )
        torch.testing.assert_close(
            Downsample(factor=4).transpose(y.reshape(*shape, 2, 3)),
            Downsample(factor=4).transpose(y).reshape(*shape, 8, 12),
        )
    for shape in ((6, 9, 8), (6, 8, 9), (4, 8)):
        with pytest.raises(ValueError, match="must divide height and width"):
            Downsample(factor=4)(noise(*shape))


def test_one_observation_or_mask_serves_all_samples():
    x, y, mask = (
        noise(3, 1, 4, 4),
        noise(1, 1, 4, 4, seed=1),
        (noise(1, 1, 4, 4, seed=2) > 0).double(),
    )
    torch.testing.assert_close(
        Observation(Inpaint(mask=mask), y, distance="squared")(x),
        ((mask * (y - x)) ** 2).sum((1, 2, 3)),
    )
    with pytest.raises(
        ValueError, match=r"y is \(2, 1, 4, 4\), but the operator makes \(3, 1, 4, 4\)"
    ):
        Observation(Identity(), noise(2, 1, 4, 4))(x)
    with pytest.raises(ValueError, match="one mask for all samples, not \\(3, 1, 4, 4\\)"):
        Inpaint(mask=mask.repeat(3, 1, 1, 1))(x)


def test_the_cost_of_iterations_is_planned_and_none_are_refused():
    y = noise(3, D)
    plan = lambda term: (
        Guided(term, denoiser(SIGMA)).plan(uniform(SCHEDULES["flow"], 4), batch=3).gradients
    )
    observed = Observation(Identity(), y, noise=0.1)
    assert (
        plan(mmps(1.0, observed, iterations=3)) == 4 * 4
        and plan(mmps(1.0, observed, iterations=1)) == 4 * 2
        and plan(pigdm(1.0, observed)) == 4
    )
    for made in (mmps, pigdm):
        with pytest.raises(ValueError, match="at least one iteration, not 0"):
            made(1.0, observed, iterations=0)


def test_operators_by_name_and_what_is_refused():
    assert (
        get_operator("downsample", factor=2) == Downsample(factor=2)
        and Observation("gray", 0.0).operator == Colour()
    )
    for name, options, said in (
        ("sharpen", {}, "unknown operator 'sharpen'"),
        ("inpaint", {}, "inpaint: .*mask"),
        ("downsample", {"factor": 0}, "at least 1"),
        ("blur", {"deviation": 0.0}, "above 0"),
    ):
        with pytest.raises(ValueError, match=said):
            get_operator(name, **options)
    for shape in ((1, 3, 8, 12), (1, 3, 10, 12), (1, 3, 8, 10), (10, 10)):
        with pytest.raises(ValueError, match="must divide height and width"):
            Downsample(factor=5)(noise(*shape))
