"""Errors as clients get them: a status, a type and one line, in the form of OpenAI's API."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ..errors import (
    CancelledError,
    DeadlineError,
    EngineClosedError,
    QueueFullError,
    TooLargeError,
)

_log = logging.getLogger("guidestar.serve")

RETRY_AFTER = 5
"""Seconds after which a client may try again."""


class RefusedError(Exception):
    """A request is refused.

    Args:
        status: of HTTP.
        kind: of the error, in a word.
        message: what is wrong, and what to do.
        param: which field is.
    """

    def __init__(self, status: int, kind: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.kind, self.message, self.param = status, kind, message, param

    @property
    def body(self) -> dict[str, Any]:
        """What is sent."""
        found = {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.kind,
        }
        return {"error": found, "detail": self.message}

    @property
    def headers(self) -> Mapping[str, str]:
        """Which headers go with it."""
        busy = self.status in (429, 503)
        return {"Retry-After": str(RETRY_AFTER)} if busy else {}


def refused(error: BaseException) -> RefusedError:
    """Return an error as clients get it; what they need not know is logged, not sent."""
    if isinstance(error, RefusedError):
        return error
    for kind, (status, name) in _KINDS.items():
        if isinstance(error, kind):
            return RefusedError(status, name, str(error))
    _log.error("a request failed: %s: %s", type(error).__name__, error)
    return RefusedError(
        500,
        "server_error",
        f"the request failed ({type(error).__name__}); see the server's log",
    )


_KINDS: dict[type[BaseException], tuple[int, str]] = {
    TooLargeError: (422, "too_large"),
    QueueFullError: (503, "queue_full"),
    EngineClosedError: (503, "closed"),
    DeadlineError: (504, "deadline"),
    CancelledError: (409, "cancelled"),
    FloatingPointError: (422, "not_finite"),
    MemoryError: (507, "out_of_memory"),
    ValueError: (422, "invalid_request_error"),
}
"""Statuses of errors; the first that fits counts."""
