"""Which values an argument of the expression language may have, read from its annotation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, fields
from functools import cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from .weights import Schedule

_WORDS = {
    float: "a number",
    int: "a whole number",
    str: "a string",
    bool: "True or False",
    NoneType: "None",
    Schedule: "a weight schedule (linear, cosine, clamp(…))",
}


@cache
def _hints(method: type) -> dict[str, Any]:
    return get_type_hints(method)


def problem(method: type, name: str, value: object, python: bool = False) -> str | None:
    """Say what is wrong with ``value`` as the argument ``name`` of ``method``, if anything is.

    Args:
        method: a term, a post or a schedule.
        name: of the argument.
        value: of the argument.
        python: whether it was given in Python, where it may also be what a text cannot carry.
    """
    hint = _hints(method)[name]
    return (
        None
        if _fits(value, hint)
        else f"{name} must be {' or '.join(dict.fromkeys(_words(hint, python)))}, not {value!r}"
    )


def check(term: Any, *names: str) -> None:
    """Refuse arguments of another kind than their annotation says.

    Raises:
        ValueError: the term, the argument and what it may be are named.
    """
    for name in names:
        if wrong := problem(type(term), name, getattr(term, name), python=True):
            raise ValueError(f"{term.name}: {wrong}")


MOST = 1000
"""The largest count an argument may be (iterations, samples, a radius, …): each asks for time or
memory.
"""


def check_counts(term: Any, name: str) -> None:
    """Refuse whole numbers that are none, or above `MOST`.

    Args:
        term: a term, a post or an operator.
        name: what it is called.

    Raises:
        ValueError: the term, the argument and the bound are named.
    """
    for field in fields(term):
        hint = _hints(type(term))[field.name]
        if hint is not int and set(get_args(hint)) != {int, NoneType}:
            continue
        value = getattr(term, field.name)
        if not _fits(value, hint):
            raise ValueError(
                f"{name}: {field.name} must be {' or '.join(_words(hint))}, not {value!r}"
            )
        if value is not None and value > MOST:
            raise ValueError(f"{name}: {field.name} must be at most {MOST:,}, not {value:,}")


def unnamed(method: type) -> list[str]:
    """Return the arguments that need no name, in their order."""
    return [f.name for f in fields(method) if not f.kw_only]


def needed(method: type) -> list[str]:
    """Return the arguments without a default."""
    return [f.name for f in fields(method) if _no_default(f)]


def _no_default(f: Field[Any]) -> bool:
    return f.default is MISSING and f.default_factory is MISSING


def _fits(value: object, hint: Any) -> bool:
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in parts)
    if origin in (list, tuple, Sequence):
        return isinstance(value, list | tuple) and all(_fits(item, parts[0]) for item in value)
    if origin is Callable:
        return callable(value)
    if hint in (float, int):
        return isinstance(value, Real if hint is float else Integral) and not isinstance(
            value, bool
        )
    return isinstance(value, hint)


def _words(hint: Any, python: bool = False) -> list[str]:
    """Describe what a text can give, or Python; tensors and functions cannot be written in a
    text.
    """
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return [word for part in parts for word in _words(part, python)]
    if origin is Literal:
        return [repr(choice) for choice in parts]
    if origin is tuple:
        return [f"({', '.join('number' for _ in parts)})"]
    if origin in (list, Sequence):
        return [f"a list of {' or '.join(map(_plural, _words(parts[0], python)))}"]
    if hint in _WORDS:
        return [_WORDS[hint]]
    return ["a function" if origin is Callable else f"a {hint.__name__}"] if python else []


def _plural(word: str) -> str:
    return f"{word.removeprefix('a ')}s"
