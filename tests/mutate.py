"""Break a method's formula in one place at a time, and see whether its tests notice.

    python tests/mutate.py                       every mutant of every file with a formula in it
    python tests/mutate.py tcfg posterior        those of the files that these methods (or files) are
    python tests/mutate.py --list                how many mutants each file has
    python tests/mutate.py dps --only displacing those whose description has this in it

Mutants: + ↔ −, * ↔ /, a sign dropped, a square not taken, > ↔ <=, 0 ↔ 1, True ↔ False as an answer, t ↔ s, alpha ↔ sigma,
x0 ↔ eps, good ↔ bad and the like. Each is tried on the tests that belong to its file, the quickest first and at last
the laws of all methods. A mutant that no test fails on has survived: either a test is missing, or the mutant means
the same; those are in EQUIVALENT, with the reason.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib
import inspect
import multiprocessing
import os
import shlex
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from _pytest.main import pytest_runtestloop

from guidestar import METHODS

TESTS = Path(__file__).parent
SRC = TESTS.parent / "src" / "guidestar"
OPERATORS: dict[type, type] = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}
COMPARED: dict[type, type] = {ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is}
NAMES = {"good": "bad", "bad": "good", "c": "u", "u": "c", "COND": "NULL", "both": "image", "low": "high"}
PAIRS = ("t s", "alpha sigma", "x0 eps", "transition_variance posterior_variance", "value key")
ATTRIBUTES = {a: b for pair in map(str.split, PAIRS) for a, b in (pair, pair[::-1])}
SKIPPED = {"__post_init__", "bind", "__str__", "_check"}
"""What these do is refuse and write, which is not the formula."""

OF_METHODS = "test_methods.py -k '{}'"
LAWS = "test_guidance_laws.py -k '{}'"
TESTED: dict[str, Sequence[str]] = {
    "guidance/_blur.py": ["test_perturbed.py -k 'sag_everywhere or mean_query'", "test_perturbed.py -k 'sag or seg'"],
    "guidance/_climbing.py": [OF_METHODS.format("classifier"), "test_clip_guidance.py"],
    "guidance/_conditioned.py": [OF_METHODS.format("cfg and not cfgpp"), "test_tcfg.py", LAWS.format("cfg or tcfg or mambo")],
    "guidance/_perturbed.py": ["test_perturbed.py -k 'pag_and_seg or slg'", "test_perturbed.py"],
    "guidance/_statistics.py": [OF_METHODS.format("apg or rescale or threshold"), LAWS.format("zero_norms or one_number or dtype")],
    "guidance/_steered.py": ["test_training_free.py -k 'dps or lgd or forward or tfg'", "test_training_free.py", "test_observing.py -k library"],
    "guidance/adaptive.py": ["test_adaptive.py"],
    "guidance/apg.py": [OF_METHODS.format("apg")],
    "guidance/autoguidance.py": ["test_autoguidance.py"],
    "guidance/cads.py": ["test_cads.py"],
    "guidance/cfg.py": [OF_METHODS.format("cfg and not cfgpp")],
    "guidance/cfg_zero.py": ["test_cfg_zero.py"],
    "guidance/cfgpp.py": [OF_METHODS.format("cfgpp")],
    "guidance/classifier.py": [OF_METHODS.format("classifier")],
    "guidance/clip.py": ["test_clip_guidance.py"],
    "guidance/compose.py": [OF_METHODS.format("and_not"), OF_METHODS.format("bases")],
    "guidance/discriminator.py": ["test_training_free.py -k discriminator", "test_training_free.py"],
    "guidance/dps.py": ["test_training_free.py -k dps", "test_training_free.py"],
    "guidance/fdg.py": ["test_fdg.py"],
    "guidance/freedom.py": ["test_training_free.py -k freedom", "test_training_free.py"],
    "guidance/icg.py": ["test_icg.py"],
    "guidance/lgd.py": ["test_training_free.py -k lgd", "test_training_free.py"],
    "guidance/losses.py": ["test_training_free.py", "test_posterior.py"],
    "guidance/mambo.py": ["test_mambo.py"],
    "guidance/mpgd.py": ["test_training_free.py -k mpgd", "test_training_free.py"],
    "guidance/nag.py": ["test_perturbed.py -k 'nag and not network'", "test_perturbed.py -k nag"],
    "guidance/operators.py": ["test_posterior.py -k 'operator or pixels or squares or mask'", "test_observing.py -k library"],
    "guidance/pag.py": ["test_perturbed.py -k pag", "test_perturbed.py", "test_layers.py"],
    "guidance/perp_neg.py": ["test_perp_neg.py"],
    "guidance/pix2pix.py": ["test_pix2pix.py"],
    "guidance/posterior.py": ["test_posterior.py -k 'posterior or pigdm or pixels or conjugate'", "test_posterior.py"],
    "guidance/posts.py": [OF_METHODS.format("rescale or threshold or clip or posts")],
    "guidance/sag.py": ["test_perturbed.py -k 'sag and not network'", "test_perturbed.py -k 'sag or look'"],
    "guidance/seg.py": ["test_perturbed.py -k 'pag_and_seg'", "test_perturbed.py", "test_layers.py"],
    "guidance/slg.py": ["test_perturbed.py -k slg"],
    "guidance/tcfg.py": ["test_tcfg.py"],
    "guidance/tfg.py": ["test_training_free.py -k 'tfg or course'", "test_training_free.py"],
    "guidance/tsg.py": ["test_tsg.py"],
    "guidance/ugd.py": ["test_training_free.py -k 'universal or ugd'", "test_training_free.py"],
    "guidance/weights.py": [OF_METHODS.format("interval or schedule or linear"), "test_expression.py", OF_METHODS.format("")],
    "answers.py": ["test_passes.py", "test_layers.py -k 'seen or one_call'", "test_tsg.py", "test_cads.py", "test_perturbed.py -k 'sag or look'"],
    "layers.py": ["test_layers.py -k 'one_call or look or rows'", "test_layers.py -k 'text_stream or joint or blur'"],
    "models/joint.py": ["test_joint.py"],
    "sampling/population.py": ["test_population.py"],
    "sampling/repaint.py": ["test_travel.py"],
    "sampling/travel.py": ["test_travel.py"],
}
"""The tests of each file, to be run one after the other until one fails; METHODS' files also have the laws."""

