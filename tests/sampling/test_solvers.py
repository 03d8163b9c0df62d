"""Laws of every solver in SOLVERS: a newcomer is tested before its author writes a line.

There is no Monte Carlo. For data N(m, v) the exact denoiser is affine, so a run is affine in its
start and in its noises: one batch in which row 0 has no noise, row 1 a start one deviation away and
each further row exactly one unit noise gives the mean and the variance of the samples exactly.
"""

import itertools
import math
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest
import torch

from guidestar.core.denoiser import Condition
from guidestar.core.levels import VE, VP, Flow, Grid, Level, Step
from guidestar.core.prediction import Prediction
from guidestar.core.rng import Draw
from guidestar.core.rounds import GuidedStep
from guidestar.networks.network import Network
from guidestar.sampling import (
    DDIM,
    DDPM,
    DEIS,
    ERSDE,
    RES,
    SA,
    SOLVERS,
    DPMpp2S,
    Heun,
    UniPC,
    get_solver,
    noise,
    noised,
    sample,
    trajectory,
)
from guidestar.sampling.grids import karras, leading, log_snr, trailing, uniform
from helpers.toys import moved

DEFAULTS = {name: solver() for name, solver in SOLVERS.items()}
VARIANTS = {
    **DEFAULTS,
    "ddim eta=0.6": DDIM(eta=0.6),
    "ddim eta=1": DDIM(eta=1.0),
    "heun edm": Heun(form="edm"),
    "heun flow": Heun(form="flow"),
    "heun churn": Heun(churn=40.0),
    "heun edm churn": Heun(form="edm", churn=40.0),
    "heun flow churn": Heun(form="flow", churn=40.0, churn_interval=(0.05, 50.0)),
    "unipc 1 bh1": UniPC(order=1, variant="bh1"),
    "unipc 2 bh1": UniPC(variant="bh1"),
    "unipc 3": UniPC(order=3),
    "unip 3": UniPC(order=3, corrector=False),
    "unip 2 at full order": UniPC(corrector=False, lower_order_final=False),
    "res 3": RES(order=3),
    "res 3 at full order": RES(order=3, lower_order_final=False),
    "res 2, slow start": RES(first_order_steps=3),
    "res sde": RES(order=2, eta=0.5),
    "deis 2": DEIS(order=2),
    "lms": DEIS(order=3, form="rho"),
    "lms at full order": DEIS(order=4, form="rho", lower_order_final=False),
    "ipndm": DEIS(order=4, form="uniform"),
    "gradient estimation": DEIS(order=2, form="uniform", gamma=2.0),
    "2s ancestral": DPMpp2S(eta=1.0),
    "er-sde 2": ERSDE(order=2),
    "sa ode": SA(order=2, corrector_order=2, tau=0.0),
    "sa 2 1": SA(order=2, corrector_order=1),
    "sa interval": SA(order=2, corrector_order=2, tau=0.8, interval=(0.3, math.inf)),
    "sa predictor": SA(order=3, corrector_order=0),
}
NO_PURE_NOISE = {"heun edm", "heun edm churn"}
GRIDS = {
    "vp": trailing(VP.linear(), 9),
    "vp leading": leading(VP.cosine(), 7),
    "ve": karras(VE(), 9),
    "flow": karras(Flow(), 9),
}
PURE_NOISE = {
    "flow from t=1": uniform(Flow(), 7),
    "shifted flow": uniform(Flow(shift=3.0), 7),
    "zero-snr": trailing(VP.scaled_linear().zero_terminal_snr(), 7),
}

every_variant = pytest.mark.parametrize("name", VARIANTS)
every_default = pytest.mark.parametrize("name", DEFAULTS)


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def exact(x, level, mean, var):
    """D of data N(mean, var); x/alpha at data."""
    if not isinstance(level.sigma, torch.Tensor):
        a, s = level.alpha, level.sigma
        return mean + (a * var / (a**2 * var + s**2) if s else 1 / a) * (x - a * mean)
    rows = [Level(*values) for values in zip(*(v.tolist() for v in level), strict=True)]
    return torch.stack([exact(row, one, mean, var) for row, one in zip(x, rows, strict=True)])


