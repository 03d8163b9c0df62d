"""Check the arguments of terms, posts and solvers against their annotations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, fields
from functools import cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

WORDS: dict[object, str] = {
    float: "a number",
    int: "a whole number",
    str: "a string",
    bool: "True or False",
    tuple[float, float]: "two numbers",
    NoneType: "None",
}
"""What an annotation is called in messages; rooms add their own."""


@cache
def _hints(method: type) -> dict[str, object]:
    return get_type_hints(method)


def find_mismatch(method: type, name: str, value: object, python: bool = False) -> str | None:
    """Return the error of ``value`` as the argument ``name`` of ``method``, if there is one.

    Args:
        method: a term, a post or a schedule.
        name: of the argument.
        value: of the argument.
        python: whether the value comes from Python, where tensors and functions are allowed too.
    """
    hint = _hints(method)[name]
    if _fits(value, hint):
        return None
    return f"{name} must be {' or '.join(dict.fromkeys(_words(hint, python)))}, not {value!r}"


def check_arguments(thing: object, called: str, *names: str) -> None:
    """Refuse arguments of another kind than their annotation.

    Args:
        thing: a term, a post, an operator or a solver.
        called: its name, for the message.
        names: of the arguments.

    Raises:
        ValueError: the argument and its allowed kinds are named.
    """
    for name in names:
        if wrong := find_mismatch(type(thing), name, getattr(thing, name), python=True):
            raise ValueError(f"{called}: {wrong}")


MOST_COUNT = 1000
"""The largest count of an argument: iterations, samples, a radius; each costs time or memory."""


def check_counts(term: object, name: str) -> None:
    """Refuse values of counts that are no whole numbers, or above `MOST_COUNT`.

    Args:
        term: a term, a post or an operator.
        name: its name, for the message.

    Raises:
        ValueError: the term, the argument and the bound are named.
    """
    for key, hint in _hints(type(term)).items():
        if hint is not int and set(get_args(hint)) != {int, NoneType}:
            continue
        value = getattr(term, key)
        if wrong := find_mismatch(type(term), key, value):
            raise ValueError(f"{name}: {wrong}")
        if value is not None and value > MOST_COUNT:
            raise ValueError(f"{name}: {key} must be at most {MOST_COUNT:,}, not {value:,}")


def arguments_of(method: type) -> tuple[Field[Any], ...]:
    """Return the arguments of a method, in their order."""
    return tuple(f for f in fields(cast("type[Any]", method)) if f.init)


def unnamed(method: type) -> list[str]:
    """Return the arguments that need no name, in their order."""
    return [f.name for f in arguments_of(method) if not f.kw_only]


def needed(method: type) -> list[str]:
    """Return the arguments without a default."""
    every = arguments_of(method)
    return [f.name for f in every if f.default is MISSING and f.default_factory is MISSING]


def is_written(hint: object) -> bool:
    """Return whether the text of an expression can give some value of an annotation."""
    origin, parts = get_origin(hint), get_args(hint)
    if hint in WORDS or hint is Ellipsis:
        return True
    if origin in (Union, UnionType):
        return any(map(is_written, parts))
    if origin is Literal:
        return all(isinstance(choice, int | float | str | None) for choice in parts)
    return origin in (list, tuple, Sequence) and bool(parts) and all(map(is_written, parts))


def _fits(value: object, hint: object) -> bool:
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in parts)
    if origin in (list, tuple, Sequence):
        return isinstance(value, list | tuple) and _fit_items(value, origin, parts)
    if origin is Callable:
        return callable(value)
    kind = {float: Real, int: Integral}.get(cast("type", hint), cast("type", hint))
    if kind in (Real, Integral):
        return isinstance(value, kind) and not isinstance(value, bool)
    return _is_of(value, kind)


def _is_of(value: object, kind: type) -> bool:
    try:
        return isinstance(value, kind)
    except TypeError:  # Any, a protocol: it says nothing that can be looked up in the value
        return True


def _fit_items(values: Sequence[object], origin: object, parts: tuple[object, ...]) -> bool:
    if origin is tuple and ... not in parts:
        return len(values) == len(parts) and all(map(_fits, values, parts))
    return all(_fits(item, parts[0]) for item in values)


def _words(hint: object, python: bool) -> list[str]:
    """Describe the values of an annotation; tensors and functions only for Python, not for text."""
    origin, parts = get_origin(hint), get_args(hint)
    if hint in WORDS:
        return [WORDS[hint]]
    if origin in (Union, UnionType):
        return [word for part in parts for word in _words(part, python)]
    if origin is Literal:
        return [repr(choice) for choice in parts]
    if origin in (list, Sequence):
        return [f"a list of {' or '.join(map(_plural, _words(parts[0], python)))}"]
    kind = "a function" if origin is Callable else f"a {cast('type', hint).__name__}"
    return [kind] if python else []


def _plural(word: str) -> str:
    return f"{word.removeprefix('a ')}s"