EQUIVALENT: dict[str, dict[str, str]] = {
    "answers.py": {
        "number: 1  ->  0   in   x = torch.cat": "what is joined of one part is that part",
        "out.x0  ->  out.eps   in   x0 = out.x0": "both have the samples' shape",
        "number: 1  ->  0   in   return -(-len(x)": "one call of all rows is what no limit means",
        "prediction.x0  ->  prediction.eps": "what a network returns is linked: both are finite, or neither",
    },
    "layers.py": {
        "number: 1  ->  0   in   return (torch.cat": "what is joined of one part is that part",
        "number: 0  ->  1   in   for attend": "a change of all rows is the only one",
    },
    "sampling/population.py": {"number: 0.0  ->  1.0   in   self.log = ": "only differences of log-weights within a sample count"},
    "guidance/posterior.py": {
        "number: 1  ->  0   in   carried = ": "what is differentiated is summed over everything in any case",
        "number: 1.0  ->  0.0   in   step = ": "a quotient that is not taken, and that no gradient passes",
        "number: 1.0  ->  0.0   in   p = r": "the same",
        "number: 0.0  ->  1.0   in   p = r": "a sample that does not go on takes no step in any direction",
    },
    "guidance/_blur.py": {"[:, None] + offsets  ->  ": "the kernel is symmetric"},
    "guidance/adaptive.py": {
        "c  ->  u   in   looks = ": "both are of one length, shape and dtype",
        "c  ->  u   in   done = ": "the same",
    },
    "guidance/cfg_zero.py": {"good  ->  bad   in   return (good.to_x0": "both are at one place and level"},
    "guidance/weights.py": {"number: 0  ->  1   in   return float(weight) if getattr": "a plain number is one already"},
    "models/joint.py": {"number: 1  ->  0   in   return self.found[-1]": "one is kept at a time"},
    "guidance/mambo.py": {"c  ->  u   in   limits = ": "both are of one dtype"},
    "guidance/pag.py": {"a.value  ->  a.key": "keys and values have one shape"},
    "guidance/tcfg.py": {"good  ->  bad   in   return (good.to_x0": "both are at one place and level"},
    "guidance/tfg.py": {
        "kept * 0 + 1.0  ->  kept * 0 - 1.0": "a course is divided by its mean",
        "number: 0  ->  1   in   for _ in range(self.iterations if self.mean else 0)": "a step of size 0",
    },
}
"""By file, what a mutant's description has in it, and why it means the same."""

