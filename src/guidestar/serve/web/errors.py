"""Errors as clients get them: a status, a type and one line, in the form of OpenAI's API."""

from __future__ import annotations

import logging
import re
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

    def renamed(self, names: Mapping[str, str]) -> RefusedError:
        """Return the error with its field as a client of another API knows it.

        Args:
            names: the client's, by ours.
        """
        if self.param is None or self.param not in names:
            return self
        own = names[self.param]
        message = re.sub(rf"\b{self.param}\b", own, self.message, count=1)
        return RefusedError(self.status, self.kind, message, own)

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
