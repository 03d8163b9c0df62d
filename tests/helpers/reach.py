"""Which test runs which function: found by running each test file once, with a mark in each
function, and kept.

As a pytest plugin (`Watch`) it writes down, for each test that passes, its CPU seconds and the
functions of the library that it called; `Only` runs chosen tests alone, in a chosen order. `Reach`
is what is kept of that between runs.
"""

from __future__ import annotations

import ast
import hashlib
import json
import resource
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from helpers.held import RAN


def cpu_seconds() -> float:
    """Return what this process and those that it has started and awaited took of a processor: a
    machine that does other work too changes nothing of it.
    """
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


class Watch:
    """A pytest plugin that writes down what each test calls (`held.RAN`)."""

    def __init__(self) -> None:
        self.shared: set[str] = set()  # what fixtures of more than one test call
        self.tests: dict[str, tuple[float, list[str]]] = {}
        self.failed: list[str] = []

    @pytest.hookimpl(hookwrapper=True)
    def pytest_fixture_setup(self, fixturedef):
        if fixturedef.scope == "function":
            yield
            return
        before = set(RAN)
        RAN.clear()
        yield
        self.shared |= RAN
        RAN.clear()
        RAN.update(before)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item):
        failed = len(self.failed)
        start = cpu_seconds()
        RAN.clear()
        yield
        if len(self.failed) == failed:
            self.tests[item.nodeid] = (round(cpu_seconds() - start, 4), sorted(RAN))

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.failed.append(report.nodeid)

    def kept(self, file: Path) -> dict[str, Any]:
        """Return what is worth keeping of a test file, with functions by number."""
        names = sorted({*self.shared, *(f for _, called in self.tests.values() for f in called)})
        number = {name: i for i, name in enumerate(names)}
        tests = {
            test: [seconds, [number[f] for f in called]]
            for test, (seconds, called) in self.tests.items()
        }
        return {
            "hash": state(file),
            "names": names,
            "shared": [number[f] for f in sorted(self.shared)],
            "tests": tests,
            "failed": self.failed,
        }


class Only:
    """A pytest plugin that runs chosen tests alone, in their order."""

    def __init__(self, chosen: Sequence[str]) -> None:
        self.order = {test: i for i, test in enumerate(chosen)}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items):
        items[:] = sorted(
            (i for i in items if i.nodeid in self.order), key=lambda i: self.order[i.nodeid]
        )


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def state(file: Path) -> str:
    """Return a digest of a test file, and of the tables beside it that it reads its cases from."""
    text = file.read_text()
    tables = (table for table in sorted(file.parent.glob("*.txt")) if table.name in text)
    return digest("\n".join([text, *(table.read_text() for table in tables)]))


class Reach:
    """What was found out about each test file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files: dict[str, dict[str, Any]] = (
            json.loads(path.read_text()) if path.exists() else {}
        )

    def put(self, file: str, kept: dict[str, Any]) -> None:
        self.files[file] = kept
        beside = self.path.with_suffix(".writing")
        beside.write_text(json.dumps(self.files))
        beside.replace(self.path)

    def follow(self, source: Path) -> None:
        """Know functions again that are in another file now, where only one new one has their name.

        Args:
            source: the folder of the package.
        """
        now: dict[str, list[str]] = defaultdict(list)
        for path in sorted(source.rglob("*.py")):
            file = f"{source.name}/{path.relative_to(source)}"
            for where in _functions(ast.parse(path.read_text()), ""):
                now[where].append(f"{file}:{where}")
        there = {name for names in now.values() for name in names}
        before = {name for known in self.files.values() for name in known["names"]}
        for known in self.files.values():
            for i, name in enumerate(known["names"]):
                if name in there:
                    continue
                moved = [n for n in now.get(name.partition(":")[2], ()) if n not in before]
                if len(moved) == 1:
                    known["names"][i] = moved[0]

    def stale(self, root: Path, files: Iterable[str]) -> list[str]:
        """Return the files that have changed since they were run, and those that never were."""
        return [f for f in files if self.files.get(f, {}).get("hash") != state(root / f)]

    def tests_of(
        self, file: str, where: str, budget: float, always: Sequence[str] = ()
    ) -> list[str]:
        """Return the tests that run a function (or anything of a class or file), those that tell
        soonest first.

        Further cases of a test come later than the first; then the rest of the files that the
        function is run in, for what is computed once and kept. ``always``: files whose tests
        come first, whatever they run; ``budget``: the seconds that all of them may take.
        """
        rows: list[tuple[float, str]] = []
        rest: list[tuple[float, str]] = []
        first = [test for name in always for test in self.files.get(name, {}).get("tests", {})]
        for known in self.files.values():
            exact, inside = {f"{file}:{where}"}, f"{file}:{where}." if where else f"{file}:"
            mine = {
                i
                for i, name in enumerate(known["names"])
                if name in exact or name.startswith(inside)
            }
            if not mine:
                continue
            shared = bool(mine & set(known["shared"]))
            for test, (seconds, called) in known["tests"].items():
                focus = 1 + len(called) / 200  # a test of little is the more likely to be of this
                (rows if mine & set(called) else rest if shared else []).append(
                    (seconds * focus, test)
                )
        found = dict.fromkeys(first + _fair(rows) + _fair(rest))
        return _within(list(found), self.seconds, budget)

    @property
    def seconds(self) -> dict[str, float]:
        return {
            test: seconds
            for known in self.files.values()
            for test, (seconds, _) in known["tests"].items()
        }


def _functions(node: ast.AST, where: str) -> Iterator[str]:
    """Yield the names of the functions of a module and its classes."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{where}.{child.name}" if where else child.name
            if isinstance(child, ast.ClassDef):
                yield from _functions(child, name)
            else:
                yield name


def _fair(rows: Sequence[tuple[float, str]]) -> list[str]:
    """Order tests by their seconds, each further case of one as if it took as much longer."""
    cases: dict[str, int] = defaultdict(int)
    ranked = []
    for cost, test in sorted(rows):
        name = test.partition("[")[0]
        cases[name] += 1
        ranked.append(((0.01 + cost) * cases[name], test))
    return [test for _, test in sorted(ranked)]


def _within(tests: Sequence[str], seconds: dict[str, float], budget: float) -> list[str]:
    kept, spent = [], 0.0
    for test in tests:
        spent += seconds[test] + 0.01
        if spent > budget and kept:
            break
        kept.append(test)
    return kept
