"""The shape of the library, read from its syntax trees: who imports whom, what is never used."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "guidestar"
FILES = sorted(SRC.rglob("*.py"))
BELOW: dict[str, set[str]] = {
    "io": set(),
    "core": set(),
    "guidance": {"core"},
    "sampling": {"core"},
    "data": {"core", "io", "motion"},
    "motion": {"io"},
    "evaluate": {"core", "data"},
    "networks": {"core", "io"},
    "diffusers": {"core", "guidance", "io", "networks", "sampling"},
    "model": {"core", "diffusers", "guidance", "io", "motion", "networks", "sampling"},
    "checkpoints": {"core", "diffusers", "io", "model", "networks"},
}
BELOW["serve"] = {*BELOW}
BELOW["train"] = {*BELOW, "data", "evaluate"} - {"serve"}
BELOW["apps"] = {*BELOW}
BELOW["cli"] = {*BELOW}
CORE_BELOW: dict[str, set[str]] = {
    "arguments": set(),
    "levels": set(),
    "forms": set(),
    "rng": set(),
    "hooks": set(),
    "prediction": {"levels"},
    "slopes": {"levels"},
    "denoiser": {"hooks", "levels", "prediction"},
    "perturbation": {"denoiser", "hooks", "levels", "prediction", "rng"},
    "passes": {"denoiser", "hooks", "levels", "perturbation", "prediction", "rng"},
    "rounds": {
        *("denoiser", "forms", "hooks", "levels", "passes", "perturbation", "prediction", "rng"),
        "slopes",
    },
}
CORE_BELOW["evaluation"] = {*CORE_BELOW}
TORCH_ALONE = ("core", "guidance", "sampling")
TOP_ENTRIES = 16


def where(file: Path) -> str:
    return str(file.relative_to(SRC))


def module(file: Path) -> tuple[str, ...]:
    parts = file.relative_to(SRC).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def room(file: Path) -> str:
    return file.relative_to(SRC).parts[0].removesuffix(".py")


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def targets(file: Path, node: ast.Import | ast.ImportFrom) -> list[tuple[str, ...]]:
    """Return what is imported: ("guidestar", …) for our own modules, ("torch",) for others."""
    if isinstance(node, ast.Import):
        return [tuple(alias.name.split(".")) for alias in node.names]
    inside = tuple(node.module.split(".")) if node.module else ()
    if not node.level:
        own = inside[0] == "guidestar"
        return [(*inside, alias.name) for alias in node.names] if own else [inside]
    package = module(file) if file.name == "__init__.py" else module(file)[:-1]
    home = ("guidestar", *package[: len(package) - node.level + 1], *inside)
    return [(*home, alias.name) for alias in node.names]


def imports(file: Path, *, lazy: bool = True) -> list[tuple[str, ...]]:
    body: Iterable[ast.AST] = ast.walk(tree(file)) if lazy else tree(file).body
    nodes = (node for node in body if isinstance(node, ast.Import | ast.ImportFrom))
    return [target for node in nodes for target in targets(file, node)]


def own_imports(file: Path, *, lazy: bool = True) -> list[tuple[str, ...]]:
    return [t[1:] for t in imports(file, lazy=lazy) if t[0] == "guidestar" and len(t) > 1]


def find_cycle(graph: Mapping[str, set[str]]) -> tuple[str, ...] | None:
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> tuple[str, ...] | None:
        if name in path:
            return (*path, name)
        if name not in done:
            for other in graph.get(name, ()):
                if cycle := visit(other, (*path, name)):
                    return cycle
            done.add(name)
        return None

    return next((cycle for name in graph if (cycle := visit(name, ()))), None)


def test_imports_run_one_way():
    assert {room(f) for f in FILES} == {*BELOW, "__init__", "__main__"}
    wrong = [
        f"{where(file)} imports {'.'.join(target)}"
        for file in FILES
        if (here := room(file)) in BELOW
        for target in own_imports(file)
        if target[0] not in BELOW[here] | {here, "__version__"}
    ]
    assert not wrong, "\n".join(wrong)


def test_the_modules_of_the_core_import_one_way():
    names = {
        file.relative_to(SRC / "core").parts[0].removesuffix(".py")
        for file in FILES
        if room(file) == "core"
    }
    assert names - {"__init__"} == set(CORE_BELOW)
    wrong = [
        f"{where(file)} imports {'.'.join(target)}"
        for file in FILES
        if room(file) == "core" and len(module(file)) > 1
        for target in own_imports(file)
        if target[1] not in CORE_BELOW[module(file)[1]] | {module(file)[1]}
    ]
    assert not wrong, "\n".join(wrong)


def package(file: Path) -> tuple[str, ...]:
    return module(file) if file.name == "__init__.py" else module(file)[:-1]


def owner(target: tuple[str, ...]) -> tuple[str, ...] | None:
    """Return the package to which a private name of an import belongs; None if none is private."""
    private = [i for i, name in enumerate(target) if name.startswith("_") and "__" not in name]
    if not private:
        return None
    home = SRC.joinpath(*target[: private[0]])
    return target[: private[0]] if home.is_dir() else target[: private[0] - 1]


def test_private_names_stay_in_their_package():
    """``_x`` of one package is not imported by another."""
    wrong = [
        f"{where(file)} imports {'.'.join(target)}"
        for file in FILES
        for target in own_imports(file)
        if (home := owner(target)) is not None and package(file)[: len(home)] != home
    ]
    assert not wrong, "\n".join(wrong)


def test_packages_and_files_have_no_cycle():
    files = {".".join(module(f)): f for f in FILES}
    rooms: dict[str, set[str]] = {}
    graph: dict[str, set[str]] = {}
    for name, file in files.items():
        found = own_imports(file, lazy=False)
        graph[name] = {
            joined if (joined := ".".join(t)) in files else ".".join(t[:-1]) for t in found
        } - {name, ""}
        if name:
            rooms.setdefault(room(file), set()).update(t[0] for t in own_imports(file))
            rooms[room(file)] -= {room(file), "__version__"}
    assert find_cycle(rooms) is None
    assert find_cycle(graph) is None


def test_the_top_floor_is_small():
    python = {"__init__.py", "__init__.pyi", "__main__.py", "py.typed", "__pycache__"}
    entries = {p.name for p in SRC.iterdir()} - python
    assert len(entries) <= TOP_ENTRIES, sorted(entries)


def test_the_core_imports_torch_and_the_standard_library_only():
    allowed = {"torch", "guidestar"} | sys.stdlib_module_names
    wrong = [
        f"{where(file)} imports {'.'.join(target)}"
        for file in FILES
        if room(file) in TORCH_ALONE
        for target in imports(file)
        if target[0] not in allowed
    ]
    assert not wrong, "\n".join(wrong)


def loaded(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*sys.modules)"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.split()}


def test_importing_guidestar_loads_nothing_heavy():
    heavy = {"torch", "numpy", "diffusers", "transformers", "accelerate", "typer", "PIL"}
    assert not loaded("import guidestar; dir(guidestar)") & heavy


def test_guiding_and_sampling_load_torch_and_nothing_above_it():
    names = "guidestar.Guided, guidestar.sample, guidestar.METHODS, guidestar.karras"
    found = loaded(f"import guidestar; {names}")
    above = {"diffusers", "transformers", "accelerate", "typer", "rich", "pydantic", "PIL"}
    assert "torch" in found
    assert not found & {*above, "safetensors"}


def test_every_public_name_has_a_home():
    import guidestar

    for name, dotted in guidestar._HOME.items():
        home = dotted.replace(".", "/")
        file = SRC / f"{home}.py"
        file = file if file.exists() else SRC / home / "__init__.py"
        assert name in set(names_bound_in(file)), f"{name} is not in {home}"
    assert guidestar.__all__ == sorted(guidestar._HOME)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = guidestar.nothing


def names_bound_in(file: Path) -> Iterator[str]:
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        if isinstance(node, ast.ImportFrom):
            yield from (a.asname or a.name for a in node.names)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def name_of(node: ast.AST) -> str:
    return ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute) else ""


def is_true(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


def unsafe(node: ast.AST) -> bool:  # noqa: PLR0911
    """Whether a node evaluates text, unpickles, or runs a shell."""
    if isinstance(node, ast.Attribute) and name_of(node.value) == "pickle":
        return node.attr != "UnpicklingError"  # what torch.load raises
    if isinstance(node, ast.ImportFrom):
        return node.module == "pickle"
    if not isinstance(node, ast.Call):
        return False
    called, given = name_of(node.func), {k.arg: k.value for k in node.keywords}
    if called in ("eval", "exec", "compile", "__import__", "os.system") or "shell" in given:
        return True
    if called == "torch.load":
        return "weights_only" not in given or not is_true(given["weights_only"])
    if called.endswith("np.load") or called == "numpy.load":
        allow = given.get("allow_pickle")
        return allow is not None and not (isinstance(allow, ast.Constant) and allow.value is False)
    return False


def test_nothing_is_evaluated_or_unpickled():
    picklers = {"marshal", "shelve", "dill", "cloudpickle", "joblib"}
    wrong = [where(f) for f in FILES if {t[0] for t in imports(f)} & picklers]
    wrong += [
        f"{where(f)}:{getattr(node, 'lineno', 0)}"
        for f in FILES
        for node in ast.walk(tree(f))
        if unsafe(node)
    ]
    assert not wrong, "\n".join(wrong)


def is_abstract(node: ast.ClassDef) -> bool:
    """Whether a class is meant to be subclassed.

    A protocol, a typed dictionary, an ABC, one with an abstract method, or a private one without
    fields.
    """
    bases = {name_of(b.value if isinstance(b, ast.Subscript) else b) for b in node.bases}
    functions = [f for f in node.body if isinstance(f, ast.FunctionDef)]
    decorated = {name_of(d) for f in functions for d in f.decorator_list}
    stateful = any(
        isinstance(n, ast.AnnAssign) or getattr(n, "name", "") == "__init__" for n in node.body
    )
    mixin = node.name.startswith("_") and not stateful
    return bool(bases & {"ABC", "Protocol", "TypedDict"} or "abstractmethod" in decorated or mixin)


def test_concrete_classes_are_not_subclassed():
    nodes = (n for f in FILES for n in ast.walk(tree(f)))
    classes = {n.name: n for n in nodes if isinstance(n, ast.ClassDef)}
    for child in classes.values():
        for base in child.bases:
            parent = classes.get(name_of(base).rpartition(".")[2])
            message = f"{child.name} subclasses {name_of(base)}, which is concrete"
            assert parent is None or is_abstract(parent), message


def test_every_concrete_class_of_the_core_can_be_made():
    import inspect

    import guidestar
    from guidestar.core.levels import Schedule
    from guidestar.guidance import Direction, Post
    from guidestar.sampling import SOLVERS, Solver

    solvers = [type(s) if isinstance(s, Solver) else s for s in SOLVERS.values()]
    schedules = [guidestar.VP, guidestar.VE, guidestar.Flow]
    for method in (*guidestar.METHODS.values(), *solvers, *schedules):
        assert not inspect.isabstract(method) and not method.__subclasses__()
    abstract = (Direction, Post, Schedule, Solver, guidestar.Contrast)
    assert all(inspect.isabstract(a) for a in abstract)


def is_frozen(decorator: ast.expr) -> bool:
    """Whether a decorator is none of dataclass's, or that of a frozen one."""
    call = decorator if isinstance(decorator, ast.Call) else None
    if name_of(call.func if call else decorator) != "dataclass":
        return True
    return call is not None and any(k.arg == "frozen" and is_true(k.value) for k in call.keywords)


def test_data_classes_of_the_core_are_frozen():
    wrong = [
        f"{where(f)}: {node.name}"
        for f in FILES
        if room(f) in TORCH_ALONE
        for node in ast.walk(tree(f))
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
        if not all(map(is_frozen, node.decorator_list))
    ]
    assert not wrong, "\n".join(wrong)
