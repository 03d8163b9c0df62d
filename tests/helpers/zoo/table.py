"""The table of every class of pipelines that takes a guidance scale.

    python tests/helpers/zoo/table.py

writes it into docs/diffusers.md.
"""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections import Counter
from functools import cache
from pathlib import Path

HERE = Path(__file__).resolve()
DOCUMENT = HERE.parents[3] / "docs" / "diffusers.md"
MARK = "<!-- every class -->"
_SCALE = re.compile(r"(guidance|cfg)_scale$")
ROOMS = ("images", "stable", "videos", "more", "editing", "texts", "rare", "recent")


@cache
def list_classes() -> dict[str, str]:
    """Return the folder of each class of the installed Diffusers whose call takes a guidance scale.

    Its source is read, as importing all of it takes long. What it calls deprecated is left out.
    """
    import diffusers

    home, found = Path(diffusers.__file__).parent / "pipelines", {}
    for file in sorted(home.rglob("pipeline*.py")):
        folder = file.relative_to(home).parts[0]
        if folder == "deprecated" or "onnx" in file.name:
            continue
        for node in ast.parse(file.read_text()).body:
            if not isinstance(node, ast.ClassDef) or not node.name.endswith("Pipeline"):
                continue
            call = next((f for f in node.body if getattr(f, "name", "") == "__call__"), None)
            if call and any(_SCALE.search(a.arg) for a in call.args.args):  # type: ignore[attr-defined]
                found[node.name] = folder
    return found


@cache
def entries() -> dict:
    """Return the small pipelines by class."""
    from .base import ENTRIES

    for room in ROOMS:
        importlib.import_module(f"helpers.zoo.{room}")
    return ENTRIES


def cell(name: str) -> str:
    """Say what becomes of a class."""
    from guidestar.diffusers.guide.kinds import KNOWN_PIPELINES, REFUSED

    from .untested import UNTESTED

    entry = entries().get(name)
    if name in REFUSED:
        return f"refused: {REFUSED[name]}"
    if entry is None:
        how = "by its record" if name in KNOWN_PIPELINES else "by what is learnt"
        return f"not tested ({how}): {UNTESTED[name]}"
    return f"`{entry.guidance}`" if entry.guidance else "no negative pass"


def table() -> str:
    """Write the table."""
    kinds = Counter(
        "refused" if c.startswith("refused") else "untested" if c.startswith("not tested") else c
        for c in (cell(n) for n in list_classes())
    )
    without = kinds.pop("no negative pass", 0)
    refused, untested = kinds.pop("refused", 0), kinds.pop("untested", 0)
    lines = [
        f"Of {len(list_classes())} classes, {sum(kinds.values())} equal the expression that stands "
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