Change = Callable[[ast.AST], None]


def file_of(name: str) -> str:
    """Return the file that a method, or a file's stem, names."""
    if name in METHODS:
        return str(Path(inspect.getfile(METHODS[name])).relative_to(SRC))
    return next((file for file in TESTED if Path(file).stem == name), "")


def changes(node: ast.AST) -> Iterator[tuple[str, Change]]:
    """Yield the ways to break one node, each with a word on it."""
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        yield "operator", lambda n: setattr(n, "op", OPERATORS[type(n.op)]())
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        yield "power", lambda n: setattr(n, "right", ast.Constant(1))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield "sign", lambda n: setattr(n, "op", ast.UAdd())
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARED:
        yield "comparison", lambda n: setattr(n, "ops", [COMPARED[type(n.ops[0])](), *n.ops[1:]])
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float) and node.value in (0, 1):
        yield "number", lambda n: setattr(n, "value", type(n.value)(1 - n.value))
    elif isinstance(node, ast.Return) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, bool):
        yield "answer", lambda n: setattr(n.value, "value", not n.value.value)
    elif isinstance(node, ast.ClassDef) and {"good", "bad"} <= {f.name for f in node.body if isinstance(f, ast.FunctionDef)}:
        yield "good and bad swapped", _swap
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in NAMES:
        yield "name", lambda n: setattr(n, "id", NAMES[n.id])
    elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and node.attr in ATTRIBUTES:
        yield "subscript", lambda n: setattr(n, "attr", ATTRIBUTES[n.attr])


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


def mutants(file: str) -> Iterator[tuple[str, str]]:
    """Yield a description of each mutant of a file, and its text."""
    tree = ast.parse((SRC / file).read_text())
    nodes = list(ast.walk(tree))
    for i in formula(tree):
        for word, change in changes(nodes[i]):
            broken = copy.deepcopy(tree)
            node = list(ast.walk(broken))[i]
            statement = min((n for n in nodes if isinstance(n, ast.stmt) and n.lineno <= node.lineno <= (n.end_lineno or 0)), key=lambda n: (n.end_lineno or 0) - n.lineno)  # type: ignore[attr-defined]
            before, where = ast.unparse(node).splitlines()[0], ast.unparse(statement).splitlines()[0]
            change(node)
            yield f"line {node.lineno}, {word}: {before}  ->  {ast.unparse(node).splitlines()[0]}   in   {where}", ast.unparse(ast.fix_missing_locations(broken))  # type: ignore[attr-defined]


def tests_of(file: str) -> list[list[str]]:
    """Return pytest's arguments, stage by stage."""
    names = [name for name, method in METHODS.items() if Path(inspect.getfile(method)) == SRC / file]
    stages = [*TESTED[file], *([LAWS.format(" or ".join(names))] if names else [])]
    return [[str(TESTS / first), *rest] for first, *rest in map(shlex.split, stages)]


class Trying:
    """A pytest plugin: in place of running what was collected once, it runs that once for each mutant, in a fork."""

    def __init__(self, file: str, tried: Sequence[tuple[str, str]], timeout: float) -> None:
        self.file, self.tried, self.timeout = file, tried, timeout
        self.survivors: list[tuple[str, str]] = []

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        for word, text in self.tried:
            child = multiprocessing.get_context("fork").Process(target=self._run, args=(session, text))
            child.start()
            child.join(self.timeout)
            if child.is_alive():  # it never ends: that is noticed
                child.kill()
            elif not child.exitcode:
                self.survivors.append((word, text))
        return True

    def _run(self, session: pytest.Session, text: str) -> None:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
            try:
                _become(self.file, text)
                pytest_runtestloop(session)
            except BaseException:
                os._exit(1)
            os._exit(bool(session.testsfailed))


