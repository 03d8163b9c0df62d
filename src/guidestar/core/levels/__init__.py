"""Noise levels, the schedules they come from, and the grid of a run."""

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
    "log",
    "sqrt",
]
