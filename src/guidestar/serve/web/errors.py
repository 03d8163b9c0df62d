"""Errors as clients get them: a status, a type and one line, in the form of OpenAI's API."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from ...model.blame import argument_of
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


KIND = re.compile(r"constrained-\w+|str|int|float|(list|dict)\[.*\]")
"""What pydantic adds to the name of a field that may be of several kinds."""


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
        # What stands in quotation marks is the client's own text.
        word = re.compile(rf"((?<!\w)'[^']*'|\"[^\"]*\")|\b{self.param}\b")
        message = word.sub(lambda found: found[1] or own, self.message)
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
    if isinstance(error, ValidationError):
        return invalid(error.errors())
    for kind, (status, name) in _KINDS.items():
        if isinstance(error, kind):
            return RefusedError(status, name, str(error), argument_of(error))
    _log.error("a request failed: %s: %s", type(error).__name__, error)
    return RefusedError(
        500,
        "server_error",
        f"the request failed ({type(error).__name__}); see the server's log",
    )


def invalid(errors: Sequence[Mapping[str, Any]]) -> RefusedError:
    """Say what is wrong with the first field that is; where it may be of several kinds, all of
    them.
    """
    kind, first = "invalid_request_error", errors[0]
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "")
        return RefusedError(422, kind, f"the body is no valid JSON ({reason})"[:500])
    where = _field(first)
    texts = dict.fromkeys(str(error["msg"]) for error in errors if _field(error) == where)
    text = ", or ".join(texts)
    text = f"{where}: {text}" if where else text
    return RefusedError(422, kind, text[:500], where[:200] or None)


def _field(error: Mapping[str, Any]) -> str:
    """Return the name of a field, without pydantic's names of the kinds that it may have."""
    parts = [str(part) for part in error["loc"] if part != "body"]
    return ".".join(p for p in parts if not KIND.fullmatch(p))


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