def predictor(mean=0.7, var=0.25, **more):
    def predict(x, step, gstate):
        return Prediction.from_x0(x, step.t, exact(x, step.t, mean, var)), gstate

    predict.__dict__.update(more)
    return predict


@dataclass
class Units:
    """A Draw whose j-th noise of the run is 1 in row 2 + j and 0 elsewhere."""

    used: int = 0

    def at(self, step):
        return self

    def normal_like(self, tag, x):
        z = torch.zeros_like(x)
        z[2 + self.used] = 1
        self.used += 1
        return z


class NoDraw:
    """A Draw that must not be used."""

    def at(self, step):
        return self


@dataclass
class Fixed:
    """A Draw that returns the given z."""

    z: torch.Tensor
    tags: list = field(default_factory=list)

    def at(self, step):
        return self

    def normal_like(self, tag, x):
        self.tags.append(tag)
        return self.z.expand_as(x)


def moments(solver, grid, mean, var):
    """Yield (level, mean, variance) of the samples after each step, from the exact marginal at the
    first level.
    """
    first, rows = grid[0], 2 + (2 * grid.steps if solver.stochastic else 0)
    x = torch.full((rows, 1), first.alpha * mean, dtype=torch.float64)
    x[1] += math.sqrt(first.alpha**2 * var + first.sigma**2)
    for state in trajectory(predictor(mean, var), x, grid=grid, solver=solver, draw=Units()):
        yield state.step.s, float(state.x[0]), float(((state.x[1:] - state.x[0]) ** 2).sum())


# --- laws


def assert_point_mass(solver, grid):
    m = -1.3
    for level, mean, variance in moments(solver, grid, m, 0.0):
        assert mean == pytest.approx(level.alpha * m, abs=1e-9 * (1 + grid[0].sigma))
        assert variance == pytest.approx(level.sigma**2, rel=1e-9, abs=1e-14)


@every_variant
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_point_mass_at_every_level(name, grid):
    assert_point_mass(VARIANTS[name], grid)


@every_variant
@pytest.mark.parametrize("grid", PURE_NOISE.values(), ids=PURE_NOISE)
def test_point_mass_from_pure_noise(name, grid):
    if name in NO_PURE_NOISE:
        with pytest.raises(
            ValueError,
            match=r"pure noise \(alpha = 0\); leave the form out, or use a grid that starts "
            r"below it",
        ):
            assert_point_mass(VARIANTS[name], grid)
    else:
        assert_point_mass(VARIANTS[name], grid)


@pytest.mark.parametrize("name", [n for n, solver in DEFAULTS.items() if not solver.stochastic])
def test_point_mass_of_deterministic_solvers_sample_by_sample(name):
    """The moments of the others are tested below."""
    solver, grid, m = DEFAULTS[name], GRIDS["vp"], 0.4
    x_T = double(-2.0, 0.5, 3.0).reshape(3, 1)
    for state in trajectory(predictor(m, 0.0), x_T, grid=grid, solver=solver, draw=NoDraw()):
        expected = (
            state.step.s.alpha * m + state.step.s.sigma * (x_T - grid[0].alpha * m) / grid[0].sigma
        )
        torch.testing.assert_close(state.x, expected, rtol=1e-9, atol=1e-9)


SCHEDULES = {
    "vp": (VP.linear(), (160, 320)),
    "ve": (VE(), (160, 320)),
    "flow": (Flow(), (160, 320)),
}


def at_full_order(solver):
    """The same solver with its full order in the last step too."""
    has = hasattr(solver, "lower_order_final")
    return replace(solver, lower_order_final=False) if has else solver


NOT_MONOTONE = {"sa ode", "sa interval"}
"""Variants whose error of the variance changes its sign as the steps become shorter."""


