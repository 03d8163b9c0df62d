"""The expression language of guidance, for Python, the command line, recipes and pictures.

    [base +] term {+ term} {| post}         base: cond | uncond | neg

Text is parsed with Python's own grammar. Only names of methods and weight schedules, numbers,
strings and lists are accepted, and nothing is ever evaluated.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from ..core.arguments import arguments_of, find_mismatch, needed, unnamed
from . import weights
from .registering import check_method
from .serialize import is_foreign
from .term import Direction, Guidance, Post, as_guidance, cond, neg, uncond

BASES = {"cond": cond, "uncond": uncond, "neg": neg}
METHODS: dict[str, type[Direction] | type[Post]] = {}
"""Every method by its name in an expression."""

_WORDS = {*BASES, *weights.SCHEDULES, "clamp", "inf", "nan", "null"}
"""Names that mean something else, or might."""

_LONGEST = 100_000

_T = TypeVar("_T")
Method = TypeVar("Method", bound=type[Direction] | type[Post])


def register(method: Method) -> Method:
    """Add a method to the language, under its ``name``; a decorator of its class.

    A class of the same module and name takes the place of the one before, so that the cell of a
    notebook can run again.

    Raises:
        TypeError: no class of a term or a post.
        ValueError: a name that is missing, taken or no identifier, no dataclass, arguments that an
            expression cannot write, or methods that do not take what they are called with.
    """
    if not (isinstance(method, type) and issubclass(method, Direction | Post)) or is_foreign(
        method
    ):
        check_method(method, _WORDS, METHODS)
    METHODS[method.name] = method
    return method


class ExpressionError(ValueError):
    """An expression that does not parse; the message marks the column.

    Args:
        text: the expression.
        column: the index of the wrong character.
        problem: what is wrong, and what to do.
    """

    def __init__(self, text: str, column: int, problem: str) -> None:
        super().__init__(f"guidance: {problem}\n  {text}\n  {' ' * column}^")
        self.text, self.column, self.problem = text, column, problem


def parse(text: str) -> Guidance:
    """Parse an expression.

    Raises:
        ExpressionError: a typo, an unknown method or argument, a value out of range, or code.

    Example:
        >>> str(parse("cfg(4, interval=(0.2, 3)) + apg(2) | rescale(0.7)"))
        'cfg(4, interval=(0.2, 3)) + apg(2) | rescale(0.7)'
    """
    text = text.strip()
    if not text:
        raise ExpressionError(text, 0, "the expression is empty; write e.g. cfg(3)")
    start = text.splitlines()[0][:80]
    if len(text.splitlines()) > 1 or len(text) > _LONGEST:
        problem = f"an expression is one line of at most {_LONGEST} characters"
        raise ExpressionError(start, 0, problem)
    try:
        guidance = _Reader(text).guidance(ast.parse(text, mode="eval").body)
        if len(str(guidance)) > _LONGEST:  # that text must parse again
            problem = f"written out this has more than {_LONGEST} characters"
            raise ExpressionError(start, 0, problem)
        return guidance
    except ExpressionError:
        raise
    except SyntaxError as error:
        column = error.offset - 1 if error.offset else len(text)
        raise ExpressionError(text, column, f"this is not an expression ({error.msg})") from None
    except (RecursionError, MemoryError):
        raise ExpressionError(text, 0, "this is nested too deeply") from None
    except ValueError as error:
        raise ExpressionError(text, 0, f"this is not an expression ({error})") from None


class _Reader:
    """Makes a guidance of a parsed expression; every error has its column in the text."""

    def __init__(self, text: str) -> None:
        self.text = text

    def error(self, node: ast.AST, problem: str) -> ExpressionError:
        column = len(self.text.encode()[: getattr(node, "col_offset", 0)].decode(errors="ignore"))
        return ExpressionError(self.text, column, problem)

    def guidance(self, node: ast.expr) -> Guidance:
        return self._attempt(node, lambda: as_guidance(self._sum(node)))

    def _attempt(self, node: ast.AST, make: Callable[[], _T]) -> _T:
        try:
            return make()
        except ExpressionError:
            raise
        except (TypeError, ValueError) as error:
            raise self.error(node, str(error)) from None

    def _sum(self, node: ast.expr) -> Direction | Guidance | Post:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.BitOr):
            left, right = self._sum(node.left), self._sum(node.right)
            whole = self._attempt(node.left, lambda: as_guidance(left))
            if isinstance(node.op, ast.Add):
                return self._attempt(node.right, lambda: whole.plus(as_guidance(right)))
            return self._attempt(node.right, lambda: whole.then(right))
        if isinstance(node, ast.Name):
            return self._base(node)
        if isinstance(node, ast.Call):
            return self._call(node)
        raise self.error(
            node, "expected a base (cond, uncond, neg) or a method with its scale, like cfg(3)"
        )

    def _base(self, node: ast.Name) -> Guidance:
        name = node.id
        if name in METHODS:
            raise self.error(node, _wanting(METHODS[name], name))
        if name not in BASES:
            raise self._unknown(node, name, [*BASES, *METHODS])
        return BASES[name]

    def _unknown(self, node: ast.AST, name: str, known: Iterable[str]) -> ExpressionError:
        names = ", ".join(sorted(known))
        return self.error(node, f"unknown name {name!r}; {_hint(name, known)}there are {names}")

    def _call(self, node: ast.Call) -> Direction | Post:
        if not isinstance(node.func, ast.Name):
            raise self.error(node, "only methods can be called")
        name = node.func.id
        if name not in METHODS:
            raise self._unknown(node.func, name, METHODS)
        return self._make(METHODS[name], name, node)

    def _make(self, method: type[_T], name: str, node: ast.Call) -> _T:
        arguments: dict[str, object] = {}
        for key, value in self._arguments(method, name, node):
            if key in arguments:
                raise self.error(value, f"{name}: {key} is given twice")
            arguments[key] = self._value(value)
            if wrong := find_mismatch(method, key, arguments[key]):
                raise self.error(value, f"{name}: {wrong}")
        for key in needed(method):
            if key not in arguments:
                raise self.error(node, _wanting(method, name, key))
        return self._attempt(node, lambda: method(**arguments))

    def _arguments(self, method: type, name: str, node: ast.Call) -> Iterator[tuple[str, ast.expr]]:
        order, known = unnamed(method), [f.name for f in arguments_of(method)]
        for value in node.args[len(order) :]:
            most = f"{len(order)} arguments without a name: {', '.join(order)}"
            raise self.error(value, f"{name} takes at most {most}")
        yield from zip(order, node.args, strict=False)
        for keyword in node.keywords:
            key = keyword.arg
            if key is None:
                raise self.error(keyword, "'**' has no meaning here")
            if key not in known:
                hint = f"{_hint(key, known)}it has {', '.join(known)}"
                raise self.error(keyword, f"{name} has no argument {key!r}; {hint}")
            yield key, keyword.value

    def _value(self, node: ast.expr, inside: bool = False) -> object:
        value = node.value if isinstance(node, ast.Constant) else ...
        if isinstance(value, int | float) and abs(value) >= 2.0**1000:
            raise self.error(node, "this number is too large; numbers must be finite")
        if isinstance(value, int | float | str | None):
            return value
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
            number = self._value(node.operand, inside)
            if isinstance(number, int | float) and not isinstance(number, bool):
                return -number if isinstance(node.op, ast.USub) else number
        if isinstance(node, ast.List | ast.Tuple):
            items = [self._value(item, True) for item in node.elts]
            return items if isinstance(node, ast.List) else tuple(items)
        if isinstance(node, ast.Name):
            return self._constant(node, inside)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "clamp":
            return self._make(weights.clamp, "clamp", node)
        raise self.error(
            node,
            "expected a number, a string, a list, or a weight schedule (linear, cosine, clamp(…))",
        )

    def _constant(self, node: ast.Name, inside: bool) -> object:
        name, known = node.id, {**weights.SCHEDULES, **({"inf": float("inf")} if inside else {})}
        if name == "inf" and not inside:
            raise self.error(node, "numbers must be finite; inf has a meaning in an interval only")
        if name == "clamp":
            raise self.error(node, _wanting(weights.clamp, "clamp"))
        if name not in known:
            raise self._unknown(node, name, [*known, "clamp(…)"])
        return known[name]


def _wanting(method: type, name: str, key: str | None = None) -> str:
    """Say which argument is missing (by default the first), and how the call is written."""
    order, known = needed(method), unnamed(method)
    if key is None and not order:
        key = next(iter(known), None)
        return f"{name} needs its {key}: write {name}(…)" if key else f"write {name}()"
    shown = [("" if k in known else f"{k}=") + _example(method, k) for k in order]
    return f"{name} needs its {key or order[0]}: write {name}({', '.join(shown)})"


def _example(method: type, key: str) -> str:
    return next(
        (e for e in ("3", '"…"') if not find_mismatch(method, key, ast.literal_eval(e))), "…"
    )


def _hint(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, 3, 0.5)
    # Of equally close names, prefer the one with the same letters: two of them were swapped.
    best = max(close, key=lambda k: sorted(k) == sorted(name), default=None)
    return f"did you mean {best!r}? " if best else ""
