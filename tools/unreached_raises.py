"""List the `raise` statements of the library that no test reaches.

    python tools/unreached_raises.py                  run all tests, then list
    python tools/unreached_raises.py --most 0.1       run those that took less than 0.1 CPU seconds
    python tools/unreached_raises.py --rest --most 5  run those that call a function with a raise
                                                      that was not reached yet
    python tools/unreached_raises.py --list           only list what is left of the runs before
    python tools/unreached_raises.py tests/train      run these tests

The library is loaded with a mark before each `raise`. What was reached is kept by the statement's
text in `.mutants/raises.json`, from run to run, so that a run of some tests adds to those before.
``--most`` and ``--rest`` read the map of `tests/mutate.py`. What only a process of its own reaches
(the command line in a subprocess, workers) is not seen.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import importlib.machinery
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "guidestar"
KEPT = ROOT / ".mutants" / "raises.json"
MARK = "__raised__"
REACHED: set[str] = set()
SPARED = ("NotImplementedError", "AssertionError")
"""What says that a line is never reached, or stands for a method that others have."""


def raises(tree: ast.AST, file: str) -> Iterator[tuple[list[ast.stmt], int, str, str]]:
    """Yield each raise of a file: its block, its place there, its key and its function."""

    def visit(node: ast.AST, where: str) -> Iterator[tuple[list[ast.stmt], int, str, str]]:
        for _, value in ast.iter_fields(node):
            items = value if isinstance(value, list) else [value]
            for place, child in enumerate(items):
                if not isinstance(child, ast.AST):
                    continue
                name = where
                if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                    name = f"{where}.{child.name}" if where else child.name
                if isinstance(child, ast.Raise) and isinstance(value, list) and child.exc:
                    text = ast.unparse(child)
                    if not any(word in text.partition("(")[0] for word in SPARED):
                        yield value, place, f"{file}:{where}: {text}", where
                yield from visit(child, name)

    yield from visit(tree, "")


class Marked(importlib.machinery.PathFinder):
    """Loads the library with a mark before each raise."""

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        if fullname.partition(".")[0] != "guidestar":
            return None
        spec = super().find_spec(fullname, path, target)
        if spec is not None and str(spec.origin).endswith(".py"):
            spec.loader = Loader(fullname, str(spec.origin))
        return spec


class Loader(importlib.machinery.SourceFileLoader):
    """Loads one file so."""

    def get_code(self, fullname):
        tree = ast.parse(Path(self.path).read_text(encoding="utf-8"))
        found = list(raises(tree, name_of(Path(self.path))))
        for block, place, key, _ in reversed(found):
            call = ast.Expr(ast.Call(ast.Name(MARK, ast.Load()), [ast.Constant(key)], []))
            block.insert(place, ast.copy_location(call, block[place]))
        return compile(ast.fix_missing_locations(tree), self.path, "exec", dont_inherit=True)


def name_of(path: Path) -> str:
    """Return a file's path within the library."""
    return str(path.relative_to(SOURCE))


def every_raise() -> dict[str, tuple[str, int, str]]:
    """Return all raises of the library: their files, lines and functions, by their keys."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for block, place, key, where in raises(tree, name_of(path)):
            found[key] = name_of(path), block[place].lineno, where
    return found


class Chosen:
    """A pytest plugin that runs some of the tests that are collected (None: all)."""

    def __init__(self, tests: set[str] | None) -> None:
        self.tests = tests

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items):
        if self.tests is not None:
            items[:] = [i for i in items if i.nodeid in self.tests]


def mapped(most: float | None, functions: set[str] | None) -> set[str]:
    """Return the tests of the map that took at most so long, and call one of the functions."""
    kept = json.loads((KEPT.parent / "reach.json").read_text())
    chosen = set()
    for known in kept.values():
        mine = {i for i, name in enumerate(known["names"]) if functions and name in functions}
        for test, (seconds, called) in known["tests"].items():
            if (most is None or seconds <= most) and (functions is None or mine & set(called)):
                chosen.add(test)
    return chosen


def run(tests: Sequence[str], chosen: set[str] | None) -> int:
    """Run tests with marks, and keep what they reach."""
    setattr(builtins, MARK, REACHED.add)
    sys.meta_path.insert(0, Marked)  # type: ignore[arg-type]
    sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]
    files = list(tests) or sorted({t.partition("::")[0] for t in chosen or ()}) or ["tests"]
    code = pytest.main(["-q", "-n0", "--no-header", "--tb=line", *files], plugins=[Chosen(chosen)])
    before = json.loads(KEPT.read_text()) if KEPT.exists() else []
    KEPT.parent.mkdir(exist_ok=True)
    KEPT.write_text(json.dumps(sorted({*before, *REACHED} & set(every_raise()))))
    return int(code)


def left() -> dict[str, tuple[str, int, str]]:
    """Return the raises that no run has reached."""
    reached = set(json.loads(KEPT.read_text())) if KEPT.exists() else set()
    return {key: place for key, place in every_raise().items() if key not in reached}


def main() -> int:
    """Run tests as was asked, and list what is left."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tests", nargs="*", help="test files or folders; by default all")
    parser.add_argument("--most", type=float, help="CPU seconds of a test, by the map")
    parser.add_argument(
        "--rest", action="store_true", help="only tests that call a function that has one left"
    )
    parser.add_argument("--list", action="store_true", help="run nothing")
    given = parser.parse_args()
    code = 0
    if not given.list:
        functions = {f"guidestar/{f}:{w}" for f, _, w in left().values()} if given.rest else None
        narrowed = given.rest or given.most is not None
        code = run(given.tests, mapped(given.most, functions) if narrowed else None)
    found = left()
    for key, (file, line, _) in sorted(found.items(), key=lambda item: item[1]):
        print(f"src/guidestar/{file}:{line} {key.partition(': ')[2][:160]}")
    print(f"{len(found)} of {len(every_raise())} raises are reached by no test that was run")
    return code


if __name__ == "__main__":
    sys.exit(main())
