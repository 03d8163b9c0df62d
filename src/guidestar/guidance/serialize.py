"""Terms and posts as the text that makes them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any


def written(term: Any) -> str:
    """Write a term, post or weight schedule as the expression that makes it.

    The first argument stands alone, the others by name where they differ from their default.
    """
    first, *others = fields(term)
    named = [(f, getattr(term, f.name)) for f in others]
    parts = [
        f"{f.name}={_of(f.name, value)}"
        for f, value in named
        if value is not f.default and value != f.default
    ]
    return f"{term.name}({', '.join([_of(first.name, getattr(term, first.name)), *parts])})"


def _of(name: str, value: object) -> str:
    # Inside a term every list is a tuple; only an interval is written as one.
    return literal(list(value) if isinstance(value, tuple) and name != "interval" else value)


def literal(value: object) -> str:
    """Write a value of the language; what it cannot carry (a function, a tensor) by its type
    alone.
    """
    if isinstance(value, list | tuple):
        inner = ", ".join(map(literal, value))
        return (
            f"[{inner}]"
            if isinstance(value, list)
            else f"({inner},)"
            if len(value) == 1
            else f"({inner})"
        )
    if isinstance(value, float):
        return repr(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    if value is None or isinstance(value, str | int):
        return repr(value)
    return str(value) if type(value).__str__ is not object.__str__ else f"<{type(value).__name__}>"