@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in NOT_MONOTONE])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_order(name, schedule):
    """The mean is exact; the error of the variance falls as the solver's (weak) order says.

    Where the noise ratio falls to 0.02 the errors of odd orders cancel between both ends of the
    log-SNR, so those of third order stop at 0.4.
    """
    solver, errors = at_full_order(VARIANTS[name]), []
    low, margin = (0.02, 0.15) if solver.convergence < 3 else (0.4, 0.2)
    schedule, counts = SCHEDULES[schedule]
    for n in counts:
        *_, (level, mean, variance) = moments(
            solver, log_snr(schedule, n, rho_max=80.0, rho_min=low, clean=False), 0.7, 0.25
        )
        assert mean == pytest.approx(level.alpha * 0.7, rel=1e-9)
        errors.append(abs(variance - (level.alpha**2 * 0.25 + level.sigma**2)))
    for coarse, fine in itertools.pairwise(errors):
        assert abs(math.log2(coarse / fine) - solver.convergence) < margin


@every_variant
def test_a_deterministic_solver_draws_nothing_and_a_stochastic_one_does(name):
    solver, grid, x = VARIANTS[name], GRIDS["ve"], double(3.0, 7.0).reshape(2, 1)
    if not solver.stochastic:
        runs = [
            list(trajectory(predictor(), x, grid=grid, solver=solver, draw=NoDraw()))[-1].x
            for _ in range(2)
        ]
        assert torch.equal(*runs)
        return
    with pytest.raises(AttributeError, match="normal"):
        list(trajectory(predictor(), x, grid=grid, solver=solver, draw=NoDraw()))
    one, other = (
        list(trajectory(predictor(), x, grid=grid, solver=solver, draw=Draw(seeds)))[-2].x
        for seeds in ([1, 2], [3, 2])
    )
    assert one[0] != other[0] and one[1] == other[1]


@every_default
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_a_split_displaces_by_alpha_delta(name, grid):
    """At every step, from the same history, x_s moves by alpha_s·Delta, and the history does
    not.
    """
    solver, delta = DEFAULTS[name], double(0.3, -2.0).reshape(2, 1)
    if not solver.accepts_split:
        with pytest.raises(
            ValueError, match=f"cfgpp splits .* the solver '{name}'; use ddim or dpmpp-2m"
        ):
            solver.check(predictor(splits=("cfgpp",)), grid)
        return
    solver.check(predictor(splits=("cfgpp",)), grid)

    def split(x, step, gstate):
        return predictor()(x, step, gstate)[0].shifted(delta, linked=False), gstate

    x, sstate, draw = double(1.0, -1.0).reshape(2, 1) * grid[0].sigma, {}, Fixed(double(0.8))
    for i in range(grid.steps):
        plain, after = moved(solver, predictor(), x, grid.step(i), draw, sstate)
        shifted, after_split = moved(solver, split, x, grid.step(i), draw, sstate)
        torch.testing.assert_close(shifted - plain, grid[i + 1].alpha * delta, rtol=1e-9, atol=1e-9)
        for key, value in after.items():
            torch.testing.assert_close(
                torch.as_tensor(after_split[key]), torch.as_tensor(value), rtol=1e-9, atol=1e-8
            )
        x, sstate = plain, after


@every_variant
def test_evaluations_are_those_declared(name):
    solver, asked = VARIANTS[name], []

    def predict(x, step, gstate):
        asked.append(step.t)
        return predictor()(x, step, gstate)

    for grid in GRIDS.values():
        x = torch.ones(1, 1, dtype=torch.float64) * grid[0].sigma
        list(trajectory(predict, x, grid=grid, solver=solver, draw=Draw([0])))
        assert asked == [e.t for i in range(grid.steps) for e in solver.evaluations(grid.step(i))]
        asked.clear()


@every_variant
def test_state_of_the_first_evaluation_is_kept(name):
    """Within a step every evaluation is given the same state, and the first one's answer is
    kept.
    """
    solver, grid, calls = VARIANTS[name], GRIDS["ve"], []

    def predict(x, step, gstate):
        state = {"count": torch.full((1,), len(calls))}
        calls.append((step.index, gstate, state))
        return predictor()(x, step, gstate)[0], state

    list(
        trajectory(
            predict, torch.ones(1, 1, dtype=torch.float64), grid=grid, solver=solver, draw=Draw([0])
        )
    )
    given = {}
    for index, group in itertools.groupby(calls, key=lambda call: call[0]):
        members = list(group)
        given = members[0][1] if index == 0 else given
        assert all(state is given for _, state, _ in members) and (given == {}) == (index == 0)
        given = members[0][2]
    assert [index for index, *_ in calls] == sorted(index for index, *_ in calls) and calls[-1][
        0
    ] == grid.steps - 1


