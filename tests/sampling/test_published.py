"""Every multistep solver against its published algorithm, written out here, on the same sigmas.

The published code works on ``y = x/α`` at the noise ratio σ ("sigma"), with the denoiser D(y, σ).
"""

import itertools
import math

import numpy as np
import pytest
import torch

from guidestar.core.levels import VE, VP, Flow, Grid
from guidestar.core.prediction import Prediction
from guidestar.sampling import (
    DEIS,
    ERSDE,
    RES,
    SA,
    DPMpp2S,
    DPMpp3M,
    SDEDPMpp3M,
    UniPC,
    get_solver,
    trajectory,
)

SIGMAS = (60.0, 21.0, 9.0, 4.0, 1.5, 0.6, 0.2, 0.0)
SCHEDULES = {"vp": VP.linear(), "ve": VE(), "flow": Flow()}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


def denoise(y, sigma):
    """Some D that is not linear."""
    return 0.7 + 0.25 / (0.25 + sigma**2) * (y - 0.7) + 0.3 * torch.sin(y / (1 + sigma**2) ** 0.5)


class Noises:
    """A Draw whose numbers are a fixed function of the step."""

    def __init__(self, step=0):
        self.step = step

    def at(self, step):
        return Noises(step)

    def normal_like(self, tag, x):
        return noise_of(self.step)


def noise_of(step):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(3, 2, generator=generator, dtype=torch.float64)


START = noise_of(-1) * SIGMAS[0]


def walk(solver, schedule):
    """Return y after each step."""
    levels = [schedule.at_rho(s) if s else schedule.clean for s in SIGMAS]
    grid = Grid(levels=tuple(levels), schedule=schedule)

    def predict(x, step, state):
        a = step.t.alpha
        return Prediction.from_x0(x, step.t, denoise(x / a, step.t.sigma / a)), state

    run = trajectory(predict, grid[0].alpha * START, grid=grid, solver=solver, draw=Noises())
    return [state.x / state.step.s.alpha for state in run]


def assert_walks(solver, schedule, published):
    ours, theirs = walk(solver, schedule), list(published)
    assert len(ours) == len(theirs) == len(SIGMAS) - 1
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def integral(function, low, high):
    """∫ by 80 Gauss–Legendre points on each of 8 parts."""
    nodes, weights = np.polynomial.legendre.leggauss(80)
    edges = np.linspace(low, high, 9)
    return sum(
        float((weights * function(a + (b - a) * (nodes + 1) / 2)).sum() * (b - a) / 2)
        for a, b in itertools.pairwise(edges)
    )


def lagrange(places, j):
    """ℓ_j of these places, as a function of arrays."""

    def polynomial(u):
        factors = [(u - p) / (places[j] - p) for i, p in enumerate(places) if i != j]
        return np.prod(factors, axis=0) if factors else np.ones_like(u)

    return polynomial


# --- UniPC, after Diffusers' UniPCMultistepScheduler with solver_order and solver_type