def unnoticed(file: str, tried: Sequence[tuple[str, str]], timeout: float) -> list[tuple[str, str]]:
    """Return those mutants (a description and a text of the file each) on which no test of the file fails."""
    for arguments in tests_of(file):
        trying = Trying(file, tried, timeout)
        if pytest.main([*QUIET, "-x", *arguments], plugins=[trying]) or not tried:
            break
        tried = trying.survivors
    return list(tried)


QUIET = ("-q", "-s", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning", "--no-header", "--no-summary")


def _become(file: str, text: str) -> None:
    """Put the code of a changed file into the functions that everyone has already."""
    module, known = importlib.import_module("guidestar." + file.removesuffix(".py").replace("/", ".")), dict(METHODS)
    scratch = types.ModuleType(module.__name__)
    scratch.__dict__.update(__package__=module.__package__, __file__=module.__file__)
    sys.modules[module.__name__] = scratch  # where dataclasses look for the names of their annotations
    exec(compile(text, file, "exec"), scratch.__dict__)
    sys.modules[module.__name__] = module
    METHODS.update(known)
    _graft(vars(module), vars(scratch), module)


def _graft(old: Mapping[str, Any], new: Mapping[str, Any], owner: Any) -> None:
    for name, value in new.items():
        mine = old.get(name)
        if isinstance(value, type) and value.__module__ == (owner.__name__ if isinstance(owner, types.ModuleType) else owner.__module__):
            _graft(vars(mine), vars(value), mine)  # type: ignore[arg-type]
        elif isinstance(value, int | float | bool) and not name.startswith("__") and isinstance(owner, type):
            setattr(owner, name, value)
        elif (code := getattr(_function(value), "__code__", None)) and code.co_filename in TESTED:
            _function(mine).__code__ = code  # type: ignore[attr-defined]


def _function(value: Any) -> Any:
    """Return the function within a property, a cache or another wrapper."""
    return (
        inspect.unwrap(value.fget if isinstance(value, property) else getattr(value, "__func__", value))
        if callable(value) or isinstance(value, property | staticmethod | classmethod)
        else None
    )


def run(file: str, *, only: str, timeout: float) -> list[str]:
    """Break a file in every place, and return the mutants that nobody noticed and that do not mean the same."""
    same = EQUIVALENT.get(file, {})
    if not unnoticed(file, [("as it stands", ast.unparse(ast.parse((SRC / file).read_text())))], timeout):
        return ["its tests fail as it stands"]
    tried = [(word, text) for word, text in mutants(file) if only in word and not any(part in word for part in same)]
    survivors = [word for word, _ in unnoticed(file, tried, timeout)]
    print(f"{file}: {len(tried)} tried, {len(survivors)} survived", *survivors, sep="\n  ", flush=True)
    return survivors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"methods, or {', '.join(Path(f).stem for f in TESTED)}")
    parser.add_argument("--only", default="", help="only the mutants whose description has this in it")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for the tests of one mutant")
    parser.add_argument("--list", action="store_true", help="only count the mutants")
    given = parser.parse_args()
    if unknown := [name for name in given.names if not file_of(name)]:
        parser.error(f"unknown: {', '.join(unknown)}")
    files = list(dict.fromkeys(map(file_of, given.names))) or list(TESTED)
    if given.list:
        for file in files:
            print(f"{file}  {len(list(mutants(file)))} mutants, of which {len(EQUIVALENT.get(file, {}))} are known to mean the same")
        return
    os.chdir(TESTS.parent)
    survivors = {file: run(file, only=given.only, timeout=given.timeout) for file in files}
    sys.exit(bool(sum(map(len, survivors.values()))))


if __name__ == "__main__":
    main()
