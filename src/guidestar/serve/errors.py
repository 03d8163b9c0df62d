"""Why an engine gives no samples."""

from __future__ import annotations

from abc import ABC


class EngineError(RuntimeError, ABC):
    """An engine gives no samples."""


class QueueFullError(EngineError):
    """As many requests wait as the engine lets wait."""


class EngineClosedError(EngineError):
    """The engine takes no more requests, or was closed before this one was done."""


class DeadlineError(EngineError):
    """The request was not done in the time that it was given."""


class CancelledError(EngineError):
    """The request was cancelled."""


class TooLargeError(EngineError, ValueError):
    """The request is for more samples or evaluations than the engine takes."""