def unipc(order, variant, corrector=True, lower_final=True):
    steps, x, outputs, sigmas, last = len(SIGMAS) - 1, START, [], [], None

    def update(x, m0, s0, t, past, new=None):
        """One update of UniP (new is None) or UniC to sigma t."""
        lam_t, lam_0 = -math.log(t), -math.log(s0)
        h = lam_t - lam_0
        rks, d1s = [], []
        for m, s in past:
            rk = (-math.log(s) - lam_0) / h
            rks.append(rk)
            d1s.append((m - m0) / rk)
        rks.append(1.0)
        hh = -h
        h_phi_1 = math.expm1(hh)
        h_phi_k, factorial, R, b = h_phi_1 / hh - 1, 1, [], []
        B_h = hh if variant == "bh1" else math.expm1(hh)
        for i in range(1, len(rks) + 1):
            R.append([r ** (i - 1) for r in rks])
            b.append(h_phi_k * factorial / B_h)
            factorial *= i + 1
            h_phi_k = h_phi_k / hh - 1 / factorial
        R, b = torch.tensor(R, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
        base = t / s0 * x - h_phi_1 * m0
        if new is None:
            if not d1s:
                return base
            rhos = [0.5] if len(d1s) == 1 else torch.linalg.solve(R[:-1, :-1], b[:-1])
            return base - B_h * sum(r * d for r, d in zip(rhos, d1s, strict=True))
        rhos = [0.5] if not d1s else torch.linalg.solve(R, b)
        rest = sum(r * d for r, d in zip(rhos[:-1], d1s, strict=True))
        return base - B_h * (rest + rhos[-1] * (new - m0))

    before = None
    for i in range(steps):
        s, t = SIGMAS[i], SIGMAS[i + 1]
        m = denoise(x, s)
        if corrector and before is not None:
            x = update(before, outputs[-1], sigmas[-1], s, last, m)
        p = min(order, steps - i if lower_final else order, i + 1)
        past = list(zip(outputs[::-1], sigmas[::-1], strict=True))[: p - 1]
        before, last = x, past
        x = update(x, m, s, t, past) if t else m
        outputs.append(m)
        sigmas.append(s)
        yield x


@every_schedule
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("corrector", [True, False])
def test_unipc(order, variant, corrector, schedule):
    solver = UniPC(order=order, variant=variant, corrector=corrector)
    assert_walks(solver, schedule, unipc(order, variant, corrector))


# --- k-diffusion


def dpmpp_3m_sde(eta):
    """sample_dpmpp_3m_sde, with s_noise = 1."""
    x, denoised_1, denoised_2, h_1, h_2 = START, None, None, None, None
    for i, (s, s_next) in enumerate(itertools.pairwise(SIGMAS)):
        denoised = denoise(x, s)
        if s_next == 0:
            x = denoised
        else:
            h = -math.log(s_next) + math.log(s)
            h_eta = h * (eta + 1)
            x = math.exp(-h_eta) * x - math.expm1(-h_eta) * denoised
            if h_2 is not None:
                r0, r1 = h_1 / h, h_2 / h
                d1_0, d1_1 = (denoised - denoised_1) / r0, (denoised_1 - denoised_2) / r1
                d1 = d1_0 + (d1_0 - d1_1) * r0 / (r0 + r1)
                d2 = (d1_0 - d1_1) / (r0 + r1)
                phi_2 = math.expm1(-h_eta) / h_eta + 1
                phi_3 = phi_2 / h_eta - 0.5
                x = x + phi_2 * d1 - phi_3 * d2
            elif h_1 is not None:
                d = (denoised - denoised_1) / (h_1 / h)
                x = x + (math.expm1(-h_eta) / h_eta + 1) * d
            if eta:
                x = x + noise_of(i) * s_next * math.sqrt(-math.expm1(-2 * h * eta))
            h_1, h_2 = h, h_1
        denoised_1, denoised_2 = denoised, denoised_1
        yield x


@every_schedule
def test_dpmpp_3m(schedule):
    ode = DPMpp3M(lower_order_final=False)
    assert_walks(ode, schedule, dpmpp_3m_sde(0.0))
    assert_walks(SDEDPMpp3M(lower_order_final=False), schedule, dpmpp_3m_sde(1.0))
    half = SDEDPMpp3M(lower_order_final=False, eta=0.5)
    assert_walks(half, schedule, dpmpp_3m_sde(0.5))
    assert_walks(get_solver("DPM++ 3M SDE"), schedule, dpmpp_3m_sde(1.0))


def dpmpp_2s_ancestral(eta):
    """sample_dpmpp_2s_ancestral."""
    x = START
    for i, (s, s_next) in enumerate(itertools.pairwise(SIGMAS)):
        denoised = denoise(x, s)
        up = min(s_next, eta * (s_next**2 * (s**2 - s_next**2) / s**2) ** 0.5)
        down = (s_next**2 - up**2) ** 0.5
        if down == 0:
            x = x + (x - denoised) / s * (down - s)
        else:
            t, t_next = -math.log(s), -math.log(down)
            h = t_next - t
            middle = math.exp(-(t + h / 2))
            x_2 = middle / s * x - math.expm1(-h / 2) * denoised
            x = down / s * x - math.expm1(-h) * denoise(x_2, middle)
        if s_next > 0:
            x = x + noise_of(i) * up
        yield x


@every_schedule
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_dpmpp_2s(eta, schedule):
    assert_walks(DPMpp2S(eta=eta), schedule, dpmpp_2s_ancestral(eta))


def euler_ancestral():
    """sample_euler_ancestral."""
    x = START
    for i, (s, s_next) in enumerate(itertools.pairwise(SIGMAS)):
        up = min(s_next, (s_next**2 * (s**2 - s_next**2) / s**2) ** 0.5)
        down = (s_next**2 - up**2) ** 0.5
        x = x + (x - denoise(x, s)) / s * (down - s)
        x = x + noise_of(i) * up if s_next > 0 else x
        yield x


@every_schedule
def test_euler_a_is_a_setting_of_ddim(schedule):
    assert_walks(get_solver("Euler a"), schedule, euler_ancestral())


def lms():
    """sample_lms of order 4: ∫ of the Lagrange polynomials of d in sigma."""
    x, ds = START, []
    for i, (s, s_next) in enumerate(itertools.pairwise(SIGMAS)):
        ds.append((x - denoise(x, s)) / s)
        order = min(i + 1, 4)
        places = [SIGMAS[i - j] for j in range(order)]
        x = x + sum(
            integral(lagrange(places, j), s, s_next) * d
            for j, d in zip(range(order), reversed(ds), strict=False)
        )
        yield x


@every_schedule
def test_lms(schedule):
    assert_walks(get_solver("LMS"), schedule, lms())


# --- ComfyUI


def ipndm():
    """sample_ipndm, max_order 4."""
    x, buffer = START, []
    factors = [
        (1,),
        (3 / 2, -1 / 2),
        (23 / 12, -16 / 12, 5 / 12),
        (55 / 24, -59 / 24, 37 / 24, -9 / 24),
    ]
    for s, s_next in itertools.pairwise(SIGMAS):
        buffer = [(x - denoise(x, s)) / s, *buffer][:4]
        x = x + (s_next - s) * sum(
            f * d for f, d in zip(factors[len(buffer) - 1], buffer, strict=True)
        )
        yield x


@every_schedule
def test_ipndm(schedule):
    assert_walks(get_solver("ipndm"), schedule, ipndm())


def gradient_estimation(gamma):
    """sample_gradient_estimation."""
    x, old_d = START, None
    for s, s_next in itertools.pairwise(SIGMAS):
        denoised = denoise(x, s)
        d, dt = (x - denoised) / s, s_next - s
        if s_next == 0:
            x = denoised
        else:
            x = x + d * dt
            if old_d is not None:
                x = x + (gamma - 1) * (d - old_d) * dt
        old_d = d
        yield x


@every_schedule
@pytest.mark.parametrize("gamma", [1.3, 2.0])
def test_gradient_estimation(gamma, schedule):
    solver = DEIS(order=2, form="uniform", gamma=gamma)
    assert_walks(solver, schedule, gradient_estimation(gamma))


def res_multistep():
    """sample_res_multistep without noise."""
    x, old, t_old = START, None, None
    for s, s_next in itertools.pairwise(SIGMAS):
        denoised = denoise(x, s)
        if s_next == 0:
            x = denoised
        elif old is None:
            x = x + (x - denoised) / s * (s_next - s)
        else:
            t, t_next = -math.log(s), -math.log(s_next)
            h, c2 = t_next - t, (t_old - t) / (t_next - t)
            phi1 = math.expm1(-h) / -h
            phi2 = (phi1 - 1.0) / -h
            b1, b2 = phi1 - phi2 / c2, phi2 / c2
            x = s_next / s * x + h * (b1 * denoised + b2 * old)
        old, t_old = denoised, -math.log(s)
        yield x


@every_schedule
def test_res_multistep(schedule):
    assert_walks(get_solver("res_multistep"), schedule, res_multistep())


def er_sde(order):
    """sample_er_sde with its noise function; the sums over 200 points are integrals here."""

    def scaler(sigma):
        return sigma * (np.exp(sigma**0.3) + 10.0)

    x, old, old_d = START, None, None
    for i, (s, s_next) in enumerate(itertools.pairwise(SIGMAS)):
        denoised = denoise(x, s)
        if s_next == 0:
            x = denoised
        else:
            r = float(scaler(s_next) / scaler(s))
            x = r * x + (1 - r) * denoised
            if order >= 2 and i >= 1:
                dt = s_next - s
                zeroth = integral(lambda v: 1 / scaler(v), s_next, s)
                slope = (denoised - old) / (s - SIGMAS[i - 1])
                x = x + (dt + zeroth * float(scaler(s_next))) * slope
                if order >= 3 and i >= 2:
                    first = integral(lambda v, s=s: (v - s) / scaler(v), s_next, s)
                    bend = (slope - old_d) / ((s - SIGMAS[i - 2]) / 2)
                    x = x + (dt**2 / 2 + first * float(scaler(s_next))) * bend
                old_d = slope
            x = x + noise_of(i) * math.sqrt(s_next**2 - s**2 * r**2)
        old = denoised
        yield x


@every_schedule
@pytest.mark.parametrize("order", [1, 2, 3])
def test_er_sde(order, schedule):
    assert_walks(ERSDE(order=order), schedule, er_sde(order))


# --- from the integrals of the papers


def deis(order, lower_final):
    """DEIS in log rho: x + Σ_j ε_j ∫ ℓ_j(log rho) drho."""
    x, eps, steps = START, [], len(SIGMAS) - 1
    for i, (s, s_next) in enumerate(itertools.pairwise(SIGMAS)):
        eps.append((x - denoise(x, s)) / s)
        p = min(order, i + 1, steps - i if lower_final else order)
        if s_next == 0:
            x = x - s * eps[-1]
        else:
            places = [math.log(SIGMAS[i - j]) for j in range(p)]
            x = x + sum(
                integral(
                    lambda u, j=j: lagrange(places, j)(u) * np.exp(u),
                    math.log(s),
                    math.log(s_next),
                )
                * eps[-1 - j]
                for j in range(p)
            )
        yield x


@every_schedule
@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("lower_final", [True, False])
def test_deis(order, lower_final, schedule):
    solver = DEIS(order=order, lower_order_final=lower_final)
    assert_walks(solver, schedule, deis(order, lower_final))


def adams_weights(places, lam_s, lam_t, k):
    """The integrals of SA-Solver's equations 14 and 17 between two levels, without σ_s."""
    return [
        integral(
            lambda u, j=j: k * np.exp(-k * (lam_s - u) + lam_s) * lagrange(places, j)(u),
            lam_t,
            lam_s,
        )
        for j in range(len(places))
    ]


def sa_solver(order, corrector, tau, lower_final=False):
    """Algorithm 1 of SA-Solver; `corrector` estimates in the corrector, 0: none."""
    x, outputs, lams, before, steps = START, [], [], None, len(SIGMAS) - 1
    k = 1 + tau**2
    for i, (s, s_next) in enumerate(itertools.pairwise(SIGMAS)):
        outputs.append(denoise(x, s))
        lams.append(-math.log(s))
        if before is not None and corrector:
            start, noise = before
            h = lams[-1] - lams[-2]
            places = lams[::-1][:corrector]
            weights = adams_weights(places, lams[-1], lams[-2], k)
            x = s / SIGMAS[i - 1] * math.exp(-(tau**2) * h) * start + noise
            x = x + s * sum(w * d for w, d in zip(weights, outputs[::-1], strict=False))
        if s_next == 0:
            yield outputs[-1]
            return
        lam = -math.log(s_next)
        h = lam - lams[-1]
        noise = s_next * math.sqrt(1 - math.exp(-2 * tau**2 * h)) * noise_of(i)
        before = x, noise
        p = min(order, steps - i) if lower_final else order
        weights = adams_weights(lams[::-1][:p], lam, lams[-1], k)
        x = s_next / s * math.exp(-(tau**2) * h) * x + noise
        x = x + s_next * sum(w * d for w, d in zip(weights, outputs[::-1], strict=False))
        yield x


@every_schedule
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("corrector", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("tau", [0.0, 0.7, 1.0])
def test_sa(order, corrector, tau, schedule):
    solver = SA(order=order, corrector_order=corrector, tau=tau, lower_order_final=False)
    assert_walks(solver, schedule, sa_solver(order, corrector, tau))


@every_schedule
@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_res_is_the_predictor_of_sa(order, eta, schedule):
    solver = RES(order=order, eta=eta)
    assert_walks(solver, schedule, sa_solver(order, 0, math.sqrt(eta), lower_final=True))
