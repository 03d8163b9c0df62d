"""What does a student of four steps cost, beside its teacher and Diffusers' own loop?

    python benchmarks/distil_time.py

The same seeds in batches, drawn in turn in one process by the shipped student of
`fashion-mnist` (4 passes), its teacher with plain `cfg(2)` in 20 steps (40), and a loop of
Diffusers' own parts: 25 steps of DDIM with plain guidance on the same weights (50). The order
changes from batch to batch. Prints the seconds of each, and the student's share of the others.
"""

from __future__ import annotations

import argparse

import torch
from against_diffusers import diffusers_loop, diffusers_parts, timed

from guidestar import Draw, load

SCALE = 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=50)
    arguments = parser.parse_args()
    teacher, student = load("fashion-mnist"), load("fashion-mnist", variant="4-step")
    unet, scheduler = diffusers_parts(teacher)
    sigma = float(teacher.grid(25, "leading")[0].sigma)
    totals = dict.fromkeys(("student, 4 steps", "teacher, 20 steps", "Diffusers, DDIM-25"), 0.0)
    for count, rows in enumerate(torch.arange(arguments.samples).split(arguments.batch)):
        seeds = rows.tolist()
        names = [teacher.classes[k % len(teacher.classes)] for k in seeds]
        cond = teacher.encoder.encode(names)["class_labels"]
        null = teacher.encoder.null(len(rows))["class_labels"]
        x = Draw(seeds).at(-1).normal("start", teacher.shape) * sigma
        runs = (
            lambda: student.sample(names, seeds=seeds),
            lambda: teacher.sample(names, seeds=seeds, guidance=f"cfg({SCALE:g})", steps=20),
            lambda: diffusers_loop(unet, scheduler, cond, null, x, steps=25, scale=SCALE),
        )
        if not count:
            for run in runs:
                run()  # once untimed
        for k in range(len(runs)):
            at = (k + count) % len(runs)
            totals[list(totals)[at]] += timed(runs[at])[0]
    own, *others = totals.values()
    for name, seconds in totals.items():
        print(f"{name}: {seconds:.1f} s for {arguments.samples} pictures")
    print(f"the student's share: {own / others[0]:.3f} of its teacher, ", end="")
    print(f"{own / others[1]:.3f} of Diffusers' loop")


if __name__ == "__main__":
    main()
