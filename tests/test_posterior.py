"""PiGDM and MMPS against exact posteriors of normal data, operators against their transposes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from _scenes import PLACES
from _toys import SCHEDULES, col, mixed_step, noise, steps
from guidestar import Blur, Colour, Downsample, Guided, Identity, Inpaint, Level, Linear, Observation, get_operator, mmps, pigdm, uniform
from guidestar.guidance.posterior import conjugate

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
    return [tuple(float(v[i]) if isinstance(v, Tensor) else v for v in level[:2]) for i in range(count)]


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
        rows.append(MEAN + covariance @ h.T @ torch.linalg.solve(h @ covariance @ h.T + added, told - h @ MEAN))
    return torch.stack(rows)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("made", "covariance"), [(pigdm, torch.eye(D, dtype=torch.float64)), (mmps, SIGMA)])
def test_the_posterior_mean_of_normal_data_is_exact(place, made, covariance):
    x, step, y = noise(3, D), steps(place)[0], noise(3, 2, seed=1)
    observed = Observation(Matrix(MATRIX), y, noise=0.4)
    out, _ = Guided(made(1.0, observed), denoiser(covariance))(x, step)
    exact = posterior_mean(x, step.t, y, covariance, 0.4)
    torch.testing.assert_close(out.x0, exact, rtol=1e-8, atol=1e-8)
    a, s = col(step.t.alpha, x), col(step.t.sigma, x)
    torch.testing.assert_close(out.eps, (x - a * exact) / s, rtol=1e-8, atol=1e-8)


def test_pigdm_is_its_formula_also_where_it_is_not_exact():
    x, y, step = noise(3, D), noise(3, 2, seed=1), mixed_step("flow", [2.0, 1.0, 0.5], [1.0, 0.5, 0.2])
    out, _ = Guided(pigdm(0.8, Observation(Matrix(MATRIX), y, noise=0.3)), denoiser(SIGMA))(x, step)
    at = x.clone().requires_grad_()
    clean = denoiser(SIGMA)(at, step.t, None)
    rho = step.t.sigma / step.t.alpha
    r2 = col(rho**2 / (1 + rho**2), x)
    share = torch.stack([torch.linalg.solve(v * MATRIX @ MATRIX.T + 0.09 * torch.eye(2, dtype=x.dtype), b) for v, b in zip(r2, y - clean @ MATRIX.T, strict=True)])
    score = torch.autograd.grad(clean, at, share.detach() @ MATRIX)[0]
    torch.testing.assert_close(out.x0, (clean + 0.8 * col(step.t.sigma**2 / step.t.alpha, x) * score).detach(), rtol=1e-8, atol=1e-8)


def test_known_pixels_without_noise_become_what_was_observed():
    x, step, mask = noise(2, D), steps("flow")[0], torch.tensor([1.0, 0, 1, 1, 0])
    y = noise(2, D, seed=1)
    for made, covariance in ((pigdm, torch.eye(D, dtype=x.dtype)), (mmps, SIGMA)):
        out, _ = Guided(made(1.0, Observation(Inpaint(mask=mask), mask * y), iterations=4), denoiser(covariance))(x, step)
        torch.testing.assert_close(mask * out.x0, mask * y, rtol=1e-8, atol=1e-8)


def test_conjugate_gradients_solve_each_sample_by_itself():
    a = torch.stack([m @ m.T + 0.1 * torch.eye(4, dtype=m.dtype) for m in noise(3, 4, 4)])
    b = noise(3, 4, seed=1)
    b[1] = 0
    solved = conjugate(lambda v: (a @ v[..., None])[..., 0], b, 12)
    torch.testing.assert_close(solved, torch.linalg.solve(a, b), rtol=1e-8, atol=1e-10)
    alone = conjugate(lambda v: (a[:1] @ v[..., None])[..., 0], b[:1], 12)
    torch.testing.assert_close(alone, solved[:1], rtol=1e-12, atol=1e-12)
    assert torch.equal(conjugate(lambda v: 0 * v, b, 3), 0 * b)


def test_conjugate_gradients_go_on_to_rounding():
    diagonal, b = torch.linspace(1, 40, 30, dtype=torch.float64), noise(2, 30)
    solved = conjugate(lambda v: diagonal * v, b, 60)
    assert ((diagonal * solved - b).norm(dim=1) < 1e-13 * b.norm(dim=1)).all()


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
    torch.testing.assert_close((shown * y).flatten(1).sum(1), (x * operator.transpose(y)).flatten(1).sum(1))
    torch.testing.assert_close(operator(2 * x - z), 2 * shown - operator(z))
    torch.testing.assert_close(operator(x[1:]), shown[1:])
    assert operator(x.float()).dtype == operator.transpose(y.float()).dtype == torch.float32


def test_what_the_operators_show():
    x = noise(2, 3, 8, 12)
    torch.testing.assert_close(Downsample(factor=4)(x)[1, 2, 1, 2], x[1, 2, 4:8, 8:12].mean())
    torch.testing.assert_close(Colour()(x)[:, 0], 0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2])
    assert torch.equal(Inpaint(mask=MASK)(x), MASK * x)
    spot = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
    spot[..., 4, 4] = 1
    i = torch.arange(-2, 3, dtype=torch.float64)
    kernel = (-(i**2) / 4.5).exp() / (-(i**2) / 4.5).exp().sum()
    torch.testing.assert_close(Blur(deviation=1.5, radius=2)(spot)[0, 0, 2:7, 2:7], kernel[:, None] * kernel)
    assert torch.equal(Blur(deviation=2.0)(x), Blur(deviation=2.0, radius=6)(x))


def test_means_of_squares_are_those_of_the_last_two_dimensions_whatever_the_others():
    x, y = noise(2, 3, 8, 12), noise(2, 3, 2, 3, seed=1)
    for shape in ((6,), (2, 3, 1)):
        torch.testing.assert_close(Downsample(factor=4)(x.reshape(*shape, 8, 12)), Downsample(factor=4)(x).reshape(*shape, 2, 3))
        torch.testing.assert_close(Downsample(factor=4).transpose(y.reshape(*shape, 2, 3)), Downsample(factor=4).transpose(y).reshape(*shape, 8, 12))
    for shape in ((6, 9, 8), (6, 8, 9), (4, 8)):
        with pytest.raises(ValueError, match="must divide height and width"):
            Downsample(factor=4)(noise(*shape))


def test_one_observation_or_mask_serves_all_samples():
    x, y, mask = noise(3, 1, 4, 4), noise(1, 1, 4, 4, seed=1), (noise(1, 1, 4, 4, seed=2) > 0).double()
    torch.testing.assert_close(Observation(Inpaint(mask=mask), y, distance="squared")(x), ((mask * (y - x)) ** 2).sum((1, 2, 3)))
    with pytest.raises(ValueError, match=r"y is \(2, 1, 4, 4\), but the operator makes \(3, 1, 4, 4\)"):
        Observation(Identity(), noise(2, 1, 4, 4))(x)
    with pytest.raises(ValueError, match="one mask for all samples, not \\(3, 1, 4, 4\\)"):
        Inpaint(mask=mask.repeat(3, 1, 1, 1))(x)


def test_the_cost_of_iterations_is_planned_and_none_are_refused():
    y = noise(3, D)
    plan = lambda term: Guided(term, denoiser(SIGMA)).plan(uniform(SCHEDULES["flow"], 4), batch=3).gradients  # noqa: E731
    observed = Observation(Identity(), y, noise=0.1)
    assert plan(mmps(1.0, observed, iterations=3)) == 4 * 4 and plan(mmps(1.0, observed, iterations=1)) == 4 * 2 and plan(pigdm(1.0, observed)) == 4
    for made in (mmps, pigdm):
        with pytest.raises(ValueError, match="at least one iteration, not 0"):
            made(1.0, observed, iterations=0)


def test_operators_by_name_and_what_is_refused():
    assert get_operator("downsample", factor=2) == Downsample(factor=2) and Observation("gray", 0.0).operator == Colour()
    for name, options, said in (
        ("sharpen", {}, "unknown operator 'sharpen'"),
        ("inpaint", {}, "inpaint: .*mask"),
        ("downsample", {"factor": 0}, "at least 1"),
        ("blur", {"deviation": 0.0}, "above 0"),
    ):
        with pytest.raises(ValueError, match=said):
            get_operator(name, **options)
    with pytest.raises(ValueError, match="must divide height and width"):
        Downsample(factor=5)(noise(1, 3, 8, 12))
