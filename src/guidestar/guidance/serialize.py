"""Write terms and posts as the text of the expression language."""

from __future__ import annotations

import inspect
from abc import ABC
from dataclasses import Field, fields
from functools import cache
from typing import TYPE_CHECKING, Any, Generic

if TYPE_CHECKING:
    from .term import Direction, Post


_LIBRARY = __name__.partition(".")[0]


def is_foreign(kind: type) -> bool:
    """Return whether a class of a method is defined outside the library, so a user's own."""
    return kind.__module__.partition(".")[0] != _LIBRARY and kind not in (object, ABC, Generic)


def declaring(kind: type, name: str) -> type:
    """Return the class that declares an argument last."""
    return next((base for base in kind.__mro__ if name in inspect.get_annotations(base)), kind)


@cache
def arguments_by_origin(kind: type) -> tuple[tuple[Field[Any], bool], ...]:
    """Return the arguments of a method, each with whether a class of a user declares it."""
    return tuple((f, is_foreign(declaring(kind, f.name))) for f in fields(kind) if f.init)


def written(term: Direction | Post) -> str:
    """Write a term or post as its expression.

    The first argument has no name; the others have theirs. Those of the library are left out at
    their default. Those that a user's class declares are always written: its defaults may change,
    and what was written before must keep its meaning.
    """
    parts: list[str] = []
    for i, (f, foreign) in enumerate(arguments_by_origin(type(term))):
        value = getattr(term, f.name)
        unnamed = i == 0 and not f.kw_only
        if unnamed or foreign or (value is not f.default and value != f.default):
            text = _argument(f.name, value)
            parts.append(text if unnamed else f"{f.name}={text}")
    return f"{term.name}({', '.join(parts)})"


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
