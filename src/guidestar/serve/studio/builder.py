"""The expression as parts that controls change, from the metadata of the methods.

Controls and text follow each other: `parts_of` reads the text, and each change of a control writes
it anew.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any, Literal

from ...guidance import METHODS, Direction, Guidance, Post, parse
from ...guidance.citations import described
from ...guidance.serialize import literal
from ...guidance.term import cond, neg, uncond
from .controls import Control, control_of, helps_of, text_of, usual_of

_BASES = {"": Guidance(), "cond": cond, "uncond": uncond, "neg": neg}


@dataclass(frozen=True, kw_only=True)
class BuilderPart:
    """A term or a post of an expression.

    Args:
        name: of the method.
        kind: "term" or "post".
        summary: what it is, in a line.
        evaluations: what it costs.
        controls: one an argument.
    """

    name: str
    kind: Literal["term", "post"]
    summary: str
    evaluations: str
    controls: tuple[Control, ...]


def base_of(text: str) -> str:
    """Return the base that an expression names; empty where it names none."""
    base = parse(text).base
    return "" if base is None else base.value


def parts_of(text: str) -> tuple[BuilderPart, ...]:
    """Read the terms and posts of an expression.

    Raises:
        ExpressionError: it does not parse.
    """
    guidance = parse(text)
    return tuple(map(_part, (*guidance.terms, *guidance.posts)))


def change(text: str, index: int, name: str, value: str) -> str:
    """Return the expression with one argument changed.

    Args:
        text: of the expression.
        index: of the term or post; posts follow the terms.
        name: of the argument.
        value: as it would be written in the expression; a word that is no number, list or
            schedule is taken as a string, and nothing as the default.

    Raises:
        ValueError: there is no such part or argument, or the value does not fit it.
    """
    guidance = parse(text)
    part = _at(guidance, index)
    argument = {f.name: f for f in fields(part)}.get(name)
    if argument is None:
        raise ValueError(f"{part.name} has no argument {name!r}")
    if not value.strip() and argument.default is not MISSING:
        return str(_with(guidance, index, replace(part, **{name: argument.default})))
    first: ValueError | None = None
    for written in (value.strip(), repr(value.strip())):
        try:
            call = parse(_alone(part, _call(part, name, written)))
            found = (*call.terms, *call.posts)
            if len(found) != 1:
                raise ValueError(f"{part.name}: {name} must be one value, not {value!r}")
            return str(_with(guidance, index, found[0]))
        except ValueError as error:
            first = first or error
    assert first is not None
    raise first


def _alone(part: Direction | Post, call: str) -> str:
    return f"cond | {call}" if isinstance(part, Post) else call


def add(text: str, method: str) -> str:
    """Return the expression with a further term or post, at usual values.

    Raises:
        ValueError: there is no such method, or the sum refuses it.
    """
    if method not in METHODS:
        raise ValueError(f"there is no method {method!r}")
    guidance = parse(text) if text.strip() else Guidance()
    made = parse(starting_text(method))
    if made.posts:
        return str(replace(guidance, posts=(*guidance.posts, *made.posts)))
    return str(replace(guidance, terms=(*guidance.terms, *made.terms)))


def remove(text: str, index: int) -> str:
    """Return the expression without one of its parts."""
    guidance = parse(text)
    _at(guidance, index)
    return str(_with(guidance, index, None))


def set_base(text: str, base: str) -> str:
    """Return the expression with another base, or none (empty)."""
    if base not in _BASES:
        raise ValueError(f"the bases are cond, uncond and neg, not {base!r}")
    return str(replace(parse(text) if text.strip() else Guidance(), base=_BASES[base].base))


def starting_text(method: str) -> str:
    """Return a method with usual values: what its docstring calls usual, else 2 above neutral."""
    kind = METHODS[method]
    if issubclass(kind, Post):
        first = fields(kind)[0]
        given = usual_of(helps_of(kind).get(first.name, ""))
        value = given if first.default is MISSING else first.default
        return f"cond | {method}({literal(0.5 if value is None else value)})"
    more = {f.name for f in fields(kind) if f.default is MISSING} - {"scale"}
    others = "".join(f", {name}=''" for name in sorted(more))
    return f"{method}({literal(starting_scale(method))}{others})"


def starting_scale(method: str) -> float:
    """Return the scale that a term begins with."""
    kind: Any = METHODS[method]
    usual = usual_of(helps_of(kind).get("scale", ""))
    return usual if usual is not None else kind.neutral + (2 if kind.neutral else 1)


def methods() -> list[tuple[str, str]]:
    """Return all methods that the page can add: name, and what it is in a line."""
    return [(name, summary_of(METHODS[name])) for name in sorted(METHODS)]


def summary_of(method: type) -> str:
    """Return what a method is, in a line of plain text."""
    first = (inspect.getdoc(method) or "").partition("\n")[0]
    return first.replace("``", "").rstrip(".:")


def _part(thing: Direction | Post) -> BuilderPart:
    kind = type(thing)
    about = described(kind)
    return BuilderPart(
        name=thing.name,
        kind="post" if isinstance(thing, Post) else "term",
        summary=summary_of(kind),
        evaluations=about.evaluations,
        controls=tuple(c for f in fields(thing) if (c := control_of(thing, f)) is not None),
    )


def _call(part: Direction | Post, name: str, value: str) -> str:
    """Write a term or post with one argument as the text ``value``."""
    first, *others = fields(part)
    written = lambda f: value if f.name == name else text_of(f.name, getattr(part, f.name))
    changed = [f for f in others if f.name == name or getattr(part, f.name) != f.default]
    named = [f"{f.name}={written(f)}" for f in changed]
    return f"{part.name}({', '.join([written(first), *named])})"


def _at(guidance: Guidance, index: int) -> Direction | Post:
    parts = (*guidance.terms, *guidance.posts)
    if not 0 <= index < len(parts):
        raise ValueError(f"the expression has {len(parts)} parts, so none of index {index}")
    return parts[index]


def _with(guidance: Guidance, index: int, part: Any) -> Guidance:
    parts: Sequence[Any] = (*guidance.terms, *guidance.posts)
    kept = [part if k == index else p for k, p in enumerate(parts)]
    kept = [p for p in kept if p is not None]
    terms = tuple(p for p in kept if isinstance(p, Direction))
    return replace(
        guidance, terms=terms, posts=tuple(p for p in kept if not isinstance(p, Direction))
    )
