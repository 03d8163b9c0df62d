"""Serving: an engine that batches at every step, and servers on top of it."""

from .engine import Engine
from .errors import (
    CancelledError,
    DeadlineError,
    EngineClosedError,
    EngineError,
    QueueFullError,
    TooLargeError,
)
from .stats import Stats
from .ticket import Preview, Ticket

__all__ = [
    "CancelledError",
    "DeadlineError",
    "Engine",
    "EngineClosedError",
    "EngineError",
    "Preview",
    "QueueFullError",
    "Stats",
    "Ticket",
    "TooLargeError",
]
