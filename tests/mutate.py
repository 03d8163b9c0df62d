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
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

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
    "guidance/_perturbed.py": ["test_perturbed.py -k 'pag_and_seg or slg'", "test_perturbed.py"],
    "guidance/_statistics.py": [OF_METHODS.format("apg or rescale or threshold"), LAWS.format("zero_norms or one_number or dtype")],
    "guidance/_steered.py": ["test_training_free.py -k 'dps or lgd or forward or tfg'", "test_training_free.py", "test_model.py -k loss"],
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
    "guidance/operators.py": ["test_posterior.py -k 'operator or pixels'", "test_observing.py"],
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
    "sampling/population.py": ["test_population.py"],
    "sampling/repaint.py": ["test_travel.py"],
    "sampling/travel.py": ["test_travel.py"],
}
"""The tests of each file, to be run one after the other until one fails; METHODS' files also have the laws."""

EQUIVALENT: dict[str, dict[str, str]] = {}
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


def noticed(package: Path, file: str, timeout: float) -> bool:
    """Tell whether any test of a file fails on the package in this folder, or never ends."""
    for arguments in tests_of(file):
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


def run(file: str, *, only: str, timeout: float) -> list[str]:
    """Break a file in every place, and return the mutants that nobody noticed and that do not mean the same."""
    same, survivors = EQUIVALENT.get(file, {}), []
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder)
        # Weights are large, and never change.
        shutil.copytree(SRC, package / "guidestar", ignore=shutil.ignore_patterns("__pycache__", "weights"))
        (package / "guidestar" / "weights").symlink_to(SRC / "weights")
        if noticed(package, file, timeout):
            raise SystemExit(f"{file}: its tests fail as it stands")
        for word, text in mutants(file):
            if only not in word or any(part in word for part in same):
                continue
            (package / "guidestar" / file).write_text(text)
            seen = noticed(package, file, timeout)
            survivors += [] if seen else [word]
            print("noticed " if seen else "SURVIVED", f"{file}: {word}", flush=True)
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
    importlib.import_module("guidestar.models.layers")  # and with it Diffusers' networks, which every child then has
    survivors = {file: run(file, only=given.only, timeout=given.timeout) for file in files}
    print(*(f"{file}: {len(words)} survived" for file, words in survivors.items()), sep="\n")
    sys.exit(bool(sum(map(len, survivors.values()))))


if __name__ == "__main__":
    main()
