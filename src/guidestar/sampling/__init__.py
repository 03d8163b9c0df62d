"""Solvers, and the loop that runs them."""

from .consistency import Consistency
from .ddim import DDIM, DDPM
from .divergence import DivergenceWarning, diverged, warn_of_divergence
from .dpmpp import DPMpp2M, SDEDPMpp2M
from .heun import Heun
from .particles import Population, Potential, crowd, effective_size, steer, systematic
from .repaint import RePaint
from .run import State, advance, check_finite, noise, noised, sample, trajectory, walk
from .solver import Point, Solver
from .time_travel import TimeTravel

SOLVERS: dict[str, type[Solver]] = {
    solver.name: solver for solver in (DDIM, DDPM, DPMpp2M, SDEDPMpp2M, Heun, Consistency)
}
"""Every solver by name."""


def get_solver(solver: Solver | str) -> Solver:
    """Return the solver of that name, with its defaults.

    Raises:
        ValueError: there is none; the message lists those that there are.
    """
    if isinstance(solver, Solver):
        return solver
    if solver not in SOLVERS:
        raise ValueError(f"unknown solver {solver!r}; the solvers are {', '.join(SOLVERS)}")
    return SOLVERS[solver]()


__all__ = [
    "DDIM",
    "DDPM",
    "SOLVERS",
    "Consistency",
    "DPMpp2M",
    "DivergenceWarning",
    "Heun",
    "Point",
    "Population",
    "Potential",
    "RePaint",
    "SDEDPMpp2M",
    "Solver",
    "State",
    "TimeTravel",
    "advance",
    "check_finite",
    "crowd",
    "diverged",
    "effective_size",
    "get_solver",
    "noise",
    "noised",
    "sample",
    "steer",
    "systematic",
    "trajectory",
    "walk",
    "warn_of_divergence",
]
