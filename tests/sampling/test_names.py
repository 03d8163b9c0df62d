"""Solvers by name, with settings, and as other projects call them."""

import pytest
import torch

import guidestar as gs
from guidestar.sampling import SOLVERS, get_solver, grid_of, write_solver
from guidestar.sampling.names import ALIASES

THEIRS = {
    # A1111
    "Euler": gs.DDIM(),
    "Euler a": gs.DDIM(eta=1.0),
    "LMS": gs.DEIS(order=4, form="rho", lower_order_final=False),
    "Heun": gs.Heun(),
    "DPM++ 2M": gs.DPMpp2M(),
    "DPM++ 2M SDE": gs.SDEDPMpp2M(),
    "DPM++ 3M SDE": gs.SDEDPMpp3M(lower_order_final=False),
    "DPM++ 2S a": gs.DPMpp2S(eta=1.0),
    "UniPC": gs.UniPC(),
    "Restart": gs.Restart(),
    "DDIM": gs.DDIM(),
    # k-diffusion and ComfyUI
    "sample_euler_ancestral": gs.DDIM(eta=1.0),
    "sample_dpmpp_2m": gs.DPMpp2M(),
    "dpmpp_2m_sde": gs.SDEDPMpp2M(),
    "dpmpp_3m_sde": gs.SDEDPMpp3M(lower_order_final=False),
    "uni_pc_bh2": gs.UniPC(order=3),
    "ipndm": gs.DEIS(order=4, form="uniform", lower_order_final=False),
    "ipndm_v": gs.DEIS(order=4, form="rho", lower_order_final=False),
    "res_multistep": gs.RES(),
    "er_sde": gs.ERSDE(),
    "gradient_estimation": gs.DEIS(order=2, form="uniform", gamma=2.0),
    "sa_solver": gs.SA(),
    "deis": gs.DEIS(),
    # Diffusers
    "EulerAncestralDiscreteScheduler": gs.DDIM(eta=1.0),
    "UniPCMultistepScheduler": gs.UniPC(),
    "DPMSolverMultistepScheduler": gs.DPMpp2M(),
    "DEISMultistepScheduler": gs.DEIS(order=2),
}


@pytest.mark.parametrize("name", THEIRS)
def test_names_of_other_projects(name):
    assert get_solver(name) == THEIRS[name] and grid_of(name) is None


@pytest.mark.parametrize("name", ALIASES)
def test_every_alias_is_a_solver(name):
    assert isinstance(get_solver(name), gs.Solver)


@pytest.mark.parametrize(
    ("name", "solver", "grid"),
    [
        ("DPM++ 2M Karras", gs.DPMpp2M(), "karras"),
        ("dpmpp_2m karras", gs.DPMpp2M(), "karras"),
        ("DPM++ 2M SDE Exponential", gs.SDEDPMpp2M(), "log_snr"),
        ("Euler a Karras", gs.DDIM(eta=1.0), "karras"),
        ("Euler SGM Uniform", gs.DDIM(), "uniform"),
        ("unipc(order=3) ", gs.UniPC(order=3), None),
    ],
)
def test_a_name_may_ask_for_a_grid(name, solver, grid):
    assert get_solver(name) == solver and grid_of(name) == grid


@pytest.mark.parametrize(
    "solver",
    [
        *(kind() for kind in SOLVERS.values()),
        gs.DDIM(eta=0.25),
        gs.UniPC(order=3, variant="bh1", corrector=False),
        gs.SA(interval=(0.05, 1.0)),
        gs.Heun(churn=3.0),
        gs.Restart(solver=gs.UniPC(order=3), times=2),
    ],
    ids=str,
)
def test_text_gives_a_solver_back(solver):
    assert get_solver(write_solver(solver)) == solver


def test_text_is_short():
    assert write_solver(gs.UniPC()) == "unipc"
    assert write_solver(gs.UniPC(order=3)) == "unipc(order=3)"
    nested = "restart(solver='ddim(eta=0.5)', times=2)"
    assert write_solver(gs.Restart(solver=gs.DDIM(eta=0.5), times=2)) == nested


def test_a_solver_of_ones_own_is_not_taken_for_ours():
    known = gs.RePaint(known=torch.zeros(1, 1), mask=torch.zeros(1, 1))
    with pytest.raises(ValueError, match=r"cannot be read|unknown solver"):
        get_solver(write_solver(known))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dpm2", "unknown solver 'dpm2'; did you mean 'ddpm'"),
        ("uni-pcc", "unknown solver 'uni-pcc'; did you mean .*'unipc'"),
        ("", "unknown solver ''"),
        ("unipc(3)", "write its settings by name, e.g. unipc"),
        ("unipc(order=3", "unknown solver"),
        ("unipc(**{'order': 3})", "cannot be read"),
        ("unipc(order=__import__('os'))", "cannot be read"),
        ("unipc(order=1)+ddim()", "unknown solver|cannot be read"),
        ("unipc(degree=3)", "no setting 'degree'; it has at_changes, order, variant, corrector"),
        ("unipc(corrector=1)", "unipc: corrector must be True or False, not 1"),
        ("ddim(eta='a')", "ddim: eta must be a number, not"),
        ("Euler a(eta=0.5)", r"has settings already; write 'ddim\(eta=1.0\)' with yours"),
        ("unipc(order=5)", "unipc: order must be from 1 to 4, not 5"),
        ("unipc(variant='bh3')", "variant must be 'bh1' or 'bh2', not 'bh3'"),
        ("unipc(first_order_steps=0)", "first_order_steps must be a whole number of at least 1"),
        ("deis(form='t')", "form must be 'log-snr' or 'rho' or 'uniform', not 't'"),
        ("deis(gamma=2)", "gamma needs form='uniform' and order=2"),
        ("deis(gamma=20, form='uniform', order=2)", "gamma must be from 0 to 10"),
        ("res-multistep(eta=-1)", "eta must be from 0 to 10"),
        ("dpmpp-3m(order=2)", "order must be 3, not 2"),
        ("dpmpp-2s(eta=2)", r"eta must be in \[0, 1\]"),
        ("er-sde(order=4)", "order must be from 1 to 3"),
        ("sa(tau=-1)", "tau must be from 0 to 3"),
        ("sa(interval=(2, 1))", "two noise ratios with 0 <= lo < hi"),
        ("sa(corrector_order=9)", "corrector_order must be from 1 to 4"),
        ("restart(times=-1)", "times must be a whole number from 0"),
        ("restart(low=3)", "0 < low < high"),
        ("restart(solver='restart')", "restart around 'restart' has no meaning"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        get_solver(text)
    assert "\n" not in str(caught.value)


def test_a_model_takes_the_grid_from_the_name():
    model = gs.load("fashion-mnist")
    request = model.request("bag", steps=4, solver="DPM++ 2M Karras")
    assert request.grid == "karras" and request.levels == gs.karras(model.schedule, 4)
    given = model.request("bag", steps=4, solver="DPM++ 2M Karras", grid="log_snr")
    assert given.levels == gs.log_snr(model.schedule, 4)
    rhos = [s.rho for s in model.plan("cfg(2)", steps=4, solver="DPM++ 2M Karras").steps]
    assert rhos == pytest.approx([v.rho for v in gs.karras(model.schedule, 4)[:-1]])
    settings = model.settings(model.request("bag", solver="unipc(order=3)", steps=4))
    assert settings.solver == "unipc(order=3)" and settings.lacking == ()
