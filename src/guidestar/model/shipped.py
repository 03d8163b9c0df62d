"""The models that ship with the library; read without torch."""

from __future__ import annotations

from pathlib import Path

from ..io.documents import read_json

SHIPPED = Path(__file__).parents[1] / "assets"
NAME = "guidestar.json"


def home_of(name: str | Path) -> Path:
    """Return the folder of a model that ships, or else the path ``name``."""
    return SHIPPED / name if str(name) in available() else Path(name)


def available() -> dict[str, str]:
    """List the models that ship, with a line on each."""
    found = {}
    for file in sorted(SHIPPED.glob(f"*/{NAME}")):
        found[file.parent.name] = str(read_json(file).get("summary", ""))
    return found
