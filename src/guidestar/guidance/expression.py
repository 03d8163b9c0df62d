"""The expression language: the same text in Python, on the command line, in recipes and in pictures.

    [base +] term {+ term} {| post}         base: cond | uncond | neg

Text is read by Python's own grammar and then walked against a whitelist: names of methods and
weight schedules, numbers, strings, lists. Nothing is ever evaluated.
"""

from __future__ import annotations

import ast
import difflib
import operator
from collections.abc import Callable
from dataclasses import fields

from . import weights
from ._core import Direction, Guidance, Post, as_guidance, cond, neg, uncond

BASES = {"cond": cond, "uncond": uncond, "neg": neg}
METHODS: dict[str, type[Direction] | type[Post]] = {}
"""Every method by the name it has in an expression."""


def register(method: type) -> type:
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
    if not text.strip():
        raise ExpressionError(text, 0, "the expression is empty; write e.g. cfg(3)")
    if "\n" in text or len(text) > 2000:
        raise ExpressionError(text.split("\n")[0][:80], 0, "an expression is one line of at most 2000 characters")
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        column = (getattr(error, "offset", None) or 1) - 1
        raise ExpressionError(text.strip(), column, f"this is not an expression ({getattr(error, 'msg', error)})") from None
    return _Reader(text.strip()).guidance(tree.body)


class _Reader:
    """Walks a parsed expression; every refusal points at its place in the text."""

    def __init__(self, text: str) -> None:
        self.text = text

    def refuse(self, node: ast.AST, problem: str) -> ExpressionError:
        column = len(self.text.encode()[: getattr(node, "col_offset", 0)].decode(errors="ignore"))
        return ExpressionError(self.text, column, problem)

    def guidance(self, node: ast.expr) -> Guidance:
        return self._attempt(node, lambda: as_guidance(self._sum(node)))

    def _attempt(self, node: ast.AST, make: Callable):
        try:
            return make()
        except ExpressionError:
            raise
        except (TypeError, ValueError) as error:
            raise self.refuse(node, str(error)) from None

    def _sum(self, node: ast.expr):
        operators = {ast.Add: operator.add, ast.BitOr: operator.or_}
        if isinstance(node, ast.BinOp) and type(node.op) in operators:
            left, right = self._sum(node.left), self._sum(node.right)
            return self._attempt(node.right, lambda: operators[type(node.op)](left, right))
        if isinstance(node, ast.Name):
            return self._named(node, node.id, {**BASES, **METHODS})
        if isinstance(node, ast.Call):
            return self._call(node)
        raise self.refuse(node, "expected a base (cond, uncond, neg) or a method with its scale, like cfg(3)")

    def _named(self, node: ast.AST, name: str, known: dict):
        if name not in known:
            close = difflib.get_close_matches(name, known, 1, 0.5)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise self.refuse(node, f"unknown name {name!r}; {hint}there are {', '.join(sorted(known))}")
        if name in METHODS and known is not METHODS:
            raise self.refuse(node, f"{name} needs its scale: write {name}(…)")
        return known[name]

    def _call(self, node: ast.Call):
        if not isinstance(node.func, ast.Name):
            raise self.refuse(node, "only methods can be called")
        method = self._named(node.func, node.func.id, METHODS)
        return self._attempt(node, lambda: self._make(method, node))

    def _make(self, method: Callable, node: ast.Call):
        if any(k.arg is None for k in node.keywords) or any(isinstance(a, ast.Starred) for a in node.args):
            raise self.refuse(node, "'*' and '**' have no meaning here")
        values = [self._value(a) for a in node.args]
        named = {k.arg: self._value(k.value) for k in node.keywords}
        self._check_names(method, node, named)
        return method(*values, **named)

    def _check_names(self, method: Callable, node: ast.Call, named: dict) -> None:
        known = [f.name for f in fields(method)]
        for keyword in node.keywords:
            if keyword.arg not in known:
                raise self.refuse(keyword, f"{node.func.id} has no argument {keyword.arg!r}; it has {', '.join(known)}")  # type: ignore[attr-defined]

    def _value(self, node: ast.expr):
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float | str | bool | None):
            return node.value
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
            number = self._value(node.operand)
            if isinstance(number, int | float) and not isinstance(number, bool):
                return -number if isinstance(node.op, ast.USub) else number
        if isinstance(node, ast.List | ast.Tuple):
            items = [self._value(item) for item in node.elts]
            return items if isinstance(node, ast.List) else tuple(items)
        if isinstance(node, ast.Name):
            return {"inf": float("inf"), **weights.SCHEDULES}.get(node.id) or self._named(node, node.id, {"inf": 0, **weights.SCHEDULES})
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "clamp":
            return self._attempt(node, lambda: self._make(weights.clamp, node))
        raise self.refuse(node, "expected a number, a string, a list, or a weight schedule (linear, cosine, clamp(…))")
