"""Break a method's formula in one place at a time, and see whether its tests notice.

    python tests/mutate.py tcfg                  every mutant of the file that defines tcfg
    python tests/mutate.py tcfg fdg --laws       … against the laws that all methods obey, too
    python tests/mutate.py --list                how many mutants each method has

Mutants: + ↔ −, * ↔ /, a sign dropped, > ↔ <=, 0 ↔ 1, good ↔ bad and the like. A mutant that no test
fails on has survived: either a test is missing, or the mutant means the same.
"""

from __future__ import annotations

import argparse
import ast
import copy
import inspect
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from guidestar import METHODS

TESTS = Path(__file__).parent
SRC = TESTS.parent / "src" / "guidestar"
OPERATORS: dict[type, type] = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}
COMPARED: dict[type, type] = {ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.Lt: ast.GtE, ast.GtE: ast.Lt}
NAMES = {"good": "bad", "bad": "good", "c": "u", "u": "c", "COND": "NULL", "both": "image", "low": "high"}
SKIPPED = {"__post_init__", "bind", "__str__"}
"""What these do is refuse and write, which is not the formula."""

Change = Callable[[ast.AST], None]


def source(name: str) -> Path:
    """Return the file that defines a method."""
    return Path(inspect.getfile(METHODS[name]))


def changes(node: ast.AST) -> Iterator[tuple[str, Change]]:
    """Yield the ways to break one node, each with a word on it."""
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        yield "operator", lambda n: setattr(n, "op", OPERATORS[type(n.op)]())
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield "sign", lambda n: setattr(n, "op", ast.UAdd())
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARED:
        yield "comparison", lambda n: setattr(n, "ops", [COMPARED[type(n.ops[0])](), *n.ops[1:]])
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float) and node.value in (0, 1):
        yield "number", lambda n: setattr(n, "value", type(n.value)(1 - n.value))
    elif isinstance(node, ast.ClassDef) and {"good", "bad"} <= {f.name for f in node.body if isinstance(f, ast.FunctionDef)}:
        yield "good and bad swapped", _swap
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in NAMES:
        yield "name", lambda n: setattr(n, "id", NAMES[n.id])


def _swap(node: ast.AST) -> None:
    for function in node.body:  # type: ignore[attr-defined]
        if isinstance(function, ast.FunctionDef) and function.name in ("good", "bad"):
            function.name = NAMES[function.name]


def formula(tree: ast.Module) -> list[int]:
    """Return which nodes, in the order of ast.walk, are classes, neutral weights, or in functions that compute."""
    inside = {id(n) for n in ast.walk(tree) if isinstance(n, ast.ClassDef)}
    inside |= {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "neutral"}
    for function in (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name not in SKIPPED):
        skipped = {id(m) for r in ast.walk(function) if isinstance(r, ast.Raise | ast.arguments | ast.JoinedStr) for m in ast.walk(r)}
        inside |= {id(n) for statement in function.body for n in ast.walk(statement)} - skipped
    return [i for i, node in enumerate(ast.walk(tree)) if id(node) in inside]


def mutants(file: Path) -> Iterator[tuple[str, str]]:
    """Yield a word on each mutant of a file, and its text."""
    tree = ast.parse(file.read_text())
    nodes = list(ast.walk(tree))
    for i in formula(tree):
        for word, change in changes(nodes[i]):
            broken = copy.deepcopy(tree)
            node = list(ast.walk(broken))[i]
            statement = min((n for n in nodes if isinstance(n, ast.stmt) and n.lineno <= node.lineno <= (n.end_lineno or 0)), key=lambda n: (n.end_lineno or 0) - n.lineno)  # type: ignore[attr-defined]
            before, where = ast.unparse(node).splitlines()[0], ast.unparse(statement).splitlines()[0]
            change(node)
            yield f"line {node.lineno}, {word}: {before}  ->  {ast.unparse(node).splitlines()[0]}   in   {where}", ast.unparse(broken)  # type: ignore[attr-defined]


def tests_of(name: str, laws: bool) -> list[list[str]]:
    """Return pytest's arguments for a method: its own file, or those of test_methods that name it; and the laws."""
    stem = source(name).stem
    own = TESTS / f"test_{stem}.py"
    first = [str(own)] if own.exists() else [str(TESTS / "test_methods.py"), "-k", f"{stem} or {name}"]
    return [first, *([[str(TESTS / "test_guidance_laws.py"), "-k", name]] if laws else [])]


def noticed(package: Path, name: str, laws: bool, timeout: float) -> bool:
    """Tell whether any test of a method fails on the package in this folder, or never ends."""
    for arguments in tests_of(name, laws):
        child = multiprocessing.get_context("fork").Process(target=_test, args=(package, arguments))
        child.start()
        child.join(timeout)
        if child.is_alive():
            child.kill()
            return True
        if child.exitcode:
            return True
    return False


def _test(package: Path, arguments: list[str]) -> None:
    """Run pytest in a process that has torch already, but must import guidestar from ``package``."""
    for module in [m for m in sys.modules if m.partition(".")[0] == "guidestar"]:
        del sys.modules[module]
    sys.path.insert(0, str(package))
    sys.dont_write_bytecode = True
    os.chdir(TESTS.parent)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
        os._exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning", *arguments]))


def run(name: str, *, laws: bool, limit: int | None, timeout: float) -> list[str]:
    """Break a method in every place, and return the mutants that nobody noticed."""
    file = source(name)
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder)
        # Weights are large, and never change.
        shutil.copytree(SRC, package / "guidestar", ignore=shutil.ignore_patterns("__pycache__", "weights"))
        (package / "guidestar" / "weights").symlink_to(SRC / "weights")
        if noticed(package, name, laws, timeout):
            raise SystemExit(f"{name}: its tests fail as it stands")
        survivors = []
        for word, text in list(mutants(file))[:limit]:
            (package / "guidestar" / file.relative_to(SRC)).write_text(text)
            seen = noticed(package, name, laws, timeout)
            survivors += [] if seen else [word]
            print("noticed " if seen else "SURVIVED", f"{name}: {word}", flush=True)
    return survivors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", help=", ".join(sorted(METHODS)))
    parser.add_argument("--laws", action="store_true", help="run the laws for it, too")
    parser.add_argument("--limit", type=int, help="try so many mutants only")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for the tests of one mutant")
    parser.add_argument("--list", action="store_true", help="only count the mutants")
    given = parser.parse_args()
    if unknown := set(given.methods) - set(METHODS):
        parser.error(f"unknown methods: {', '.join(sorted(unknown))}")
    if given.list or not given.methods:
        for name in given.methods or sorted(METHODS):
            print(f"{name}  {len(list(mutants(source(name))))} mutants of {source(name).name}")
        return
    survivors = {n: run(n, laws=given.laws, limit=given.limit, timeout=given.timeout) for n in given.methods}
    print(*(f"{name}: {len(words)} survived" for name, words in survivors.items()), sep="\n")
    sys.exit(bool(sum(map(len, survivors.values()))))


if __name__ == "__main__":
    main()
