"""Put the mistakes of a document in one line, each with its key and what was expected."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, get_args

from pydantic import BaseModel, ValidationError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_MOST = 12
"""Most mistakes of a recipe that a message lists."""


def explain(error: ValidationError, document: type[BaseModel]) -> str:
    """Put the mistakes of a document in one line, each with its key and what was expected."""
    lines = [_explain(e, document) for e in error.errors()]
    more = f"; and {len(lines) - _MOST} more" if len(lines) > _MOST else ""
    return "; ".join(lines[:_MOST]) + more


def _explain(error: ErrorDetails, document: type[BaseModel]) -> str:
    where = ".".join(str(p) for p in error["loc"])
    if error["type"] == "extra_forbidden":
        known = _keys(error["loc"][:-1], document)
        return f"unknown key {where!r}{suggestion(str(error['loc'][-1]), known)}"
    if error["type"] == "missing":
        return f"missing key {where!r}"
    # For an expression, further lines point at the place; the first line is the message.
    message = error["msg"].removeprefix("Value error, ").split("\n")[0]
    given = error["input"]
    shown = "" if isinstance(given, dict | BaseModel) else f", not {reprlib.repr(given)}"
    return (f"{where}: " if where else "") + f"{message[0].lower()}{message[1:]}{shown}"


def _keys(loc: Sequence[str | int], document: type[BaseModel]) -> list[str]:
    """List the keys that a table of a document may have."""
    table: type[BaseModel] = document
    for name in loc:
        if name not in table.model_fields:  # the name of a condition
            continue
        kind = table.model_fields[str(name)].annotation
        kinds = [kind, *get_args(kind), *(t for k in get_args(kind) for t in get_args(k))]
        table = next(t for t in kinds if isinstance(t, type) and issubclass(t, BaseModel))
    return list(table.model_fields)


def suggestion(name: str, known: Sequence[str]) -> str:
    """Return " (did you mean …?)" with the nearest known name; "" where none is near."""
    close = difflib.get_close_matches(name, known, 1)
    return f" (did you mean {close[0]!r}?)" if close else ""
