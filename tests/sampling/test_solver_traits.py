"""What solvers say of themselves, and where DPM-Solver++(2S) evaluates, by values by hand."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import guidestar as gs
from guidestar.core.levels import VP, Level, Step
from guidestar.core.rng import Draw
from guidestar.sampling.grids import log_snr

ORDERS = [
    (gs.DDIM(), 1),
    (gs.Heun(), 2),
    (gs.DPMpp2M(), 2),
    (gs.DPMpp2S(), 2),
    (gs.DEIS(), 3),
    (gs.DEIS(order=4), 4),
    (gs.DEIS(order=4, form="rho"), 4),
    (gs.DEIS(order=4, form="uniform"), 2),
    (gs.DEIS(order=1, form="uniform"), 1),
    (gs.DEIS(order=2, form="uniform", gamma=1.5), 2),
    (gs.DEIS(order=2, form="uniform", gamma=2.0), 1),
    (gs.ERSDE(order=1), 1),
    (gs.ERSDE(order=2), 2),
    (gs.ERSDE(order=3), 2),
    (gs.RES(order=3), 3),
    (gs.RES(order=3, eta=1.0), 2),
    (gs.RES(order=1, eta=1.0), 1),
    (gs.UniPC(order=3), 4),
    (gs.UniPC(order=3, corrector=False), 3),
    (gs.SA(order=3, corrector_order=3, tau=0.0), 3),
    (gs.SA(order=2, corrector_order=4, tau=0.0), 3),
    (gs.SA(order=1, corrector_order=4, tau=0.0), 2),
    (gs.SA(order=4, corrector_order=1, tau=0.0), 1),
    (gs.SA(order=3, corrector_order=0, tau=0.0), 3),
    (gs.SA(order=3, corrector_order=3, tau=1.0), 2),
    (gs.SA(order=3, corrector_order=1, tau=1.0), 1),
    (gs.Restart(solver=gs.UniPC(order=2)), 3),
]


@pytest.mark.parametrize(("solver", "order"), ORDERS, ids=str)
def test_orders_of_convergence(solver, order):
    assert solver.convergence == order


NOISY = [gs.DDIM(eta=0.1), gs.DDPM(), gs.Consistency(), gs.ERSDE(), gs.SA(tau=0.1),
         gs.RES(eta=0.1), gs.DPMpp2S(eta=0.1), gs.Heun(churn=0.1), gs.SDEDPMpp2M(),
         gs.SDEDPMpp3M(), gs.Restart(), gs.Restart(solver=gs.DDPM(), times=0),
         gs.TimeTravel(times=2, solver=gs.DDIM()), gs.TimeTravel(times=1)]  # fmt: skip
QUIET = [gs.DDIM(), gs.SA(tau=0.0), gs.RES(), gs.DPMpp2S(), gs.Heun(), gs.DPMpp2M(), gs.UniPC(),
         gs.DEIS(), gs.Restart(times=0), gs.TimeTravel(times=1, solver=gs.DDIM())]  # fmt: skip


@pytest.mark.parametrize("solver", NOISY, ids=str)
def test_solvers_that_draw_noise(solver):
    assert solver.stochastic is True


@pytest.mark.parametrize("solver", QUIET, ids=str)
def test_solvers_that_draw_none(solver):
    assert solver.stochastic is False


@pytest.mark.parametrize(
    ("order", "corrector", "keeps", "corrects"),
    [(3, 0, 3, False), (3, 1, 3, True), (1, 4, 3, True), (2, 3, 2, True), (2, 4, 3, True)],
)
def test_what_sa_keeps(order, corrector, keeps, corrects):
    solver = gs.SA(order=order, corrector_order=corrector)
    assert (solver.keeps, solver.corrects) == (keeps, corrects)


def test_what_unipc_keeps():
    assert (gs.UniPC(order=3).keeps, gs.UniPC(order=3).corrects) == (3, True)
    assert not gs.UniPC(corrector=False).corrects


# DPM-Solver++(2S)


def levels(t: float, s: float, eta: float = 0.0) -> tuple[Any, ...]:
    step: Any = SimpleNamespace(t=SimpleNamespace(rho=t), s=SimpleNamespace(rho=s))
    return gs.DPMpp2S(eta=eta)._levels(step)


def test_ratios_of_a_step_of_2s():
    """ρ_d, ρ_up, √(ρ_d ρ_t) and 1 − ρ_d/ρ_t; none in the middle of steps to data or from noise."""
    assert levels(4.0, 1.0) == pytest.approx((1.0, 0.0, 2.0, 0.75))
    assert levels(4.0, 0.0) == (0.0, 0.0, 0.0, 0.0)
    assert levels(math.inf, 2.0) == (2.0, 0.0, 0.0, 0.0)
    assert levels(2.0, 2.0) == (2.0, 0.0, 0.0, 0.0) == levels(1.0, 2.0)
    up = 0.5 * math.sqrt(1 - 0.25)  # η ρ_s √(1 − ρ_s²/ρ_t²), with η = ½, ρ_s = 1 and ρ_t = 2
    down = math.sqrt(1 - up * up)
    assert levels(2.0, 1.0, 0.5) == pytest.approx((down, up, math.sqrt(2 * down), 1 - down / 2))
    assert levels(math.inf, 1.0, 1.0) == pytest.approx((0.0, 1.0, 0.0, 0.0))
    assert levels(2.0, 0.0, 1.0) == (0.0, 0.0, 0.0, 0.0)
    several = levels(torch.tensor([4.0, 4.0]), torch.tensor([1.0, 0.0]))  # type: ignore[arg-type]
    assert [v.tolist() for v in several] == [[1.0, 0.0], [0.0, 0.0], [2.0, 0.0], [0.75, 0.0]]


def walk(solver: gs.DPMpp2S, step: Step, x: torch.Tensor, draw: Any = None) -> torch.Tensor:
    """Take a step where x0 is half of x."""
    asking = solver.move(x, step, {}, draw)
    point = next(asking)
    while True:
        x_t, level = point.x, point.step.t
        x0 = x_t / 2
        eps = (x_t - float(level.alpha) * x0) / float(level.sigma)
        try:
            point = asking.send(gs.Prediction(x_t=x_t, level=level, x0=x0, eps=eps))
        except StopIteration as end:
            assert end.value[1] == {}
            return end.value[0]


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_a_step_of_2s_is_its_formula(eta):
    schedule = VP.linear()
    grid = log_snr(schedule, 4, rho_max=5.0, rho_min=0.2, clean=False)
    step, x = grid.step(1), torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    draw = Draw([7])
    t, s = step.t, step.s
    rho_t, rho_s = float(t.rho), float(s.rho)
    up = eta * rho_s * math.sqrt(1 - (rho_s / rho_t) ** 2)
    down = math.sqrt(rho_s**2 - up**2)
    eps = (x - float(t.alpha) * x / 2) / float(t.sigma)
    middle = schedule.at_rho(math.sqrt(down * rho_t))
    x_m = float(middle.alpha) * x / 2 + float(middle.sigma) * eps
    wanted = float(s.alpha) * (
        x / 2 + down * eps + (1 - down / rho_t) * (x_m - x) / 2
        + up * draw.normal_like("2s", x)
    )  # fmt: skip
    solver = gs.DPMpp2S(eta=eta)
    torch.testing.assert_close(walk(solver, step, x, draw), wanted)
    first, second = solver.evaluations(step)
    assert first is step and second.s is step.s and second.index == step.index
    assert float(second.t.rho) == pytest.approx(float(middle.rho))


def test_steps_of_2s_to_data_take_one_evaluation():
    grid = log_snr(VP.linear(), 4)
    last = grid.step(3)
    solver = gs.DPMpp2S()
    assert list(solver.evaluations(last)) == [last] and len(solver.evaluations(grid.step(2))) == 2
    x = torch.tensor([[3.0]], dtype=torch.float64)
    torch.testing.assert_close(walk(solver, last, x), x / 2)


def test_samples_of_2s_without_a_middle_stay_where_they_are():
    schedule = VP.linear()
    at = lambda *rhos: schedule.at_rho(torch.tensor(rhos, dtype=torch.float64))
    clean = schedule.clean
    end = at(1.0, 0.5)
    s = Level(*(torch.stack([a[0], torch.as_tensor(c, dtype=torch.float64)])
                for a, c in zip(end, clean, strict=True)))  # fmt: skip
    grid = log_snr(schedule, 2)
    step = grid.step(0)._replace(t=at(4.0, 4.0), s=s)
    second = gs.DPMpp2S()._second(step)
    assert second.t.rho.tolist() == pytest.approx([2.0, 4.0])  # type: ignore[union-attr]


def test_a_step_of_consistency_jumps_to_data_and_back():
    step = log_snr(VP.linear(), 4).step(1)
    x, draw = torch.tensor([[1.0, -2.0]]), Draw([3])
    asking = gs.Consistency().move(x, step, {"kept": x}, draw)
    point = next(asking)
    assert point.x is x and point.step is step
    guess: Any = SimpleNamespace(x0=torch.tensor([[0.5, 0.25]]))
    with pytest.raises(StopIteration) as end:
        asking.send(guess)
    found, memory = end.value.value
    wanted = float(step.s.alpha) * guess.x0 + float(step.s.sigma) * draw.normal_like(
        "consistency", x
    )
    torch.testing.assert_close(found, wanted)
    assert memory == {"kept": x} and gs.Consistency().order == 0


# Heun


@pytest.mark.parametrize(
    ("rho", "gamma"),
    [(0.5, 0.25), (2.0, 0.25), (1.0, 0.25), (0.49, 0.0), (2.01, 0.0), (math.inf, 0.0)],
)
def test_churn_by_the_noise_ratio(rho, gamma):
    """A share of it at each of n steps, within the interval and at both its ends."""
    step: Any = SimpleNamespace(t=SimpleNamespace(rho=rho), grid=SimpleNamespace(steps=4))
    solver = gs.Heun(churn=1.0, churn_interval=(0.5, 2.0))
    assert solver._gamma(step) == gamma
    step.t.rho = torch.tensor([rho, 1.0])
    assert solver._gamma(step).tolist() == [gamma, 0.25]  # type: ignore[union-attr]
    step.t.rho = 1.0
    most: Any = gs.Heun(churn=9.0)
    assert most._gamma(step) == pytest.approx(math.sqrt(2) - 1)
    for endless in (math.inf, torch.tensor([math.inf])):
        step.t.rho = endless
        assert float(most._gamma(step)) == 0.0


def test_coordinates_of_heun():
    """α + σ and σ/(α + σ) of a flow, else α and σ/α."""
    from guidestar.sampling.heun import _coordinates

    level = Level(0.5, 2.0, 0.0)
    assert _coordinates(level, True) == (2.5, 0.8) and _coordinates(level, False) == (0.5, 4.0)
    two = Level(*(torch.tensor([v, v], dtype=torch.float64) for v in (0.5, 2.0, 0.0)))
    n, tau = _coordinates(two, torch.tensor([True, False]))
    assert (n.tolist(), tau.tolist()) == ([2.5, 0.5], [0.8, 4.0])  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("rhos", "count", "places"),
    [
        ([8.0, 2.0], 2, [8.0, 2.0]),
        ([8.0, 4.0, 2.0, 0.0], 2, [8.0, 2.0]),
        ([8.0, 4.0, 2.0], 5, [8.0, 32**0.5, 4.0, 8**0.5, 2.0]),
        ([8.0, 2.0, 1.0], 4, [8.0, 8 ** (1 / 3) * 2 ** (2 / 3), 2 ** (2 / 3), 1.0]),
        ([8.0, 2.0], 1, [8.0]),
        ([8.0], 3, [8.0, 8.0, 8.0]),
    ],
)
def test_noise_ratios_are_resampled_along_their_logarithm(rhos, count, places):
    from guidestar.sampling import geometric

    found = [math.exp(v) for v in geometric._resampled(rhos, count)]
    assert found == pytest.approx(places)


def test_levels_that_churn_does_not_raise_stay_to_the_bit():
    """Even one that is on no schedule."""
    schedule = VP.linear()
    grid = log_snr(schedule, 4)
    own = Level(*(torch.tensor(v, dtype=torch.float64) for v in ([0.6, 0.5], [0.8, 2.0], [7.0, 9])))
    step = grid.step(1)._replace(t=own)
    raised = gs.Heun(churn=1.0, churn_interval=(0.0, 2.0))._raised(step)
    for name in ("alpha", "sigma", "t"):
        assert float(getattr(raised.t, name)[1]) == float(getattr(own, name)[1])
    assert float(raised.t.rho[0]) == pytest.approx(4 / 3 * 1.25)  # type: ignore[index]


# Multistep solvers


@pytest.mark.parametrize(("order", "kept"), [(2, 1), (2, 2), (3, 1)])
def test_a_step_of_second_order_weighs_the_last_estimate(order, kept):
    """``∫_0^h e^{−(h−u)} u du / (λ_{−1} − λ_t) = (h − 1 + e^{−h})/(λ_{−1} − λ_t)``."""
    grid = log_snr(VP.linear(), 6, rho_max=5.0, rho_min=0.2, clean=False)
    step = grid.step(3)
    before = [torch.tensor([[3.0, 1.0]]).double(), torch.tensor([[9.0, 9.0]]).double()]
    places = [-math.log(float(grid[k].rho)) for k in (2, 1)]
    memory: dict[str, Any] = {"order": 1}
    for k in range(kept):
        memory |= {f"estimate{k}": before[k], f"place{k}": places[k]}
    x, x0 = torch.tensor([[1.0, -2.0]]).double(), torch.tensor([[0.5, 0.25]]).double()
    t, s = step.t, step.s
    eps = (x - float(t.alpha) * x0) / float(t.sigma)
    solver = gs.RES(order=order, lower_order_final=False)
    asking = solver.move(x, step, memory, Draw([1]))
    next(asking)
    with pytest.raises(StopIteration) as end:
        asking.send(gs.Prediction(x_t=x, level=t, x0=x0, eps=eps))
    found, after = end.value.value
    here, there = (-math.log(float(level.rho)) for level in (t, s))
    h = there - here
    weight = (h - 1 + math.exp(-h)) / (places[0] - here)
    ode = float(s.alpha) * x0 + float(s.sigma) * eps
    torch.testing.assert_close(found, ode + float(s.alpha) * weight * (before[0] - x0))
    assert float(after["place0"]) == pytest.approx(here)  # type: ignore[arg-type]
    assert ("estimate1" in after) is (order == 3)


def test_what_a_history_is_made_of():
    """(x − σε)/α, and x0 at pure noise."""
    from guidestar.sampling.exponential import clean_estimate

    x, x0 = torch.tensor([[2.0], [2.0]]), torch.tensor([[7.0], [7.0]])
    split = gs.Prediction(x_t=x, level=Level(0.5, 0.5, 0.0), x0=x0, eps=torch.ones(2, 1))
    assert clean_estimate(x, split, Level(0.5, 0.5, 0.0)).tolist() == [[3.0], [3.0]]
    assert clean_estimate(x, split, Level(0.0, 1.0, 0.0)) is x0
    both = Level(*(torch.tensor(v, dtype=torch.float64) for v in ([0.5, 0.0], [0.5, 1.0], [0, 0])))
    assert clean_estimate(x, split, both).tolist() == [[3.0], [7.0]]
