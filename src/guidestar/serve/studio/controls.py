"""Controls of the arguments of methods: what each is, its range, and its help.

What a control is follows from the annotation and the default of the argument, and its help from the
docstring, which are what ``guidestar methods`` prints.
"""

from __future__ import annotations

import inspect
import math
import re
from dataclasses import dataclass, fields, replace
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ...guidance import Direction, Post
from ...guidance.serialize import literal

Kind = Literal["number", "whole", "choice", "flag", "text"]
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


def control_of(thing: Direction | Post, argument: Any) -> Control | None:
    """Return the control of an argument; None where text cannot give it (functions, tensors)."""
    kind, name = type(thing), argument.name
    value = getattr(thing, name)
    hints = _choices(_hints(kind)[name])
    text = text_of(name, value)
    if isinstance(value, float) and not math.isfinite(value):
        text = ""  # which text cannot give; nothing stands for it
    more = name in EXTRAS and isinstance(thing, Direction)
    help = helps_of(Direction if more else kind).get(name, "")
    made = Control(name=name, kind="text", text=text, help=help, more=more)
    words = [w for h in hints if get_origin(h) is Literal for w in get_args(h)]
    if words:
        free = ("None",) if NoneType in hints else ()
        return replace(made, kind="choice", choices=(*free, *(literal(w) for w in words)))
    if bool in hints:
        return replace(made, kind="flag")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and math.isfinite(value) and (float in hints or int in hints):
        return add_slider(made, kind, whole=float not in hints, value=float(value))
    return None if not {str, int, float} & set(hints) and not more and name != "gains" else made


def add_slider(
    made: Control, kind: type[Direction | Post], *, whole: bool, value: float
) -> Control:
    """Give a control the range of a slider: by the bounds in its help, else around its values."""
    default = next(f.default for f in fields(kind) if f.name == made.name)
    usual = usual_of(made.help)
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


def usual_of(help: str) -> float | None:
    """Return the number that a help calls usual: of a range the middle, rounded."""
    found = re.search(
        r"[Uu]sual(?:ly)?[^\d:]*:?\s*(?:in \[)?(\d+(?:\.\d+)?)(?:(?:–|, )(\d+\.?\d*))?( for)?", help
    )
    if not found or found[3]:  # of some models only
        return None
    first, last = float(found[1]), float(found[2] or found[1])
    return round((first + last) / 2, 3)


def text_of(name: str, value: object) -> str:
    """Write the value of an argument as an expression does."""
    return literal(list(value) if isinstance(value, tuple) and name != "interval" else value)


@cache
def _hints(kind: type) -> dict[str, object]:
    return get_type_hints(kind)


def _choices(hint: Any) -> list[Any]:
    """Return the members of a union, or the annotation itself."""
    if get_origin(hint) in (Union, UnionType):
        return [one for part in get_args(hint) for one in _choices(part)]
    return [hint]


@cache
def helps_of(kind: type) -> dict[str, str]:
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
    return {n: t.replace("`", "") for n, t in found.items()}
