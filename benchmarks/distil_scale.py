"""How near is a student that takes its guidance scale as an input to its teacher at that scale?

    guidestar distill recipes/fashion-mnist-scaled.toml --out out/scaled
    python benchmarks/distil_scale.py out/scaled/fashion-mnist-scaled

Both take 10 steps: the teacher 20 passes with `cfg(w)`, the student 10. 500 samples each (seeds
20,000 to 20,499).
"""

from __future__ import annotations

import argparse

from guidestar import load
from guidestar.apps.measure import measure
from guidestar.model.binding import find_scale

SEEDS, STEPS = range(20_000, 20_500), 10


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("student")
    parser.add_argument("--scales", type=float, nargs="*", default=[1.25, 2.0, 4.0])
    options = parser.parse_args()
    student, teacher = load(options.student), load("fashion-mnist")
    scale = find_scale(student.denoiser)
    if scale is None:
        parser.error(f"{options.student} takes no scale as an input")
    for w in options.scales:
        scale.default = w
        rows = {"student": measure(student, ["cond"], seeds=SEEDS, steps=STEPS)}
        rows["teacher"] = measure(teacher, [f"cfg({w:g})"], seeds=SEEDS, steps=STEPS)
        for name, found in rows.items():
            *_, row = found
            kept = {k: row[k] for k in ("accuracy", "frechet", "diversity", "nfe", "seconds")}
            print(f"w {w:g}  {name}  {kept}", flush=True)


if __name__ == "__main__":
    main()
