"""The table of every class of pipelines that has a guidance of its own.

    python tests/helpers/zoo/table.py

writes it into docs/diffusers.md.
"""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

HERE = Path(__file__).resolve()
DOCUMENT = HERE.parents[3] / "docs" / "diffusers.md"
MARK = "<!-- every class -->"
_SCALE = re.compile(r"(guidance|cfg)_scale$")
ROOMS = ("images", "stable", "videos", "more", "editing", "texts", "rare", "recent", "guiders")


def find_classes(home: Path) -> dict[str, str]:
    """Return the folder of each class of pipelines below `home` that has a guidance of its own: its
    call takes a guidance scale, by place or by keyword, or it is made with a guider.

    The source is read, as importing all of it takes long. What it calls deprecated is left out.
    """
    found = {}
    for file in sorted(home.rglob("pipeline*.py")):
        folder = file.relative_to(home).parts[0]
        if folder == "deprecated":
            continue
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef) and "Pipeline" in node.name and _is_guided(node):
                found[node.name] = folder
    return found


def _is_guided(node: ast.ClassDef) -> bool:
    """Return whether a class calls a network under guidance."""
    made, called = (_arguments(node, name) for name in ("__init__", "__call__"))
    return bool(called) and ("guider" in made or any(_SCALE.search(name) for name in called))


def _arguments(node: ast.ClassDef, method: str) -> list[str]:
    """Return the names of what a method of a class takes."""
    for part in node.body:
        if isinstance(part, ast.FunctionDef) and part.name == method:
            given = part.args
            return [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return []


@cache
def list_classes() -> dict[str, str]:
    """Return the folder of each such class of the installed Diffusers."""
    import diffusers

    return find_classes(Path(diffusers.__file__).parent / "pipelines")


@cache
def entries() -> dict:
    """Return the small pipelines by class, with their second schedulers."""
    from .base import ENTRIES
    from .schedulers import SECOND

    for room in ROOMS:
        importlib.import_module(f"helpers.zoo.{room}")
    for name, (scheduler, config) in SECOND.items():
        entry = ENTRIES[name]
        assert scheduler not in entry.schedulers, name
        ENTRIES[name] = replace(entry, schedulers={**entry.schedulers, scheduler: config})
    return ENTRIES


def cell(name: str) -> str:
    """Say what becomes of a class."""
    from guidestar.diffusers.guide.kinds import KNOWN_PIPELINES, REFUSED

    from .schedulers import ALONE
    from .untested import UNTESTED

    entry = entries().get(name)
    if name in REFUSED:
        return f"refused: {REFUSED[name]}"
    if entry is None:
        how = "by its record" if name in KNOWN_PIPELINES else "by what is learnt"
        return f"not tested ({how}): {UNTESTED[name]}"
    alone = f" (one scheduler: {ALONE[name]})" if name in ALONE else ""
    return (f"`{entry.guidance}`" if entry.guidance else "no negative pass") + alone


def table() -> str:
    """Write the table."""
    starts = ("`", "no negative", "refused", "not tested")
    kinds = Counter(next(s for s in starts if cell(n).startswith(s)) for n in list_classes())
    equal, without, refused, untested = (kinds[s] for s in starts)
    lines = [
        f"Of {len(list_classes())} classes, {equal} equal the expression that stands "
        f"beside them, {without} make no negative pass (their networks take the scale, or "
        f"are distilled), {refused} are refused and {untested} are not tested.",
        "",
        "| folder | class | its guidance scale 3 is |",
        "|---|---|---|",
    ]
    for name, folder in sorted(list_classes().items(), key=lambda p: (p[1], p[0])):
        lines.append(f"| {folder} | {name} | {cell(name).replace('|', chr(92) + '|')} |")
    return "\n".join(lines)


def main() -> None:
    """Write the table into the document."""
    before, _, after = DOCUMENT.read_text().split(MARK)
    DOCUMENT.write_text(f"{before}{MARK}\n{table()}\n{MARK}{after}")


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parents[2]))
    from helpers.zoo.table import main

    main()
