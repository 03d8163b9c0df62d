"""What can be broken in a file: every change of its syntax tree that `mutate.py` tries."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cached_property

OPERATORS: dict[type, type] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.FloorDiv: ast.Mult,
}
COMPARED: dict[type, tuple[type, ...]] = {
    ast.Gt: (ast.GtE, ast.LtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Lt: (ast.LtE, ast.GtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
SWAPPED = ("good bad", "c u", "COND NULL", "low high")
NAMES = {a: b for pair in map(str.split, SWAPPED) for a, b in (pair, pair[::-1])} | {
    "both": "image"
}
PAIRS = ("t s", "alpha sigma", "x0 eps", "transition_variance posterior_variance", "value key")
ATTRIBUTES = {a: b for pair in map(str.split, PAIRS) for a, b in (pair, pair[::-1])}
BOUNDS = {"clamp", "clip", "clamp_min", "clamp_max", "minimum", "maximum", "min", "max"}
OTHER = {
    "min": "max",
    "max": "min",
    "minimum": "maximum",
    "maximum": "minimum",
    "any": "all",
    "all": "any",
}
COMMUTE = ("min", "max", "minimum", "maximum", "isclose", "allclose", "equal", "logaddexp")
COMMUTE += ("transpose", "swapaxes")
"""What gives the same for its arguments in either order."""
BARE = {
    "abs",
    "sqrt",
    "rsqrt",
    "square",
    "exp",
    "log",
    "log1p",
    "expm1",
    "detach",
    "flip",
    "sigmoid",
}
SKIPPED = {"__str__", "__repr__", "citation"}
"""What these write is words."""
WORDY = (ast.Raise, ast.JoinedStr, ast.Import, ast.ImportFrom, ast.Assert, ast.Global)
TALK = {"warn", "print", "echo", "cast", "register", "overload", "field", "TypeVar", "getLogger"}
UNCHANGED = {"strict", "device", "stacklevel", "non_blocking", "encoding", "slots", "repr"}
"""Keywords that change no number: what they are for fails otherwise, or is not on a CPU."""
LOOKS = {
    "gr": {
        *("label", "info", "title", "elem_id", "id", "variant", "size", "scale", "min_width"),
        *("height", "lines", "max_lines", "open", "container", "autofocus", "fill_width"),
        *("colors", "default_size", "color_mode"),
    },
    "Field": {"description", "examples", "title"},
    "dumps": {"indent"},
}
"""Keywords that say what something looks like or is called on a page, by the module or function:
of Gradio's widgets, of a schema's documentation, of a file.
"""
CODELESS = {"TYPE_CHECKING", "__name__"}

Change = Callable[[ast.AST], "ast.AST | None"]
"""Breaks a node in place, or returns what stands in its place."""


@dataclass(frozen=True)
class Place:
    """A node of a tree and where it hangs."""

    node: ast.AST
    parent: ast.AST
    field: str
    index: int | None
    where: str
    statement: ast.stmt

    def put(self, node: ast.AST) -> None:
        if self.index is None:
            setattr(self.parent, self.field, node)
        else:
            getattr(self.parent, self.field)[self.index] = node


@dataclass(frozen=True)
class Mutant:
    """One change of one file."""

    file: str
    line: int
    where: str
    """The function that it is in, or the class; "" outside."""
    what: str
    """The kind of change, what stood there and what stands there now, and the statement."""
    text: str

    @property
    def key(self) -> str:
        return f"{self.where}: {self.what}"

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.key}"


def _children(node: ast.AST) -> Iterator[tuple[str, int | None, ast.AST]]:
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "ctx", "type_comment"):
            continue
        if field == "value" and isinstance(node, ast.keyword) and node.arg in UNCHANGED:
            continue
        if field == "keywords" and isinstance(node, ast.Call):
            yield from ((field, i, k) for i, k in enumerate(value) if k.arg not in _looks(node))
            continue
        if isinstance(value, list):
            yield from (
                (field, i, item) for i, item in enumerate(value) if isinstance(item, ast.AST)
            )
        elif isinstance(value, ast.AST):
            yield field, None, value


def _is_words(node: ast.AST) -> bool:
    """Tell whether a node only says something: a docstring, a message, an import, an annotation."""
    if isinstance(node, WORDY) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    ):
        return True
    if isinstance(node, ast.FunctionDef) and node.name in SKIPPED:
        return True
    if isinstance(node, ast.If) and any(
        isinstance(n, ast.Name) and n.id in CODELESS for n in ast.walk(node.test)
    ):
        return True
    if isinstance(node, ast.Assign) and any(
        isinstance(t, ast.Name) and t.id.startswith("__") for t in node.targets
    ):
        return True
    if isinstance(node, ast.Call):
        return _called(node) in TALK
    return False


def _looks(call: ast.Call) -> set[str]:
    """Return the keywords of a call that only say what something looks like."""
    owner = getattr(call.func, "value", None)
    return LOOKS.get(owner.id if isinstance(owner, ast.Name) else "") or LOOKS.get(
        _called(call), set()
    )


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def places(tree: ast.AST) -> Iterator[Place]:
    """Yield the nodes that compute something, always in the same order."""

    def visit(parent: ast.AST, where: str, statement: ast.stmt | None) -> Iterator[Place]:
        for field, index, node in _children(parent):
            if _is_words(node):
                continue
            here = statement
            if isinstance(node, ast.stmt):
                here = node
            if here is not None:
                yield Place(node, parent, field, index, where, here)
            inside = where
            named = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            if named and not where.endswith("()"):
                inside = (f"{where}." if where else "") + node.name
                inside += "" if isinstance(node, ast.ClassDef) else "()"
            yield from visit(node, inside, here)

    for place in visit(tree, "", None):
        if not isinstance(place.node, ast.ClassDef | ast.FunctionDef) or isinstance(
            place.node, ast.ClassDef
        ):
            yield place


def changes(place: Place) -> Iterator[tuple[str, Change]]:
    """Yield the ways to break one node, each with a word on it."""
    node = place.node
    match node:
        case ast.BinOp(op=op) if type(op) in OPERATORS and not _text(node) and not _kinds(node):
            yield "operator", lambda n: setattr(n, "op", OPERATORS[type(n.op)]())
        case ast.BinOp(op=ast.Pow()):
            yield "power", lambda n: n.left
        case ast.UnaryOp(op=ast.USub()):
            yield "sign", lambda n: n.operand
        case ast.UnaryOp(op=ast.Not()):
            yield "not", lambda n: n.operand
        case ast.UnaryOp(op=ast.Invert()):
            yield "invert", lambda n: n.operand
        case ast.Compare(ops=[op, *_]):
            for k in range(len(COMPARED.get(type(op), ()))):
                yield (
                    "comparison",
                    lambda n, k=k: n.ops.__setitem__(0, COMPARED[type(n.ops[0])][k]()),
                )
        case ast.Constant(value=bool()):
            yield "answer", lambda n: setattr(n, "value", not n.value)
        case ast.Constant(value=int() | float()) if (
            abs(node.value) >= 1e-3 or node.value == 0
        ) and node.value + 1 != node.value:
            yield "number + 1", lambda n: setattr(n, "value", n.value + 1)
            yield "number - 1", lambda n: setattr(n, "value", n.value - 1)
        case ast.BoolOp(op=op):
            other = ast.Or if isinstance(op, ast.And) else ast.And
            yield "and/or", lambda n: setattr(n, "op", other())
            for k in range(len(node.values)):
                yield f"condition {k} dropped", lambda n, k=k: _without(n, k)
        case ast.If():
            yield "if True", lambda n: setattr(n, "test", ast.Constant(True))
            yield "if False", lambda n: setattr(n, "test", ast.Constant(False))
        case ast.IfExp():
            yield "first branch", lambda n: n.body
            yield "other branch", lambda n: n.orelse
        case ast.comprehension(ifs=[_, *_]):
            yield "filter dropped", lambda n: setattr(n, "ifs", [])
        case ast.ClassDef(body=body) if {"good", "bad"} <= {getattr(f, "name", "") for f in body}:
            yield "good and bad swapped", _swap
        case ast.Name(ctx=ast.Load(), id=name) if name in NAMES:
            yield "name", lambda n: setattr(n, "id", NAMES[n.id])
        case ast.Attribute(ctx=ast.Load(), attr=name) if name in ATTRIBUTES:
            yield "attribute", lambda n: setattr(n, "attr", ATTRIBUTES[n.attr])
        case ast.Call():
            yield from _calls(node)
        case ast.Break() | ast.Continue() | ast.AugAssign():
            yield "dropped", lambda n: ast.Pass()
        case ast.Expr(value=ast.Call() | ast.Await()) if not _text(node):
            yield "dropped", lambda n: ast.Pass()
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield "dropped", lambda n: ast.Pass()
        case ast.Assign(targets=[ast.Name(id=name)], value=value) if _uses(value, name):
            yield "dropped", lambda n: ast.Pass()


def _calls(node: ast.Call) -> Iterator[tuple[str, Change]]:
    name = _called(node)
    if (
        len(node.args) >= 2
        and name not in ("isinstance", "getattr", "setattr", *COMMUTE)
        and _alike(node.args[0], node.args[1])
    ):
        yield "arguments swapped", lambda n: n.args.__setitem__(slice(0, 2), n.args[1::-1])
    for k, keyword in enumerate(node.keywords):
        if keyword.arg and keyword.arg not in UNCHANGED | _looks(node):
            yield f"{keyword.arg}= dropped", lambda n, k=k: n.keywords.pop(k) and None
    if isinstance(node.func, ast.Attribute):
        if name in BOUNDS and name not in OTHER:
            yield "bounds dropped", lambda n: n.func.value
            for k in range(len(node.args) if len(node.args) > 1 else 0):
                yield f"bound {k} dropped", lambda n, k=k: n.args.__setitem__(k, ast.Constant(None))
        if name in BARE and not node.args:
            yield f"{name} dropped", lambda n: n.func.value
        if name in OTHER:
            yield "other bound", lambda n: setattr(n.func, "attr", OTHER[n.func.attr])
    elif name in OTHER:
        yield "other bound", lambda n: setattr(n.func, "id", OTHER[n.func.id])


def _text(node: ast.AST) -> bool:
    """Tell whether an operator joins texts."""
    kinds = ast.JoinedStr | ast.Constant
    return any(
        isinstance(n, ast.JoinedStr) or isinstance(getattr(n, "value", None), str)
        for n in ast.walk(node)
        if isinstance(n, kinds)
    )


def _kinds(node: ast.BinOp) -> bool:
    """Tell whether an operator joins types."""
    names = [n.id for n in (node.left, node.right) if isinstance(n, ast.Name)]
    none = any(isinstance(n, ast.Constant) and n.value is None for n in (node.left, node.right))
    kinds = any(name[0].isupper() or name in ("int", "float", "str") for name in names)
    return isinstance(node.op, ast.BitOr) and (none or kinds)


def _alike(a: ast.AST, b: ast.AST) -> bool:
    return (
        type(a) is type(b)
        and not isinstance(a, ast.Starred | ast.Lambda)
        and ast.dump(a) != ast.dump(b)
    )


def _uses(node: ast.AST, name: str) -> bool:
    return any(isinstance(n, ast.Name) and n.id == name for n in ast.walk(node))


def _without(node: ast.AST, k: int) -> ast.AST:
    kept = [v for i, v in enumerate(node.values) if i != k]  # type: ignore[attr-defined]
    return kept[0] if len(kept) == 1 else ast.BoolOp(node.op, kept)  # type: ignore[attr-defined]


def _swap(node: ast.AST) -> None:
    for function in node.body:  # type: ignore[attr-defined]
        if isinstance(function, ast.FunctionDef) and function.name in ("good", "bad"):
            function.name = NAMES[function.name]


class Source:
    """A file, and all that can be broken in it."""

    def __init__(self, file: str, text: str) -> None:
        self.file, self.text = file, text

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def sites(self) -> list[tuple[int, int]]:
        """Which place is broken in which of its ways, by number."""
        return [(i, k) for i, p in enumerate(places(self.tree)) for k, _ in enumerate(changes(p))]

    @cached_property
    def lines(self) -> int:
        """How many lines hold code that computes something."""
        return len({p.node.lineno for p in places(self.tree) if hasattr(p.node, "lineno")})

    def within(self, names: Collection[str]) -> Iterator[Mutant]:
        """Yield the mutants of functions and classes by their names."""
        where = [p.where.replace("()", "") for p in places(self.tree)]
        yield from (self.mutant(site) for site in self.sites if where[site[0]] in names)

    def mutant(self, site: tuple[int, int]) -> Mutant:
        """Break one place in one way."""
        tree = copy.deepcopy(self.tree)
        place = list(places(tree))[site[0]]
        word, change = list(changes(place))[site[1]]
        line = getattr(place.node, "lineno", place.statement.lineno)
        before, statement = _first(place.node), _first(place.statement)
        made = change(place.node)
        if made is not None:
            place.put(made)
        after = _first(place.node if made is None else made)
        alone = place.node is place.statement
        what = f"{word}: {before}" + ("" if alone else f" -> {after} in {statement}")
        return Mutant(
            self.file,
            line,
            place.where.replace("()", ""),
            what,
            ast.unparse(ast.fix_missing_locations(tree)),
        )


def _first(node: ast.AST) -> str:
    if isinstance(node, ast.comprehension):
        return f"for {ast.unparse(node.target)} in {ast.unparse(node.iter)}" + "".join(
            f" if {ast.unparse(i)}" for i in node.ifs
        )
    return ast.unparse(node).splitlines()[0]
