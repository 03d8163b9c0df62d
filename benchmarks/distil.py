"""How good are the students of the shipped Fashion-MNIST model?

    python benchmarks/distil.py NAME=FOLDER …        # students by any name; a shipped one:
    python benchmarks/distil.py 4-step=fashion-mnist:4-step

The teacher at its card's best setting (10 steps) and each student at its own are measured on blocks
of 1,000 seeds from 5,000 on, which no setting was chosen on and no run of a training started from.
Ratios to the teacher are taken block by block. Figures are kept in
`benchmarks/results/distil.json` as soon as they are known, and a run that was stopped goes on from
there. `--blocks 3` measures fewer blocks; `--print` measures nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from guidestar import load
from guidestar.apps.measure import measure
from guidestar.io.images import write_text

KEPT = Path(__file__).parent / "results/distil.json"
GUIDANCE, STEPS, FIRST, SIZE = "cfg(2, interval=(0.1, 1))", 10, 5_000, 1_000
TEACHER = f"teacher, {STEPS} steps"

Figures = dict[str, dict[str, dict[str, Any]]]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("students", nargs="*")
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--print", action="store_true")
    options = parser.parse_args()
    if not options.print:
        measured: list[tuple[str, str, str, int | None]] = [
            (TEACHER, "fashion-mnist", GUIDANCE, STEPS)
        ]
        for text in options.students:
            name, _, folder = text.partition("=")
            measured.append((name, folder, "cond", None))
        for block in range(options.blocks):
            for row in measured:
                measure_block(block, *row)
    print(table(json.loads(KEPT.read_text())))


def measure_block(block: int, name: str, model: str, guidance: str, steps: int | None) -> None:
    """Measure one block of a model, unless it is known."""
    known: Figures = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    if name in known.get(f"block {block}", {}):
        return
    seeds = range(FIRST + block * SIZE, FIRST + (block + 1) * SIZE)
    *_, row = measure(load(model), [guidance], seeds=seeds, steps=steps)
    kept = {k: row[k] for k in ("accuracy", "frechet", "diversity", "nfe", "seconds")}
    known = json.loads(KEPT.read_text()) if KEPT.exists() else {}  # others may measure beside it
    known.setdefault(f"block {block}", {})[name] = kept
    write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", KEPT)
    print(f"block {block}  {name:<24} {kept}", flush=True)


def table(known: Figures) -> str:
    """Return the means over the blocks with their standard errors, as a table in Markdown."""
    lines = [
        "| | Fréchet | to the teacher's | accuracy | to the teacher's | diversity | passes | "
        "blocks |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(n for block in known.values() for n in block):
        blocks = [b for b in known.values() if name in b and TEACHER in b]
        if not blocks:
            continue
        own, teacher = ([b[n] for b in blocks] for n in (name, TEACHER))
        ratio = [a["frechet"] / b["frechet"] for a, b in zip(own, teacher, strict=True)]
        points = [100 * (a["accuracy"] - b["accuracy"]) for a, b in zip(own, teacher, strict=True)]
        cells = (
            name,
            mean([a["frechet"] for a in own], ".4f"),
            mean(ratio, ".2f", " ×"),
            mean([100 * a["accuracy"] for a in own], ".1f", " %"),
            mean(points, "+.1f", " points"),
            mean([a["diversity"] for a in own], ".3f"),
            f"{own[0]['nfe']:g}",
            str(len(blocks)),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def mean(values: Sequence[float], form: str, unit: str = "") -> str:
    """Return a mean with its standard error."""
    if len(values) < 2:
        return f"{values[0]:{form}}{unit}"
    error = statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values):{form}}{unit} ± {error:{form.lstrip('+')}}"


if __name__ == "__main__":
    main()
