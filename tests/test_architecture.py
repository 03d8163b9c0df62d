"""The shape of the library, asserted on its syntax trees: who may import whom, and what is never used."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src" / "guidestar"
FILES = sorted(SRC.rglob("*.py"))
BELOW = {
    "levels": set(),
    "draw": set(),
    "prediction": {"levels"},
    "denoiser": {"levels", "prediction"},
    "layers": {"denoiser"},
    "passes": {"levels", "layers", "prediction", "draw", "denoiser"},
    "answers": {"levels", "layers", "prediction", "draw", "denoiser", "passes"},
    "guidance": {"levels", "layers", "prediction", "draw", "denoiser", "passes", "answers"},
    "sampling": {"levels", "prediction", "draw"},
    "data": {"levels", "prediction", "draw", "denoiser", "files"},
    "evaluate": {"levels", "prediction", "draw", "denoiser", "data"},
    "models": {"levels", "layers", "prediction", "draw", "denoiser", "passes", "files"},
}
CORE = ("levels", "layers", "prediction", "draw", "denoiser", "passes", "answers", "guidance", "sampling")
TOP = {"cli", "__main__"}


def room(file: Path) -> str:
    return file.relative_to(SRC).parts[0].removesuffix(".py")


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def module(file: Path) -> tuple[str, ...]:
    parts = file.relative_to(SRC).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def targets(file: Path, node: ast.Import | ast.ImportFrom) -> list[tuple[str, ...]]:
    """Return what is imported: ("guidestar", …) for our own modules, ("torch",) and so on for others."""
    if isinstance(node, ast.Import):
        return [tuple(alias.name.split(".")) for alias in node.names]
    inside = tuple(node.module.split(".")) if node.module else ()
    if not node.level:
        return [(*inside, alias.name) for alias in node.names] if inside[0] == "guidestar" else [inside]
    package = module(file) if file.name == "__init__.py" else module(file)[:-1]
    home = ("guidestar", *package[: len(package) - node.level + 1], *inside)
    return [(*home, alias.name) for alias in node.names]


def imports(file: Path, *, lazy: bool = True) -> list[tuple[str, ...]]:
    body = ast.walk(tree(file)) if lazy else tree(file).body
    return [t for node in body if isinstance(node, ast.Import | ast.ImportFrom) for t in targets(file, node)]


def rooms_of(file: Path) -> set[str]:
    return {t[1] for t in imports(file) if t[0] == "guidestar" and len(t) > 1} - {room(file), "__version__"}


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(SRC)))
def test_imports_run_one_way(file):
    here = room(file)
    if here in BELOW:
        assert rooms_of(file) <= BELOW[here]
    if here not in TOP:
        assert not rooms_of(file) & TOP


def test_every_room_that_is_named_exists():
    assert {room(f) for f in FILES} >= {*BELOW, "cli", "model", "bridge", "train"}


def test_rooms_have_no_cycle():
    graph = {}
    for file in FILES:
        if file != SRC / "__init__.py":
            graph.setdefault(room(file), set()).update(rooms_of(file))
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name not in done:
            for other in graph.get(name, ()):
                visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_files_have_no_cycle():
    files = {module(f): f for f in FILES}
    graph = {}
    for name, file in files.items():
        found = [t[1:] for t in imports(file, lazy=False) if t[0] == "guidestar"]
        graph[name] = {t if t in files else t[:-1] for t in found} - {name, ()}
    done: set[tuple[str, ...]] = set()

    def visit(name: tuple[str, ...], path: tuple[tuple[str, ...], ...]) -> None:
        assert name not in path, " -> ".join(".".join(n) for n in (*path, name))
        if name not in done:
            for other in graph.get(name, ()):
                visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_the_core_imports_torch_jaxtyping_and_the_standard_library_only():
    allowed = {"torch", "jaxtyping", "guidestar"} | sys.stdlib_module_names
    for file in FILES:
        if room(file) in CORE:
            assert {t[0] for t in imports(file)} <= allowed, file


def loaded(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.split()}


def test_importing_guidestar_loads_nothing_heavy():
    assert not loaded("import guidestar; dir(guidestar)") & {"torch", "numpy", "jaxtyping", "diffusers", "transformers", "accelerate", "typer", "PIL"}


def test_guiding_and_sampling_load_torch_and_nothing_above_it():
    found = loaded("import guidestar; guidestar.Guided, guidestar.sample, guidestar.METHODS, guidestar.karras")
    assert "torch" in found and not found & {"diffusers", "transformers", "accelerate", "typer", "rich", "pydantic", "PIL", "safetensors"}


def test_every_name_that_is_promised_has_a_home():
    import guidestar

    for name, dotted in guidestar._HOME.items():
        home = dotted.replace(".", "/")
        file = SRC / f"{home}.py" if (SRC / f"{home}.py").exists() else SRC / home / "__init__.py"
        said = {n.name for n in tree(file).body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
        said |= {a.asname or a.name for n in tree(file).body if isinstance(n, ast.ImportFrom) for a in n.names}
        said |= {x.id for n in ast.walk(tree(file)) if isinstance(n, ast.Assign | ast.AnnAssign) for x in ast.walk(n) if isinstance(x, ast.Name) and isinstance(x.ctx, ast.Store)}
        assert name in said, f"{name} is not in {home}"
    assert guidestar.__all__ == sorted(guidestar._HOME)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        guidestar.nothing  # noqa: B018


def name_of(node: ast.AST) -> str:
    return ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute) else ""


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(SRC)))
def test_nothing_is_evaluated_or_unpickled(file):
    assert not {t[0] for t in imports(file)} & {"marshal", "shelve", "dill", "cloudpickle", "joblib"}
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Attribute) and name_of(node.value) == "pickle":
            assert node.attr == "UnpicklingError", f"line {node.lineno}"  # what torch.load raises
        assert not (isinstance(node, ast.ImportFrom) and node.module == "pickle")
        if isinstance(node, ast.Call):
            called = name_of(node.func)
            assert called not in ("eval", "exec", "compile", "__import__", "os.system"), f"line {node.lineno}"
            assert not any(k.arg == "shell" for k in node.keywords), f"line {node.lineno}"
            if called == "torch.load":
                assert any(k.arg == "weights_only" and getattr(k.value, "value", None) is True for k in node.keywords), f"line {node.lineno}"
            if called.endswith("np.load") or called == "numpy.load":
                assert not any(k.arg == "allow_pickle" and getattr(k.value, "value", None) is not False for k in node.keywords)


def is_abstract(node: ast.ClassDef) -> bool:
    """Whether a class is meant to be subclassed: a protocol, an ABC, one with an abstract method, or a private one without fields."""
    bases = {name_of(b if not isinstance(b, ast.Subscript) else b.value) for b in node.bases}
    decorated = {name_of(d) for f in node.body if isinstance(f, ast.FunctionDef) for d in f.decorator_list}
    mixin = node.name.startswith("_") and not any(isinstance(n, ast.AnnAssign) or getattr(n, "name", "") == "__init__" for n in node.body)
    return bool(bases & {"ABC", "Protocol"} or "abstractmethod" in decorated or mixin)


def test_concrete_classes_are_not_subclassed():
    classes = {n.name: n for f in FILES for n in ast.walk(tree(f)) if isinstance(n, ast.ClassDef)}
    for child in classes.values():
        for base in child.bases:
            parent = classes.get(name_of(base).rpartition(".")[2])
            assert parent is None or is_abstract(parent), f"{child.name} subclasses {name_of(base)}, which is concrete"


def test_every_concrete_class_of_the_core_can_be_made():
    import inspect

    import guidestar
    from guidestar.guidance import Direction, Post
    from guidestar.levels import Schedule
    from guidestar.sampling import SOLVERS, Solver

    for method in (*guidestar.METHODS.values(), *(type(s) if isinstance(s, Solver) else s for s in SOLVERS.values()), guidestar.VP, guidestar.VE, guidestar.Flow):
        assert not inspect.isabstract(method) and not method.__subclasses__()
    assert all(inspect.isabstract(a) for a in (Direction, Post, Schedule, Solver, guidestar.Contrast))


@pytest.mark.parametrize("file", [f for f in FILES if room(f) in CORE], ids=lambda f: str(f.relative_to(SRC)))
def test_data_classes_of_the_core_are_frozen(file):
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for d in node.decorator_list:
                called = name_of(d.func) if isinstance(d, ast.Call) else name_of(d)
                if called == "dataclass":
                    options = {k.arg: getattr(k.value, "value", None) for k in getattr(d, "keywords", [])}
                    assert options.get("frozen"), f"{node.name} is not frozen"
