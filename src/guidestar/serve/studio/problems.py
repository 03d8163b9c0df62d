"""Where in an expression an error is."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ...guidance import METHODS, ExpressionError, parse


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is wrong with an expression, and where.

    Args:
        text: the expression.
        start, end: the place in it; both 0 where it is nowhere in particular.
        message: what is wrong, and what to do.
    """

    text: str
    start: int
    end: int
    message: str


def find_problem(text: str | None) -> Problem | None:
    """Return the error of an expression, if it does not parse; an empty one is none."""
    if not text or not text.strip():
        return None
    try:
        parse(text)
    except ExpressionError as error:
        shift = len(text) - len(text.lstrip()) if error.text == text.strip() else 0
        start = min(error.column + shift, max(len(text) - 1, 0))
        return Problem(text=text, start=start, end=_end(text, start), message=error.problem)
    return None


def locate(text: str, message: str) -> Problem:
    """Return an error that was found later (of a model, a limit), at the term that it names."""
    for name in re.findall(r"[A-Za-z_]\w*", message)[:12]:
        if name in METHODS and (found := re.search(rf"\b{name}\s*\(", text)):
            return Problem(
                text=text, start=found.start(), end=found.start() + len(name), message=message
            )
    return Problem(text=text, start=0, end=0, message=message)


def _end(text: str, start: int) -> int:
    """Return the end of the word, number or sign at a place."""
    found = re.compile(r"[\w.]+|['\"][^'\"]*['\"]?|.").match(text, start)
    return found.end() if found else start + 1
