"""Write `src/guidestar/__init__.pyi` from the table of public names: ``python tools/make_stub.py``.

`guidestar` loads its names when they are used, which a type checker cannot follow. The stub names
each one's home. ``--check`` writes nothing and fails if the stub is out of date (a test does that).
"""

from __future__ import annotations

import sys
from pathlib import Path

import guidestar

STUB = Path(__file__).parents[1] / "src" / "guidestar" / "__init__.pyi"


def text() -> str:
    """Return what the stub should hold."""
    lines = ["# Written by tools/make_stub.py; do not edit.", "from typing import Final", ""]
    for home, names in sorted(guidestar._HOMES.items()):
        lines.append(f"from .{home} import (")
        lines.extend(f"    {name} as {name}," for name in sorted(names))
        lines.append(")")
    everything = "".join(f"    {name!r},\n" for name in guidestar.__all__).replace("'", '"')
    lines += ["", "__version__: Final[str]", f"__all__ = [\n{everything}]"]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the stub, or compare it."""
    if "--check" in sys.argv:
        current = STUB.is_file() and STUB.read_text(encoding="utf-8") == text()
        if not current:
            print(f"{STUB.name} is out of date; run python tools/make_stub.py")
        return 0 if current else 1
    STUB.write_text(text(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
