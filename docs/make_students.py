"""Draw a teacher beside its students, from the same seeds: docs/figures/students.png.

python docs/make_students.py "8 steps=FOLDER" "4 steps=fashion-mnist:4-step" "2 steps=FOLDER" …
"""

from __future__ import annotations

import sys
from pathlib import Path

import guidestar as gs
from guidestar.io.images import SheetRow, save_png, sheet

OUT = Path(__file__).parent / "figures"
GUIDANCE, STEPS, SEEDS = "cfg(2, interval=(0.1, 1))", 20, (5000, 5001)


def main() -> None:
    """Draw one row for the teacher, and one for each student that the command names."""
    rows = [row(f"teacher, {STEPS} steps", gs.load("fashion-mnist"), GUIDANCE, STEPS)]
    for text in sys.argv[1:]:
        name, _, folder = text.partition("=")
        rows.append(row(name, gs.load(folder)))
    classes = gs.load("fashion-mnist").classes
    title = f"fashion-mnist, {GUIDANCE}: the same seeds, the teacher above its students"
    save_png(sheet(rows, columns=classes, span=len(SEEDS), title=title), OUT / "students.png")


def row(
    name: str, model: gs.Model, guidance: str | None = None, steps: int | None = None
) -> SheetRow:
    """Return the row of a model at a setting, by default its card's."""
    names = [n for n in model.classes for _ in SEEDS]
    run = model.sample(names, guidance=guidance, steps=steps, seeds=[*SEEDS] * len(model.classes))
    return SheetRow(label=f"{name}\n{run.nfe:g} passes", images=run.pil())


if __name__ == "__main__":
    main()
