"""How near is a student that takes its guidance scale as an input to its teacher at that scale?

    guidestar distill recipes/fashion-mnist-scaled.toml --out out/scaled
    python benchmarks/distil_scale.py out/scaled/fashion-mnist-scaled

Both take 10 steps: the teacher 20 passes with `cfg(w)`, the student 10. Each block is of 1,000
seeds of its own, from 20,000 on; ratios are taken block by block. Figures are kept in
`benchmarks/results/distil_scale.json` as soon as they are known, and a run that was stopped goes on
from there; figures of a student of other weights are thrown away. `--blocks 2` measures fewer
blocks; `--print` measures nothing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distil import mean

from guidestar import Model, load
from guidestar.apps.measure import measure
from guidestar.io.images import write_text
from guidestar.model.binding import find_scale
from guidestar.model.weights import digest_of

KEPT = Path(__file__).parent / "results/distil_scale.json"
FIRST, SIZE, STEPS = 20_000, 1_000, 10

Figures = dict[str, dict[str, dict[str, dict[str, Any]]]]
"""Of each block, scale and model."""


def read(digest: str) -> Figures:
    """Return the figures of the student with these weights."""
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    return kept["blocks"] if kept.get("student") == digest else {}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("student", nargs="?")
    parser.add_argument("--scales", type=float, nargs="*", default=[1.25, 2.0, 4.0])
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--print", action="store_true")
    options = parser.parse_args()
    if not options.print:
        if options.student is None:
            parser.error("name the student's folder, or give --print")
        student, teacher = load(options.student), load("fashion-mnist")
        scale = find_scale(student.denoiser)
        if scale is None:
            parser.error(f"{options.student} takes no scale as an input")
        digest = digest_of(student)
        for block in range(options.blocks):
            for w in options.scales:
                scale.default = w
                measure_block(digest, block, w, "student", student, "cond")
                measure_block(digest, block, w, "teacher", teacher, f"cfg({w:g})")
    print(table(json.loads(KEPT.read_text())["blocks"]))


def measure_block(
    digest: str, block: int, w: float, name: str, model: Model, guidance: str
) -> None:
    """Measure one block of a model at a scale, unless it is known."""
    known = read(digest)
    row = known.setdefault(f"block {block}", {}).setdefault(f"{w:g}", {})
    if name in row:
        return
    seeds = range(FIRST + block * SIZE, FIRST + (block + 1) * SIZE)
    *_, found = measure(model, [guidance], seeds=seeds, steps=STEPS)
    row[name] = {k: found[k] for k in ("accuracy", "frechet", "diversity", "nfe", "seconds")}
    kept = {"student": digest, "blocks": known}
    write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n", KEPT)
    print(f"block {block}  w {w:g}  {name}  {row[name]}", flush=True)


def table(known: Figures) -> str:
    """Return the means over the blocks with their standard errors, as a table in Markdown."""
    lines = [
        "| w | teacher's Fréchet | student's | ratio | accuracy | the student's | blocks |",
        "|---|---|---|---|---|---|---|",
    ]
    for w in sorted({w for block in known.values() for w in block}, key=float):
        blocks = [b[w] for b in known.values() if len(b.get(w, {})) == 2]
        if blocks:
            lines.append(f"| {w} | {' | '.join(cells(blocks))} | {len(blocks)} |")
    return "\n".join(lines)


def cells(blocks: Sequence[dict[str, dict[str, Any]]]) -> tuple[str, ...]:
    """Return the figures of one scale."""
    teacher, student = ([b[name] for b in blocks] for name in ("teacher", "student"))
    ratio = [s["frechet"] / t["frechet"] for s, t in zip(student, teacher, strict=True)]
    distances = (mean([row["frechet"] for row in rows], ".3f") for rows in (teacher, student))
    shares = (
        mean([100 * row["accuracy"] for row in rows], ".1f", " %") for rows in (teacher, student)
    )
    return (*distances, mean(ratio, ".3f", " ×"), *shares)


if __name__ == "__main__":
    main()
