"""The expression language: the same text in Python, on the command line, in recipes and in
pictures.

    [base +] term {+ term} {| post}         base: cond | uncond | neg

Text is read by Python's own grammar and then walked against a whitelist: names of methods and
weight schedules, numbers, strings, lists. Nothing is ever evaluated.
"""

from __future__ import annotations

import ast
import difflib
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Any, TypeVar

from . import weights
from .arguments import needed, problem, unnamed
from .term import Direction, Guidance, Post, as_guidance, cond, neg, uncond

BASES = {"cond": cond, "uncond": uncond, "neg": neg}
METHODS: dict[str, type[Direction] | type[Post]] = {}
"""Every method by the name it has in an expression."""


_LONGEST = 100_000


Method = TypeVar("Method", bound=type[Direction] | type[Post])


def register(method: Method) -> Method:
    """Give a method its name in the language."""
    METHODS[method.name] = method
    return method


class ExpressionError(ValueError):
    """An expression that does not parse; the message points at the place."""

    def __init__(self, text: str, column: int, problem: str) -> None:
        pointer = " " * column + "^"
        super().__init__(f"guidance: {problem}\n  {text}\n  {pointer}")


def parse(text: str) -> Guidance:
    """Read an expression.

    Raises:
        ExpressionError: a typo, an unknown method or argument, a value out of range, or code.

    Example:
        >>> str(parse("cfg(4, interval=(0.2, 3)) + apg(2) | rescale(0.7)"))
        'cfg(4, interval=(0.2, 3)) + apg(2) | rescale(0.7)'
    """
    text = text.strip()
    if not text:
        raise ExpressionError(text, 0, "the expression is empty; write e.g. cfg(3)")
    if len(text.splitlines()) > 1 or len(text) > _LONGEST:
        raise ExpressionError(
            text.splitlines()[0][:80],
            0,
            f"an expression is one line of at most {_LONGEST} characters",
        )
    try:
        guidance = _Reader(text).guidance(ast.parse(text, mode="eval").body)
        if len(str(guidance)) > _LONGEST:  # its text must be readable again
            raise ExpressionError(
                text[:80], 0, f"written out this has more than {_LONGEST} characters"
            )
        return guidance
    except ExpressionError:
        raise
    except SyntaxError as error:
        raise ExpressionError(
            text,
            error.offset - 1 if error.offset else len(text),
            f"this is not an expression ({error.msg})",
        ) from None
    except (RecursionError, MemoryError):
        raise ExpressionError(text, 0, "this is nested too deeply") from None
    except ValueError as error:
        raise ExpressionError(text, 0, f"this is not an expression ({error})") from None