@every_default
def test_terms_that_read_the_target_level(name):
    solver, grid = DEFAULTS[name], GRIDS["vp"]
    predict = predictor(reads_target=("cfgpp(form='weight')",))
    if max(len(solver.evaluations(grid.step(i))) for i in range(grid.steps)) == 1:
        solver.check(predict, grid)
    else:
        with pytest.raises(ValueError, match=f"reads the level .* '{name}' evaluates twice"):
            sample(predict, grid=grid, solver=solver, seeds=[1], shape=(1,))


@every_default
def test_terms_for_one_solver_only(name):
    DEFAULTS[name].check(predictor(only_solvers={"classifier": (name, {})}), GRIDS["vp"])
    with pytest.raises(ValueError, match=f"classifier .* 'another' only, not with '{name}'"):
        DEFAULTS[name].check(predictor(only_solvers={"classifier": ("another", {})}), GRIDS["vp"])


# --- samples at different levels, and in different company


def stacked(grids):
    levels = [
        Level(*(double(*values) for values in zip(*column, strict=True)))
        for column in zip(*grids, strict=True)
    ]
    return Grid(levels=tuple(levels), schedule=grids[0].schedule)


def resting(grid):
    return Grid(levels=(*grid.levels, grid[-1]), schedule=grid.schedule)


MIXED = {
    "vp": [log_snr(VP.linear(), 4, rho_max=high) for high in (100.0, 10.0, 1.0)],
    "ve": [karras(VE(), 4, rho_max=high) for high in (70.0, 40.0, 0.5)],
    "flow, ends at different steps": [
        log_snr(Flow(), 4),
        log_snr(Flow(), 4, rho_max=2.0),
        resting(log_snr(Flow(), 3)),
    ],
    "flow from t=1": [uniform(Flow(), 4), log_snr(Flow(), 4), resting(uniform(Flow(), 3))],
}


@every_variant
@pytest.mark.parametrize("grids", MIXED.values(), ids=MIXED)
def test_mixed_levels_equal_samples_one_by_one(name, grids):
    """Also where one sample starts at pure noise, or rests at data while the others walk."""
    solver, seeds = VARIANTS[name], [4, 5, 6]
    if name in NO_PURE_NOISE and any(grid[0].alpha == 0 for grid in grids):
        with pytest.raises(ValueError, match="pure noise"):
            solver.check(predictor(), stacked(grids))
        return
    together = sample(
        predictor(),
        grid=stacked(grids),
        solver=solver,
        seeds=seeds,
        shape=(2,),
        dtype=torch.float64,
    )
    for k, grid in enumerate(grids):
        alone = sample(
            predictor(),
            grid=grid,
            solver=solver,
            seeds=seeds[k : k + 1],
            shape=(2,),
            dtype=torch.float64,
        )
        torch.testing.assert_close(together[k : k + 1], alone, rtol=1e-9, atol=1e-9)


@every_variant
def test_sample_k_does_not_depend_on_the_batch(name):
    options = {"grid": GRIDS["ve"], "solver": VARIANTS[name], "shape": (3,)}
    together = sample(predictor(), seeds=[8, 3, 5], **options)
    assert torch.equal(together[1:2], sample(predictor(), seeds=[3], **options))
    assert torch.equal(together[[2, 0]], sample(predictor(), seeds=[5, 8], **options))


@every_variant
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept(name, dtype):
    def predict(x, step, gstate):
        return Prediction.from_x0(x, step.t, 0.5 * x), gstate

    for grid in (GRIDS["flow"], stacked([GRIDS["flow"]] * 2)):
        assert (
            sample(
                predict,
                grid=grid,
                solver=VARIANTS[name],
                seeds=[1, 2],
                shape=(2, 3, 3),
                dtype=dtype,
            ).dtype
            == dtype
        )


