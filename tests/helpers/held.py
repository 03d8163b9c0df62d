"""A pytest session that is held once every test is collected, so that trials are forks of it.

A trial then pays neither for torch nor for the library nor for reading the tests: a broken function
gets its code in place (`broken`), and a module that is not loaded yet is read broken. What a fork
cannot show is left to a fresh process: a change outside functions, and a function that ran while
the library and the tests were read.

The library is loaded with a mark at the start of each function (`Marked`), which writes down that
it ran: `RAN`.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import gc
import importlib.machinery
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest

MARK = "__ran__"
RAN: set[str] = set()
"""The functions that ran since it was cleared last: file:name."""
Functions = ast.FunctionDef | ast.AsyncFunctionDef


def marked(tree: ast.Module, file: str) -> ast.Module:
    """Put a mark at the start of each function; nested ones count as the one that they are in."""

    def visit(node: ast.AST, where: str) -> None:
        for child in ast.iter_child_nodes(node):
            name = where
            if isinstance(child, Functions | ast.ClassDef) and not where.endswith("()"):
                name = f"{where}.{child.name}" if where else child.name
                name += "" if isinstance(child, ast.ClassDef) else "()"
            visit(child, name)
            if isinstance(child, Functions):
                docstring = ast.get_docstring(child, clean=False) is not None
                first = child.body[0]
                text = ast.Constant(f"{file}:{name.removesuffix('()')}")
                call = ast.Expr(ast.Call(ast.Name(MARK, ast.Load()), [text], []))
                child.body.insert(int(docstring), ast.copy_location(call, first))

    visit(tree, "")
    return ast.fix_missing_locations(tree)


class Marked(importlib.machinery.PathFinder):
    """Loads the library under ``source`` with marks, and what ``instead`` names as it says."""

    instead: dict[str, str] = {}
    """The text that a file has in this trial."""
    source = ""

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        if fullname.partition(".")[0] != "guidestar":
            return None
        spec = super().find_spec(fullname, path, target)
        if spec is not None and spec.origin and spec.origin.startswith(cls.source):
            spec.loader = Loader(fullname, spec.origin)
        return spec

    @classmethod
    def install(cls, source: Path) -> None:
        setattr(builtins, MARK, RAN.add)
        cls.source = str(source)
        sys.meta_path.insert(0, cls)  # type: ignore[arg-type]


class Loader(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname):
        text = Marked.instead.get(self.path) or Path(self.path).read_text()
        return code_of(text, self.path)


def code_of(text: str, path: str) -> CodeType:
    """Return the code of a file with marks, as it is loaded here."""
    tree = marked(ast.parse(text), path[len(Marked.source.rpartition("/")[0]) + 1 :])
    return compile(tree, path, "exec", dont_inherit=True)


def functions(code: CodeType) -> Iterator[CodeType]:
    """Yield the code of the functions of a module and its classes, but not of what is in them."""
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            if inner.co_flags & 1:  # it has local variables of its own: a function
                yield inner
            else:
                yield from functions(inner)


def _outside(code: CodeType) -> list[Any]:
    """Return what a module and its classes do apart from their functions."""
    kept: list[Any] = [code.co_code, code.co_names]
    for item in code.co_consts:
        if not isinstance(item, CodeType):
            kept.append((type(item), item))
        elif not item.co_flags & 1:
            kept.append(_outside(item))
    return kept


def _within(code: CodeType) -> Iterator[CodeType]:
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield inner
            yield from _within(inner)


class NotHere(Exception):
    """A change that a fork of a loaded library cannot show."""


class Live:
    """The functions of the library that exist in this process, by their code."""

    def __init__(self, early: set[str]) -> None:
        self.early = early
        self.known: dict[CodeType, list[FunctionType]] = defaultdict(list)
        gc.unfreeze()  # what is frozen (`conftest.py`) is not listed
        for thing in gc.get_objects():
            if type(thing) is FunctionType and thing.__code__.co_filename.startswith(Marked.source):
                self.known[thing.__code__].append(thing)

    def broken(self, path: str, before: str, after: str, where: str) -> bool:
        """Let the functions of a file do what ``after``, its changed text, says.

        Returns whether that is all of it: what ran as the tests were read did so unbroken. Raises
        ``NotHere`` where nothing can be shown here.
        """
        name = path[len(Marked.source.rpartition("/")[0]) + 1 :]
        loaded = any(getattr(m, "__file__", None) == path for m in list(sys.modules.values()))
        if not loaded:
            Marked.instead[path] = after
            return True
        real, plain = code_of(before, path), code_of(ast.unparse(ast.parse(before)), path)
        changed = code_of(after, path)
        if _outside(plain) != _outside(changed):
            raise NotHere("the change is outside functions")
        rows = [list(functions(c)) for c in (real, plain, changed)]
        if len({len(row) for row in rows}) > 1:
            raise NotHere("another number of functions")
        for old, same, new in zip(*rows, strict=True):
            if same == new:
                continue
            if any(inner in self.known for inner in _within(old)):
                raise NotHere("a function of this function is in use")
            if old.co_freevars != new.co_freevars:
                raise NotHere("it closes over other names")
            if old not in self.known:
                raise NotHere("no function has this code")
            for function in self.known[old]:
                function.__code__ = new
        return f"{name}:{where}" not in self.early


class Held:
    """A pytest plugin that holds the session once all is collected, and gives it to ``use``."""

    def __init__(self, use: Callable[[Held], None]) -> None:
        self.use = use
        self.items: dict[str, Any] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session):
        if session.testsfailed:  # every trial would seem to fail
            raise session.Interrupted("a test file cannot be read")
        self.session = session
        self.items = {item.nodeid: item for item in session.items}
        self.live = Live(set(RAN))
        gc.collect()
        gc.freeze()
        self.use(self)
        return True

    def pytest_runtest_logreport(self, report):
        """Say which test failed, and how: what a trial leaves behind."""
        if report.failed:
            print(report.nodeid, str(report.longrepr).strip().splitlines()[-1:], flush=True)

    def run(
        self, tests: Sequence[str], folder: Path, at: Callable[[str], None] | None = None
    ) -> bool:
        """Run tests in this order (in a fork), and tell whether all passed. With ``at``, which is
        called before each, it ends at the first failure.
        """
        factory = self.session.config._tmp_path_factory
        factory._given_basetemp, factory._basetemp = folder, None
        self.session.config.option.maxfail = 1 if at else 0
        items = [self.items[t] for t in tests if t in self.items]
        self.session.items = items
        for item, after in zip(items, [*items[1:], None], strict=True):
            if at:
                at(item.nodeid)
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
            if at and self.session.testsfailed:
                return False
        return not self.session.testsfailed


def fork(work: Callable[[], int]) -> int:
    """Run ``work`` in a copy of this process, which ends with what it returns."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        code = work()
    except BaseException as error:
        print(repr(error))
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(code)
