"""Noise levels, the schedules they come from, and the grids a run visits."""

from .grids import GRIDS, karras, leading, linspace, log_snr, trailing, uniform
from .level import (
    Grid,
    Level,
    Schedule,
    Step,
    Value,
    divide,
    exp,
    expand,
    inverse_or_zero,
    log,
    sqrt,
)
from .schedules import VE, VP, Flow

__all__ = [
    "GRIDS",
    "VE",
    "VP",
    "Flow",
    "Grid",
    "Level",
    "Schedule",
    "Step",
    "Value",
    "divide",
    "exp",
    "expand",
    "inverse_or_zero",
    "karras",
    "leading",
    "linspace",
    "log",
    "log_snr",
    "sqrt",
    "trailing",
    "uniform",
]
