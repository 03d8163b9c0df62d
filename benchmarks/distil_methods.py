"""Which method of distillation is best for the same training time?

    python benchmarks/distil_methods.py                  # all; about six minutes of one core each
    python benchmarks/distil_methods.py trajectory-4     # some of them
    python benchmarks/distil_methods.py --print          # the figures that are kept

Each student of Fashion-MNIST is trained by `guidestar distill` in a process of one thread, runs of
the teacher included, and measured on 500 samples (seeds 20,000 to 20,499). Training steps are such
that all take about the same seconds of a core on the machine of the figures. They are kept in
`benchmarks/results/distil_methods.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from guidestar import load
from guidestar.apps.measure import measure
from guidestar.io.images import write_text

KEPT = Path(__file__).parent / "results/distil_methods.json"
SEEDS = range(20_000, 20_500)
RUNS = {"start": 10, "paths": 1536, "first_seed": 0}
RECIPES: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "trajectory-4": ({"method": "trajectory", "steps": 4, **RUNS}, {"steps": 1150}),
    "trajectory-1": (
        {"method": "trajectory", "steps": 1, "before": [2], **RUNS},
        {"steps": 575},
    ),
    "progressive-4": ({"method": "progressive", "start": 16, "steps": 4}, {"steps": 345}),
    "progressive-1": ({"method": "progressive", "start": 16, "steps": 1}, {"steps": 175}),
    "consistency": ({"method": "consistency", "steps": 4}, {"steps": 700}),
    "consistency-8": ({"method": "consistency", "steps": 4, "finest": 8}, {"steps": 560}),
    "meanflow": ({"method": "meanflow", "steps": 4}, {"steps": 550}),
    "meanflow-16": ({"method": "meanflow", "steps": 4, "finest": 16}, {"steps": 520}),
    "half": (
        {"method": "trajectory", "steps": 4, "width": 0.5, **RUNS},
        {"steps": 2400, "rate": 2e-3, "warmup": 100, "decay": 0.995},
    ),
}
"""What is in [student] and in its train, by name."""
SAMPLED = dict.fromkeys(("consistency", "consistency-8", "meanflow", "meanflow-16"), (4, 1))
"""Steps of students that are for several counts."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=list(RECIPES))
    parser.add_argument("--out", type=Path, default=Path("out/distil_methods"))
    parser.add_argument("--print", action="store_true")
    options = parser.parse_args()
    if unknown := [n for n in options.names if n not in RECIPES]:
        parser.error(f"unknown {unknown[0]!r}; there are {', '.join(RECIPES)}")
    for name in [] if options.print else options.names:
        found = student(name, options.out)
        known: dict[str, Any] = json.loads(KEPT.read_text()) if KEPT.exists() else {}
        known[name] = found
        write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", KEPT)
    print(table(json.loads(KEPT.read_text())))


def student(name: str, out: Path) -> dict[str, Any]:
    """Train a student and return its seconds and its figures by steps."""
    home = out / name
    home.mkdir(parents=True, exist_ok=True)
    (home / "recipe.toml").write_text(recipe(name))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "guidestar", "distill", str(home / "recipe.toml")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--out", str(home)], check=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    model, figures = load(home / name), {}
    for steps in SAMPLED.get(name, (int(model.defaults.get("steps", 4)),)):
        *_, row = measure(model, ["cond"], seeds=SEEDS, steps=steps)
        figures[str(steps)] = {k: row[k] for k in ("accuracy", "frechet", "diversity", "seconds")}
    return {"seconds of a core": round(seconds), "figures": figures}


def recipe(name: str) -> str:
    """Return the recipe of a student, as TOML."""
    spec, train = RECIPES[name]
    shared = {"batch": 32, "rate": 6e-4, "warmup": 50, "decay": 0.99, "precision": "bfloat16"}
    lines = [f'name = "{name}"', "[student]", 'teacher = "fashion-mnist"']
    lines += ['guidance = "cfg(2, interval=(0.1, 1))"']
    lines += [f"{key} = {json.dumps(value)}" for key, value in spec.items()]
    lines += ["[student.train]"]
    lines += [f"{key} = {json.dumps(value)}" for key, value in {**shared, **train}.items()]
    return "\n".join(lines) + "\n"


def table(known: dict[str, Any]) -> str:
    """Return the figures as a table in Markdown."""
    lines = [
        "| student | steps | Fréchet | accuracy | seconds of a core |",
        "|---|---|---|---|---|",
    ]
    for name in [n for n in RECIPES if n in known]:
        seconds = known[name]["seconds of a core"]
        for steps, row in known[name]["figures"].items():
            lines.append(
                f"| {name} | {steps} | {row['frechet']:.3f} | {100 * row['accuracy']:.1f} % | "
                f"{seconds} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
