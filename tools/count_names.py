"""List the public names that more than one module of the library defines at its top.

python tools/count_names.py           a line for each name with its modules, and the count
python tools/count_names.py train io  only names that a module of these packages defines

A name that two modules define has two meanings. Imports do not define; neither do names that begin
with an underscore.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

SRC = Path(__file__).parent.parent / "src" / "guidestar"


def defined(statements: Sequence[ast.stmt]) -> Iterator[str]:
    """Yield the names that statements define: classes, functions, assignments."""
    for node in statements:
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                yield name
            case ast.AsyncFunctionDef(name=name):
                yield name
            case ast.Assign(targets=targets):
                for target in targets:
                    yield from (n.id for n in ast.walk(target) if isinstance(n, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name
            case ast.If(body=body, orelse=orelse):
                yield from defined([*body, *orelse])


def twice(root: Path = SRC) -> dict[str, list[str]]:
    """Return the public names that several modules define, each with the modules, as paths."""
    places: defaultdict[str, set[str]] = defaultdict(set)
    for file in sorted(root.rglob("*.py")):
        for name in defined(ast.parse(file.read_text(encoding="utf-8")).body):
            if not name.startswith("_"):
                places[name].add(str(file.relative_to(root)))
    return {name: sorted(found) for name, found in sorted(places.items()) if len(found) > 1}


def main(rooms: Sequence[str]) -> None:
    """Print the names, with their modules."""
    found = {
        name: places
        for name, places in twice().items()
        if not rooms or any(p.split("/")[0] in rooms for p in places)
    }
    for name, places in found.items():
        print(f"{name:24} {'  '.join(places)}")
    print(f"{len(found)} names")


if __name__ == "__main__":
    main(sys.argv[1:])
