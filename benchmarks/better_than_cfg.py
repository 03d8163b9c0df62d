"""Does autoguidance, a guidance interval, or both, beat plain guidance on the shipped Fashion-MNIST
model?

    python benchmarks/better_than_cfg.py

Every side has the same number of settings (`SIDES`), tried on 500 seeds of their own; the
one of the lowest Fréchet distance is then measured on 5 blocks of 1,000 other seeds, the same for
all sides. The difference to plain guidance is taken block by block; it counts from two standard
errors. Figures are kept in `benchmarks/results/better-than-cfg.json` as soon as they are known, and
a run that was stopped goes on from there.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from guidestar import load
from guidestar.apps.measure import REAL, measure
from guidestar.io.images import write_text

KEPT = Path(__file__).parent / "results/better-than-cfg.json"
BLOCKS, SIZE, STEPS, TRIES = 5, 1000, 10, range(20_000, 20_500)

LOW, MIDDLE = (0.1, 1), (0.3, 3)
SIDES: dict[str, list[str]] = {
    "cfg": [f"cfg({s})" for s in (1.05, 1.1, 1.15, 1.2, 1.25, 1.3, 1.4, 1.5)],
    "interval": [f"cfg({s}, interval={i})" for i in (LOW, MIDDLE) for s in (1.25, 1.5, 2, 3)],
    "autoguidance": [f"autoguidance({s})" for s in (1.1, 1.2, 1.3, 1.5, 1.75, 2, 2.5, 3)],
    "both": [f"autoguidance({s}, interval={i})" for i in (LOW, MIDDLE) for s in (1.5, 2, 2.5, 3)],
}
"""The settings of each side."""

Figures = dict[str, Any]


def main() -> None:
    known: Figures = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    run(known, "tried", [e for side in SIDES.values() for e in side], TRIES)
    chosen = {
        name: min(side, key=lambda e: known["tried"][e]["frechet"]) for name, side in SIDES.items()
    }
    for block in range(BLOCKS):
        run(known, f"block {block}", [*chosen.values()], range(block * SIZE, (block + 1) * SIZE))
    for expression in chosen.values():
        print(f"{expression:<36} {verdict(known, expression, chosen['cfg'])}")


def run(known: Figures, part: str, expressions: list[str], seeds: range) -> None:
    """Measure what is not known yet, keeping each figure at once."""
    done = known.setdefault(part, {})
    wanted = [e for e in expressions if e not in done]
    if not wanted:
        return
    for name, row in zip(
        [REAL, *wanted],
        measure(load("fashion-mnist"), wanted, seeds=seeds, steps=STEPS),
        strict=True,
    ):
        done[name] = {k: row[k] for k in ("accuracy", "frechet", "diversity", "nfe", "seconds")}
        write_text(json.dumps(known, indent=1) + "\n", KEPT)
        print(f"{part}  {name:<36} {done[name]}", flush=True)


def verdict(known: Figures, expression: str, plain: str) -> str:
    """Return mean figures over the blocks, and the difference of the distance to plain guidance in
    standard errors.
    """
    blocks = [known[f"block {b}"] for b in range(BLOCKS)]
    row = "  ".join(
        f"{k} {statistics.mean(b[expression][k] for b in blocks):.4f}"
        for k in ("frechet", "accuracy", "diversity", "nfe")
    )
    if expression == plain:
        return row
    differences = [b[expression]["frechet"] - b[plain]["frechet"] for b in blocks]
    mean, error = statistics.mean(differences), statistics.stdev(differences) / BLOCKS**0.5
    says = "no difference" if abs(mean) < 2 * error else "better" if mean < 0 else "worse"
    return (
        f"{row}  difference {mean:+.4f} ± {error:.4f} ({mean / error:+.1f} standard errors): {says}"
    )


if __name__ == "__main__":
    main()
