"""Write terms and posts as the text of the expression language."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .term import Direction, Post


def written(term: Direction | Post) -> str:
    """Write a term or post as its expression.

    The first argument has no name; the others have theirs, and are left out at their default.
    """
    first, *others = fields(term)
    named = [(f, getattr(term, f.name)) for f in others]
    parts = [
        f"{f.name}={_argument(f.name, value)}"
        for f, value in named
        if value is not f.default and value != f.default
    ]
    return f"{term.name}({', '.join([_argument(first.name, getattr(term, first.name)), *parts])})"


def _argument(name: str, value: object) -> str:
    # Inside a term every list is a tuple; only an interval is written as one.
    return literal(list(value) if isinstance(value, tuple) and name != "interval" else value)


def literal(value: object) -> str:
    """Write a value of the language. A function or tensor is written as its type, ``<Tensor>``."""
    if isinstance(value, list):
        return f"[{', '.join(map(literal, value))}]"
    if isinstance(value, tuple):
        inner = ", ".join(map(literal, value))
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, float):
        return repr(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    if value is None or isinstance(value, str | int):
        return repr(value)
    return str(value) if type(value).__str__ is not object.__str__ else f"<{type(value).__name__}>"
