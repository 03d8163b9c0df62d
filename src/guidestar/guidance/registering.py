"""Refuse classes that the expression language could not write, read or run."""

from __future__ import annotations

import inspect
import keyword
from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, ClassVar, get_origin, get_type_hints

from ..core.arguments import arguments_of, is_written
from .serialize import declaring, is_foreign
from .term import Direction, Post

LIKE = "write it above the class as @register, then @dataclass(frozen=True)"


def check_method(method: object, words: Collection[str], taken: Mapping[str, type]) -> None:
    """Refuse a class that cannot be a method of the language.

    Args:
        method: the class.
        words: names that mean something else in an expression.
        taken: the methods so far. A class of the same module and name may stand again.

    Raises:
        TypeError: no class of a term or a post.
        ValueError: its name, its arguments or what it defines; the message says what to write.
    """
    if not isinstance(method, type) or not issubclass(method, Direction | Post):
        raise TypeError(
            f"register takes a class derived from Direction, Contrast or Post, not {method!r}"
        )
    _check_name(method, words, taken)
    _check_arguments(method)
    check_overrides(method)


def _refusal(method: type, problem: str) -> ValueError:
    return ValueError(f"register: the class {method.__qualname__} {problem}")


def _check_name(method: type, words: Collection[str], taken: Mapping[str, type]) -> None:
    name: object = getattr(method, "name", None)
    if name is None:
        raise _refusal(method, 'has no name in expressions; write name = "…" in it')
    if not isinstance(name, str) or not (name.isascii() and name.isidentifier()):
        raise _refusal(
            method,
            f"has the name {name!r}; a name in expressions has letters, digits and _, and no digit "
            "first",
        )
    if name in words or keyword.iskeyword(name):
        raise _refusal(
            method, f"has the name {name!r}, a word of the expression language; choose another"
        )
    other = taken.get(name)
    if other and (other.__module__, other.__qualname__) != (method.__module__, method.__qualname__):
        raise _refusal(
            method,
            f"has the name {name!r}, which is taken by {other.__module__}.{other.__qualname__}; "
            'write another name = "…" in it',
        )


def _check_arguments(method: type) -> None:
    """Refuse a class whose arguments are not annotated fields of a dataclass, of writable types."""
    if "__dataclass_fields__" not in vars(method):
        raise _refusal(method, f"is no dataclass; {LIKE}")
    declared = list(arguments_of(method))
    names = {f.name for f in declared}
    library = [base for base in method.__mro__ if not is_foreign(base)]
    foreign = [base for base in method.__mro__ if is_foreign(base)]
    for base in foreign:
        annotated = {*names, *inspect.get_annotations(base)}
        for name, value in vars(base).items():
            if _looks_like_argument(name, value, annotated) and not _is_known(library, name):
                kind = type(value).__name__
                raise _refusal(
                    method,
                    f"has {name} = {value!r} without an annotation, so it is no argument; write "
                    f"{name}: {kind} = {value!r}, or {name}: ClassVar[{kind}] = {value!r} if it is "
                    "none",
                )
    own = {name for name in names if is_foreign(declaring(method, name))}
    for name in sorted(own):
        if _is_fixed(library, name) and name not in _fields_of(library):
            raise _refusal(
                method,
                f"has the argument {name!r}, which is something else of every term; "
                + ('write name = "…" without an annotation' if name == "name" else "rename it"),
            )
    try:
        hints = get_type_hints(method)
    except Exception as error:
        raise _refusal(
            method,
            f"has an annotation that cannot be read ({error}); import what it names at the top of "
            "its module",
        ) from None
    for name, hint in hints.items():
        known = name in names or name == "_" or hasattr(method, name)  # _ is of KW_ONLY
        if not known and ClassVar not in (hint, get_origin(hint)):
            raise _refusal(method, f"lacks the argument {name!r} of its base; declare it")
    for name in sorted(own):
        if not is_written(hints[name]):
            raise _refusal(
                method,
                f"has the argument {name!r} of a type that no expression can write "
                f"({_type_name(hints[name])}); use float, int, str, bool, None, Literal, a list or "
                "tuple of these, or ClassVar for what is no argument",
            )
    parameters = set(inspect.signature(method).parameters)
    if parameters != names:
        odd = ", ".join(sorted(parameters ^ names))
        raise _refusal(
            method,
            f"is made with other arguments than its fields ({odd}); leave __init__ to the "
            "dataclass, and InitVar out",
        )


def _type_name(hint: object) -> str:
    return hint.__name__ if isinstance(hint, type) and get_origin(hint) is None else str(hint)


def _fields_of(classes: Collection[type]) -> set[str]:
    return {f.name for base in classes if is_dataclass(base) for f in fields(base)}


def _is_known(library: Collection[type], name: str) -> bool:
    """Return whether a class of the library defines or annotates this."""
    return any(name in vars(base) or name in inspect.get_annotations(base) for base in library)


def _is_fixed(library: Collection[type], name: str) -> bool:
    """Return whether this is a method or a class variable in the library, so no argument."""
    return any(
        name in vars(base) or "ClassVar" in str(inspect.get_annotations(base).get(name))
        for base in library
    )


def _looks_like_argument(name: str, value: object, names: Collection[str]) -> bool:
    if name.startswith("_") or name.isupper() or name in names:
        return False
    return not callable(value) and not hasattr(type(value), "__get__")


def check_overrides(method: type) -> None:
    """Refuse a class whose methods do not take what they are called with, or that lacks some.

    Raises:
        ValueError: the method is named, and how to write it.
    """
    if missing := sorted(getattr(method, "__abstractmethods__", ())):
        raise _refusal(method, f"does not define {', '.join(missing)}")
    for base in method.__mro__:
        if not is_foreign(base):
            continue
        for name, value in vars(base).items():
            above = next((vars(b)[name] for b in base.__mro__[1:] if name in vars(b)), None)
            if above is None or name.startswith("__"):
                continue
            if isinstance(above, property) and inspect.isfunction(value):
                raise _refusal(method, f"defines {name} as a function; write @property above it")
            if inspect.isfunction(value) and inspect.isfunction(above):
                _check_signature(method, name, value, above)


def _check_signature(method: type, name: str, value: Any, above: Any) -> None:
    """Refuse an override that does not take the arguments of what it overrides."""
    wanted, own = inspect.signature(above), inspect.signature(value)
    taken = list(wanted.parameters.values())
    given = [p.name for p in taken if p.kind is p.POSITIONAL_OR_KEYWORD]
    try:
        own.bind(*given)
    except TypeError:
        if any(p.kind is p.VAR_POSITIONAL for p in taken):
            # How many predictions come is the class's own matter: those that it names.
            least = [p for p in own.parameters.values() if p.default is p.empty]
            if len(least) >= len(given):
                return
        heads = ", ".join(str(p).partition(":")[0] + _default(p) for p in taken)
        raise _refusal(
            method, f"defines {name}{_heads(own)}; it is called as {name}({heads})"
        ) from None


def _heads(signature: inspect.Signature) -> str:
    names = (str(p).partition(":")[0].partition("=")[0] for p in signature.parameters.values())
    return f"({', '.join(names)})"


def _default(parameter: inspect.Parameter) -> str:
    return "" if parameter.default is parameter.empty else f"={parameter.default!r}"