class _Reader:
    """Walks a parsed expression; every refusal points at its place in the text."""

    def __init__(self, text: str) -> None:
        self.text = text

    def refuse(self, node: ast.AST, problem: str) -> ExpressionError:
        column = len(self.text.encode()[: getattr(node, "col_offset", 0)].decode(errors="ignore"))
        return ExpressionError(self.text, column, problem)

    def guidance(self, node: ast.expr) -> Guidance:
        return self._attempt(node, lambda: as_guidance(self._sum(node)))

    def _attempt(self, node: ast.AST, make: Callable[[], Any]) -> Any:
        try:
            return make()
        except ExpressionError:
            raise
        except (TypeError, ValueError) as error:
            raise self.refuse(node, str(error)) from None

    def _sum(self, node: ast.expr) -> Direction | Guidance | Post:
        operators: dict[type[ast.operator], Callable[..., Any]] = {
            ast.Add: operator.add,
            ast.BitOr: operator.or_,
        }
        if isinstance(node, ast.BinOp) and type(node.op) in operators:
            left, right = self._sum(node.left), self._sum(node.right)
            whole = self._attempt(node.left, lambda: as_guidance(left))
            return self._attempt(node.right, lambda: operators[type(node.op)](whole, right))
        if isinstance(node, ast.Name):
            return self._base(node)
        if isinstance(node, ast.Call):
            return self._call(node)
        raise self.refuse(
            node, "expected a base (cond, uncond, neg) or a method with its scale, like cfg(3)"
        )

    def _base(self, node: ast.Name) -> Guidance:
        if node.id in METHODS:
            raise self.refuse(
                node, f"{node.id} needs its {_first(METHODS[node.id])}: write {node.id}(…)"
            )
        return self._known(node, node.id, {**BASES, **dict.fromkeys(METHODS)})

    def _known(self, node: ast.AST, name: str, known: Mapping[str, Any]) -> Any:
        if name not in known:
            raise self.refuse(
                node,
                f"unknown name {name!r}; {_hint(name, known)}there are {', '.join(sorted(known))}",
            )
        return known[name]

    def _call(self, node: ast.Call) -> Any:
        if not isinstance(node.func, ast.Name):
            raise self.refuse(node, "only methods can be called")
        return self._make(self._known(node.func, node.func.id, METHODS), node.func.id, node)

    def _make(self, method: type, name: str, node: ast.Call) -> Any:
        arguments: dict[str, Any] = {}
        for key, value in self._arguments(method, name, node):
            if key in arguments:
                raise self.refuse(value, f"{name}: {key} is given twice")
            arguments[key] = self._value(value)
            if wrong := problem(method, key, arguments[key]):
                raise self.refuse(value, f"{name}: {wrong}")
        for key in needed(method):
            if key not in arguments:
                raise self.refuse(node, f"{name} needs its {key}: write {name}(…)")
        return self._attempt(node, lambda: method(**arguments))

    def _arguments(self, method: type, name: str, node: ast.Call) -> Iterator[tuple[str, ast.expr]]:
        order, known = unnamed(method), [f.name for f in fields(method)]
        for i, value in enumerate(node.args):
            if i >= len(order):
                raise self.refuse(
                    value,
                    f"{name} takes at most {len(order)} arguments without a name: "
                    f"{', '.join(order)}",
                )
            yield order[i], value
        for keyword in node.keywords:
            if keyword.arg is None:
                raise self.refuse(keyword, "'**' has no meaning here")
            if keyword.arg not in known:
                raise self.refuse(
                    keyword,
                    f"{name} has no argument {keyword.arg!r}; {_hint(keyword.arg, known)}it has "
                    f"{', '.join(known)}",
                )
            yield keyword.arg, keyword.value

    def _value(self, node: ast.expr, inside: bool = False) -> Any:
        if isinstance(node, ast.Constant) and isinstance(
            node.value, int | float | str | bool | None
        ):
            if isinstance(node.value, int | float) and abs(node.value) >= 2.0**1000:
                raise self.refuse(node, "this number is too large; numbers must be finite")
            return node.value
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
            number = self._value(node.operand, inside)
            if isinstance(number, int | float) and not isinstance(number, bool):
                return -number if isinstance(node.op, ast.USub) else number
        if isinstance(node, ast.List | ast.Tuple):
            items = [self._value(item, True) for item in node.elts]
            return items if isinstance(node, ast.List) else tuple(items)
        if isinstance(node, ast.Name):
            if node.id == "inf" and not inside:
                raise self.refuse(
                    node, "numbers must be finite; inf has a meaning in an interval only"
                )
            if node.id == "clamp":
                raise self.refuse(node, f"clamp needs its {_first(weights.clamp)}: write clamp(…)")
            return self._known(
                node,
                node.id,
                {
                    **weights.SCHEDULES,
                    "clamp(…)": weights.clamp,
                    **({"inf": float("inf")} if inside else {}),
                },
            )
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "clamp"
        ):
            return self._make(weights.clamp, "clamp", node)
        raise self.refuse(
            node,
            "expected a number, a string, a list, or a weight schedule (linear, cosine, clamp(…))",
        )


def _first(method: type) -> str:
    return fields(method)[0].name


def _hint(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, 3, 0.5)
    # Of names as close as each other, the one of the same letters is meant: two were swapped.
    best = max(close, key=lambda k: sorted(k) == sorted(name), default=None)
    return f"did you mean {best!r}? " if best else ""
