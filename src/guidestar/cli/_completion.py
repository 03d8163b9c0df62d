"""Complete the names of models, methods, solvers and grids in a shell.

A shell waits for each answer, and torch takes seconds to import. So names are read from the source
files in which they are registered, without running these.
"""

from __future__ import annotations

import re
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
_METHOD = re.compile(r"^@register\n.*?^    name = \"(\w+)\"", re.MULTILINE | re.DOTALL)
_SOLVER = re.compile(
    r"^class (\w+)\((?:(?!^class ).)*?^    name = \"([\w-]+)\"", re.MULTILINE | re.DOTALL
)
_LISTED = re.compile(r"for \w+ in \(([\w,\s]+)\)\s*\}")


def model_names(incomplete: str) -> list[str]:
    """Complete the name of a model that ships."""
    from ..model.shipped import available

    return _starting(incomplete, list(available()))


def method_names(incomplete: str) -> list[str]:
    """Complete the name of a method."""
    return _starting(incomplete, registered_methods())


def solver_names(incomplete: str) -> list[str]:
    """Complete the name of a solver."""
    return _starting(incomplete, registered_solvers())


def grid_names(incomplete: str) -> list[str]:
    """Complete the name of a grid."""
    return _starting(incomplete, registered_grids())


def registered_methods() -> list[str]:
    """List the methods, as `METHODS` does."""
    files = sorted((_PACKAGE / "guidance" / "methods").glob("*.py"))
    return sorted(name for file in files for name in _METHOD.findall(_source(file)))


def registered_solvers() -> list[str]:
    """List the solvers, as `SOLVERS` does."""
    files = (_PACKAGE / "sampling").glob("*.py")
    names = dict(pair for file in files for pair in _SOLVER.findall(_source(file)))
    return [names[solver] for solver in _listed(_PACKAGE / "sampling" / "names.py")]


def registered_grids() -> list[str]:
    """List the grids, as `GRIDS` does."""
    return _listed(_PACKAGE / "sampling" / "grids.py")


def _listed(file: Path) -> list[str]:
    """Return what a table of names in a source file is made of."""
    found = _LISTED.search(_source(file))
    words = found[1].split(",") if found else []
    return [word.strip() for word in words if word.strip()]


def _source(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def _starting(incomplete: str, names: list[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
