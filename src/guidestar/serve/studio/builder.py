"""The expression as parts that controls change, from the metadata of the methods.

Controls and text follow each other: `parts_of` reads the text, and each change of a control writes
it anew. What a control is follows from the annotation and the default of the argument, and its help
from the docstring, which are what ``guidestar methods`` prints.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields, replace
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ...guidance import METHODS, Direction, Guidance, Post, parse
from ...guidance.citations import described
from ...guidance.serialize import literal
from ...guidance.term import cond, neg, uncond

Kind = Literal["number", "whole", "choice", "flag", "text"]
_BASES = {"": Guidance(), "cond": cond, "uncond": uncond, "neg": neg}
EXTRAS = ("interval", "schedule", "every", "reuse", "carry", "extrapolate")
"""Arguments that every term has; the page shows them under "more"."""


@dataclass(frozen=True, kw_only=True)
class Control:
    """One argument of a term or a post, and how it can be changed.

    Args:
        name: of the argument.
        kind: of its control.
        text: its value, as the expression writes it.
        low, high, step: of a slider; None where there is none.
        choices: of a list.
        help: what the argument is.
        more: whether it is one that all terms have.
    """

    name: str
    kind: Kind
    text: str
    low: float | None = None
    high: float | None = None
    step: float | None = None
    choices: tuple[str, ...] = ()
    help: str = ""
    more: bool = False


@dataclass(frozen=True, kw_only=True)
class Part:
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


def parts_of(text: str) -> tuple[Part, ...]:
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
        given = _usual(_helps(kind).get(first.name, ""))
        value = given if first.default is MISSING else first.default
        return f"cond | {method}({literal(0.5 if value is None else value)})"
    more = {f.name for f in fields(kind) if f.default is MISSING} - {"scale"}
    others = "".join(f", {name}=''" for name in sorted(more))
    return f"{method}({literal(starting_scale(method))}{others})"


def starting_scale(method: str) -> float:
    """Return the scale that a term begins with."""
    kind: Any = METHODS[method]
    usual = _usual(_helps(kind).get("scale", ""))
    return usual if usual is not None else kind.neutral + (2 if kind.neutral else 1)


def methods() -> list[tuple[str, str]]:
    """Return all methods that the page can add: name, and what it is in a line."""
    return [(name, summary_of(METHODS[name])) for name in sorted(METHODS)]


def summary_of(method: type) -> str:
    """Return what a method is, in a line of plain text."""
    first = (inspect.getdoc(method) or "").partition("\n")[0]
    return first.replace("``", "").rstrip(".:")


def _part(thing: Direction | Post) -> Part:
    kind = type(thing)
    about = described(kind)
    return Part(
        name=thing.name,
        kind="post" if isinstance(thing, Post) else "term",
        summary=summary_of(kind),
        evaluations=about.evaluations,
        controls=tuple(c for f in fields(thing) if (c := _control(thing, f)) is not None),
    )


def _control(thing: Direction | Post, argument: Any) -> Control | None:
    """Return the control of an argument; None where text cannot give it (functions, tensors)."""
    kind, name = type(thing), argument.name
    value = getattr(thing, name)
    hints = _choices(_hints(kind)[name])
    text = _text(name, value)
    if isinstance(value, float) and not math.isfinite(value):
        text = ""  # which text cannot give; nothing stands for it
    more = name in EXTRAS and isinstance(thing, Direction)
    help = _helps(Direction if more else kind).get(name, "")
    made = Control(name=name, kind="text", text=text, help=help, more=more)
    words = [w for h in hints if get_origin(h) is Literal for w in get_args(h)]
    if words:
        free = ("None",) if NoneType in hints else ()
        return replace(made, kind="choice", choices=(*free, *(literal(w) for w in words)))
    if bool in hints:
        return replace(made, kind="flag")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and math.isfinite(value) and (float in hints or int in hints):
        return _slider(made, kind, whole=float not in hints, value=float(value))
    return None if not {str, int, float} & set(hints) and not more and name != "gains" else made


def _slider(made: Control, kind: type, *, whole: bool, value: float) -> Control:
    """Give a control the range of a slider: by the bounds in its help, else around its values."""
    default = next(f.default for f in fields(kind) if f.name == made.name)  # type: ignore[arg-type]
    usual = _usual(made.help)
    sizes = [abs(v) for v in (value, default, usual) if isinstance(v, int | float)]
    largest = max(sizes) or 0.5
    share = made.name != "scale" and 0.5 < largest < 1
    top = 1.0 if share else _round_up(2 * largest)
    top = max(top, 5.0) if whole else top
    low, high = (-top if value < 0 or (isinstance(default, float) and default < 0) else 0.0), top
    if bounds := _BOUNDS.search(made.help):
        low, high = (float(b.replace("−", "-")) for b in bounds.groups())
        low, high = min(low, value), max(high, value)
    if whole and low == 0 and isinstance(default, int) and default >= 1:
        low = 1.0
    step = 1.0 if whole else _fine(high - low)
    return replace(made, kind="whole" if whole else "number", low=low, high=high, step=step)


_BOUNDS = re.compile(r"(?<!pixels )in [\[(](−?\d+(?:\.\d+)?), (\d+(?:\.\d+)?)[\])]")
"""How the help of an argument writes its range."""


def _round_up(size: float) -> float:
    """Return the next of 1, 2, 5 times a power of ten, at least 0.01."""
    power = 10.0 ** math.floor(math.log10(max(size, 0.01)))
    return next(round(k * power, 6) for k in (1, 2, 5, 10) if k * power >= size * 0.999)


def _fine(span: float) -> float:
    """Return a step of about a hundredth of a range."""
    return 10.0 ** math.floor(math.log10(span / 50))


def _usual(help: str) -> float | None:
    """Return the number that a help calls usual: of a range the middle, rounded."""
    found = re.search(
        r"[Uu]sual(?:ly)?[^\d:]*:?\s*(?:in \[)?(\d+(?:\.\d+)?)(?:(?:–|, )(\d+\.?\d*))?( for)?", help
    )
    if not found or found[3]:  # of some models only
        return None
    first, last = float(found[1]), float(found[2] or found[1])
    return round((first + last) / 2, 3)


def _call(part: Direction | Post, name: str, value: str) -> str:
    """Write a term or post with one argument as the text ``value``."""
    first, *others = fields(part)
    written = lambda f: value if f.name == name else _text(f.name, getattr(part, f.name))
    changed = [f for f in others if f.name == name or getattr(part, f.name) != f.default]
    named = [f"{f.name}={written(f)}" for f in changed]
    return f"{part.name}({', '.join([written(first), *named])})"


def _text(name: str, value: object) -> str:
    return literal(list(value) if isinstance(value, tuple) and name != "interval" else value)


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


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _choices(hint: Any) -> list[Any]:
    """Return the members of a union, or the annotation itself."""
    if get_origin(hint) in (Union, UnionType):
        return [one for part in get_args(hint) for one in _choices(part)]
    return [hint]


@cache
def _helps(kind: type) -> dict[str, str]:
    """Return what the docstring says of each argument."""
    text = (inspect.getdoc(kind) or "").partition("Args:\n")[2].partition("\n\n")[0]
    found: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        if begun := re.match(r"    (\w[\w, ]*): (.*)", line):
            name = begun[1]
            found.update(dict.fromkeys(name.split(", "), begun[2]))
        elif name and line.startswith("        "):
            found.update({n: f"{found[n]} {line.strip()}" for n in name.split(", ")})
    return {n: t.replace("``", "").replace("`", "") for n, t in found.items()}
