"""The models that ship with the library; read without torch."""

from __future__ import annotations

import json
from pathlib import Path

SHIPPED = Path(__file__).parent / "weights"


def available() -> dict[str, str]:
    """List the models that ship, with a line on each."""
    found = {}
    for file in sorted(SHIPPED.glob("*/guidestar.json")):
        found[file.parent.name] = str(json.loads(file.read_text(encoding="utf-8")).get("summary", ""))
    return found
