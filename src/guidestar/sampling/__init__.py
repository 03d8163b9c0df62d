"""Solvers, and the loop that runs them."""

from .consistency import Consistency
from .ddim import DDIM, DDPM
from .deis import DEIS
from .divergence import DivergenceWarning, diverged, warn_of_divergence
from .dpmpp import DPMpp2M, SDEDPMpp2M
from .er_sde import ERSDE
from .heun import Heun
from .meanflow import MeanFlow
from .multistep import RES, DPMpp3M, SDEDPMpp3M
from .names import SOLVERS, get_solver, grid_of, write_solver
from .particles import Population, crowd, steer
from .repaint import RePaint
from .resampling import Potential, effective_size, systematic
from .restart import Restart
from .run import State, advance, check_finite, noise, noised, sample, trajectory, walk
from .sa import SA
from .singlestep import DPMpp2S
from .solver import Point, Solver
from .time_travel import TimeTravel
from .unipc import UniPC

__all__ = [
    "DDIM",
    "DDPM",
    "DEIS",
    "ERSDE",
    "RES",
    "SA",
    "SOLVERS",
    "Consistency",
    "DPMpp2M",
    "DPMpp2S",
    "DPMpp3M",
    "DivergenceWarning",
    "Heun",
    "MeanFlow",
    "Point",
    "Population",
    "Potential",
    "RePaint",
    "Restart",
    "SDEDPMpp2M",
    "SDEDPMpp3M",
    "Solver",
    "State",
    "TimeTravel",
    "UniPC",
    "advance",
    "check_finite",
    "crowd",
    "diverged",
    "effective_size",
    "get_solver",
    "grid_of",
    "noise",
    "noised",
    "sample",
    "steer",
    "systematic",
    "trajectory",
    "walk",
    "warn_of_divergence",
    "write_solver",
]