@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in NO_PURE_NOISE])
@pytest.mark.parametrize("grid", PURE_NOISE.values(), ids=PURE_NOISE)
def test_a_velocity_network_from_pure_noise(name, grid):
    """Against D itself: velocity nets need no alpha."""
    solver = VARIANTS[name]

    def network(x, step, gstate):
        a, s, D = step.t.alpha, step.t.sigma, exact(x, step.t, 0.7, 0.25)
        out = (
            Network(lambda x, t: (x - a * D) / s - D, predicts="velocity")
            if s
            else lambda x, level, cond: x
        )
        return Prediction.from_x0(x, step.t, out(x, step.t, Condition())), gstate

    expected, got = (
        sample(p, grid=grid, solver=solver, seeds=[1, 2], shape=(1,), dtype=torch.float64)
        for p in (predictor(), network)
    )
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8)


# --- single solvers, from their formulas


def one_step(solver, step, x, z=0.0, predict=None):
    return moved(solver, predict or predictor(), x, step, Fixed(double(z)))[0]


VP_STEP = Step(VP.linear()(700.0), VP.linear()(600.0), 0, GRIDS["vp"])
X = double(0.4, -1.1).reshape(2, 1)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim_equation_12(eta):
    bar, bar_s = (VP.linear().alphas_cumprod[i] for i in (700, 600))
    D = exact(X, VP_STEP.t, 0.7, 0.25)
    eps = (X - bar**0.5 * D) / (1 - bar) ** 0.5
    sigma = eta * ((1 - bar_s) / (1 - bar)) ** 0.5 * (1 - bar / bar_s) ** 0.5
    expected = bar_s**0.5 * D + (1 - bar_s - sigma**2) ** 0.5 * eps + sigma * 0.9
    torch.testing.assert_close(
        one_step(DDIM(eta=eta), VP_STEP, X, 0.9), expected, rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_ddpm_posterior_mean_and_variances(variance):
    """Mean: DDPM's equation 7. Learned: guided-diffusion interpolates the log of beta and of the
    posterior's variance.
    """
    bar, bar_s = (VP.linear().alphas_cumprod[i] for i in (700, 600))
    beta = 1 - bar / bar_s
    D, share = exact(X, VP_STEP.t, 0.7, 0.25), double(-0.4, 1.7).reshape(2, 1)
    mean = bar_s**0.5 * beta / (1 - bar) * D + (1 - beta) ** 0.5 * (1 - bar_s) / (1 - bar) * X
    small = beta * (1 - bar_s) / (1 - bar)
    frac = (share + 1) / 2
    log_var = {
        "small": math.log(small),
        "large": math.log(beta),
        "learned": frac * math.log(beta) + (1 - frac) * math.log(small),
    }[variance]

    def predict(x, step, gstate):
        return Prediction(**{**vars(predictor()(x, step, gstate)[0]), "log_var": share}), gstate

    expected = mean + torch.exp(0.5 * torch.as_tensor(log_var, dtype=torch.float64)) * 0.9
    torch.testing.assert_close(
        one_step(DDPM(variance=variance), VP_STEP, X, 0.9, predict),
        expected,
        rtol=1e-10,
        atol=1e-10,
    )


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
@pytest.mark.parametrize("share", [-3.0, -1.0, 2.0])
def test_ddpm_adds_no_noise_in_the_last_step(variance, share):
    """Whatever variance the network claims, also shares below −1."""
    step = Step(VP.linear()(5.0), VP.linear().clean, 0, GRIDS["vp"])

    def predict(x, step, gstate):
        return Prediction(
            **{**vars(predictor()(x, step, gstate)[0]), "log_var": torch.full_like(x, share)}
        ), gstate

    torch.testing.assert_close(
        one_step(DDPM(variance=variance), step, X, 0.9, predict), exact(X, step.t, 0.7, 0.25)
    )
    both = Step(
        Level(*(double(v, v) for v in VP.linear()(5.0))),
        Level(double(1.0, 0.9), double(0.0, 0.19**0.5), double(0.0, 0.0)),
        0,
        GRIDS["vp"],
    )
    assert one_step(DDPM(variance=variance), both, X, 0.9, predict).isfinite().all()


def test_ddpm_learned_needs_a_learned_variance():
    with pytest.raises(ValueError, match="learned_variance=True"):
        one_step(DDPM(variance="learned"), VP_STEP, X)


def walk_2m(solver, levels, z):
    """Two steps of a 2M solver by hand, in lambda = log(alpha/sigma): algorithm 2 of DPM-Solver++
    and its SDE form.
    """
    lam = [math.log(level.alpha / level.sigma) for level in levels]
    h0, h = lam[1] - lam[0], lam[2] - lam[1]
    sde = solver.stochastic
    x, D0 = X, exact(X, levels[0], 0.7, 0.25)
    for i, step_h in enumerate((h0, h)):
        t, s = levels[i], levels[i + 1]
        D = exact(x, t, 0.7, 0.25)
        D_bar = D if i == 0 else (1 + h / h0 / 2) * D - h / h0 / 2 * D0
        decay = math.exp(-step_h)
        keep, gain = (decay, 1 - decay**2) if sde else (1.0, 1 - decay)
        x = (
            s.sigma / t.sigma * keep * x
            + s.alpha * gain * D_bar
            + (s.sigma * math.sqrt(gain) * z if sde else 0)
        )
    return x


@pytest.mark.parametrize("name", ["dpmpp-2m", "sde-dpmpp-2m"])
@pytest.mark.parametrize("schedule", [VP.linear(), VE(), Flow()], ids=["vp", "ve", "flow"])
def test_2m_from_its_algorithm(name, schedule):
    levels = [schedule.at_rho(rho) for rho in (9.0, 4.0, 0.8)]
    grid = Grid(levels=tuple(levels), schedule=schedule)
    *_, last = trajectory(predictor(), X, grid=grid, solver=DEFAULTS[name], draw=Fixed(double(0.9)))
    torch.testing.assert_close(last.x, walk_2m(DEFAULTS[name], levels, 0.9), rtol=1e-10, atol=1e-10)


def edm_step(y, rho, rho_next, z, gamma):
    """Algorithm 2 of EDM, on y = x/alpha, with S_noise = 1.003."""
    hat = rho * (1 + gamma)
    y = y + 1.003 * math.sqrt(hat**2 - rho**2) * z

    def D(y, rho):
        return 0.7 + 0.25 / (0.25 + rho**2) * (y - 0.7)

    d = (y - D(y, hat)) / hat
    moved = y + (rho_next - hat) * d
    return (
        moved
        if rho_next == 0
        else y + (rho_next - hat) * (d + (moved - D(moved, rho_next)) / rho_next) / 2
    )


@pytest.mark.parametrize("schedule", [VP.linear(), VE(), Flow()], ids=["vp", "ve", "flow"])
@pytest.mark.parametrize("churn", [0.0, 0.3, 100.0])
def test_heun_is_edms_algorithm(schedule, churn):
    """Three steps: churned (capped at √2 − 1), outside the interval, and Euler's to data."""
    rhos, y = (3.0, 1.0, 0.4, 0.0), X / 1.0
    grid = Grid(
        levels=tuple(schedule.at_rho(r) if r else schedule.clean for r in rhos), schedule=schedule
    )
    solver = Heun(churn=churn, churn_interval=(0.9, 50.0), churn_noise=1.003)
    gammas = [min(churn / 3, math.sqrt(2) - 1)] * 2 + [0.0]
    for i, state in enumerate(
        trajectory(
            predictor(), grid[0].alpha * X, grid=grid, solver=solver, draw=Fixed(double(-0.6))
        )
    ):
        y = edm_step(y, rhos[i], rhos[i + 1], -0.6, gammas[i])
        torch.testing.assert_close(state.x / state.step.s.alpha, y, rtol=1e-9, atol=1e-9)


def test_heun_flow_form_is_heuns_method_on_the_velocity():
    t, s = 0.8, 0.5

    def velocity(x, t):
        return (x - exact(x, Flow()(t), 0.7, 0.25)) / t  # eps − x0 = (x − x0)/t on the flow

    euler = X + (s - t) * velocity(X, t)
    expected = X + (s - t) * (velocity(X, t) + velocity(euler, s)) / 2
    step = Step(Flow()(t), Flow()(s), 0, PURE_NOISE["flow from t=1"])
    torch.testing.assert_close(
        one_step(Heun(form="flow"), step, X), expected, rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("churn", [0.0, 3.0])
def test_heun_flow_form_is_finite_at_both_ends(churn):
    for steps in (1, 2, 10):
        x = sample(
            predictor(),
            grid=uniform(Flow(), steps),
            solver=Heun(form="flow", churn=churn),
            seeds=[0, 1],
            shape=(4,),
            dtype=torch.float64,
        )
        assert x.isfinite().all() and x.abs().max() < 5


def test_heun_by_name_takes_the_form_that_works():
    """EDM's but from pure noise, for each sample of a batch by itself."""
    for grid, form in (
        (uniform(Flow(), 5), "flow"),
        (PURE_NOISE["zero-snr"], "flow"),
        (GRIDS["flow"], "edm"),
        (GRIDS["vp"], "edm"),
    ):
        options = {"grid": grid, "seeds": [1, 2], "shape": (3,), "dtype": torch.float64}
        assert torch.equal(
            sample(predictor(), solver="heun", **options),
            sample(predictor(), solver=Heun(form=form), **options),
        )
    mixed = stacked(MIXED["flow from t=1"][:2])
    x = noise((2,), mixed[0], Draw([1, 2]), dtype=torch.float64)
    one, _ = moved(Heun(), predictor(), x, mixed.step(0), NoDraw())
    for k, form in enumerate(("flow", "edm")):
        alone, row = MIXED["flow from t=1"][k], x[k : k + 1]
        expected, _ = moved(Heun(form=form), predictor(), row, alone.step(0), NoDraw())
        torch.testing.assert_close(one[k : k + 1], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", ["edm", "flow"])
@pytest.mark.parametrize("several", [False, True])
def test_churn_is_added_within_its_interval_and_at_both_of_its_ends(form, several):
    """Levels of ρ = 4, 2, 1, .5 with the interval [1, 2]: γ = churn/n at 2 and 1, nothing at 4 and
    .5.
    """
    levels = [VE()(r) for r in (4.0, 2.0, 1.0, 0.5)]
    grid = Grid(levels=(*levels, VE().clean), schedule=VE())
    grid = stacked([grid, grid]) if several else grid
    solver = Heun(form=form, churn=1.2, churn_interval=(1.0, 2.0))
    lifted = [
        torch.as_tensor(solver.evaluations(grid.step(i))[0].t.rho, dtype=torch.float64)
        .flatten()[0]
        .item()
        for i in range(4)
    ]
    assert lifted == pytest.approx([4.0, 2 * 1.3, 1.3, 0.5], rel=1e-12)
    capped = Heun(form=form, churn=8.0).evaluations(grid.step(3))[0].t.rho
    assert torch.as_tensor(capped, dtype=torch.float64).flatten()[0].item() == pytest.approx(
        0.5 * math.sqrt(2), rel=1e-12
    )


def test_churn_outside_its_interval_changes_nothing():
    for grid in (GRIDS["vp"], stacked([GRIDS["vp"]] * 2)):
        plain, outside = (
            sample(
                predictor(), grid=grid, solver=solver, seeds=[1, 2], shape=(2,), dtype=torch.float64
            )
            for solver in (Heun(), Heun(churn=5.0, churn_interval=(1e6, 1e7)))
        )
        assert torch.equal(plain, outside)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DDIM(eta=1.5), "eta"),
        (lambda: DDIM(eta=-0.1), "eta"),
        (lambda: DDPM(variance="tiny"), "'tiny'"),
        (lambda: Heun(form="rk4"), "form must be 'auto' or 'edm' or 'flow', not 'rk4'"),
        (lambda: Heun(churn=-1.0), "churn"),
        (lambda: Heun(churn=math.inf), "churn"),
        (lambda: get_solver("rk"), "unknown solver 'rk'; the solvers are ddim"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_solvers_are_found_by_name():
    assert all(
        type(get_solver(name)) is solver and solver.name == name for name, solver in SOLVERS.items()
    )
    assert get_solver(VARIANTS["ddim eta=1"]).eta == 1


# --- the loop


def test_trajectory_is_lazy_and_can_be_stopped():
    calls = []

    def predict(x, step, gstate):
        calls.append(step.index)
        return predictor()(x, step, gstate)

    states = trajectory(predict, X, grid=GRIDS["ve"], solver=DDIM(), draw=NoDraw())
    assert calls == []
    first = next(states)
    states.close()
    assert calls == [0] and first.step.index == 0 and first.pushes is None
    torch.testing.assert_close(first.prediction.x0, exact(X, GRIDS["ve"][0], 0.7, 0.25))


def test_states_carry_the_first_prediction_and_the_pushes():
    def predict(x, step, gstate):
        prediction, gstate = predictor()(x, step, gstate)
        return GuidedStep(prediction, gstate, pushes={"term": x})

    for state in trajectory(
        predict, X, grid=GRIDS["ve"], solver=Heun(), draw=NoDraw(), explain=True
    ):
        assert state.prediction.level == state.step.t and torch.equal(
            state.pushes["term"], state.prediction.x_t
        )


def test_gradients_are_off_inside_and_untouched_outside():
    seen = []

    def predict(x, step, gstate):
        seen.append(torch.is_grad_enabled())
        return predictor()(x, step, gstate)

    for _ in trajectory(predict, X, grid=GRIDS["ve"], solver=DDIM(), draw=NoDraw()):
        assert torch.is_grad_enabled()
    assert not any(seen)


def test_the_draw_is_that_of_the_step():
    """Step i uses the streams of step i, so a resumed run equals an unbroken one."""
    draw, grid, x = Draw([3, 4]), GRIDS["vp"], X
    for i, state in enumerate(trajectory(predictor(), X, grid=grid, solver=DDPM(), draw=draw)):
        x, _ = moved(DDPM(), predictor(), x, grid.step(i), draw.at(i))
        assert torch.equal(state.x, x)


def test_a_run_starts_from_noise():
    draw = Draw([3, 4])
    eps = draw.at(-1).normal("start", (2,))
    assert torch.equal(noise((2,), Level(1.0, 80.0, 80.0), draw), 80.0 * eps)
    assert torch.equal(
        noise((2,), Level(0.0, double(1.0, 2.0), 0.0), draw), torch.tensor([[1.0], [2.0]]) * eps
    )


def test_sdedit_starts_from_noised_data():
    grid, data = GRIDS["vp"].from_rho(1.0), double(0.2, -0.4).reshape(2, 1)
    eps = Draw([3, 4]).at(-1).normal("start", (1,)).double()
    x_t = grid[0].alpha * data + grid[0].sigma * eps
    torch.testing.assert_close(noised(data, grid[0], Draw([3, 4])), x_t)
    *_, last = trajectory(predictor(), x_t, grid=grid, solver=DDIM(), draw=NoDraw())
    assert torch.equal(
        sample(predictor(), grid=grid, solver="ddim", seeds=[3, 4], start=data), last.x
    )


def test_sample_refuses_what_it_cannot_start():
    with pytest.raises(ValueError, match="shape"):
        sample(predictor(), grid=GRIDS["vp"], seeds=[1])
    with pytest.raises(ValueError, match="3 seeds were given for 2 samples"):
        sample(predictor(), grid=GRIDS["vp"], seeds=[1, 2, 3], start=X)


def test_checks_happen_before_any_evaluation():
    def predict(x, step, gstate):
        raise AssertionError("evaluated")

    predict.splits = ("cfgpp",)
    with pytest.raises(ValueError, match="cfgpp"):
        sample(predict, grid=GRIDS["vp"], solver="heun", seeds=[1], shape=(1,))


def test_a_plain_object_can_predict():
    """Attributes that a predict does not have are not asked for."""
    DDIM().check(SimpleNamespace(), GRIDS["vp"])
