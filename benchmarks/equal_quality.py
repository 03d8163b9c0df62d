"""Time to equal quality: a setting of 6 evaluations against Diffusers' DDIM-25 with plain guidance.

    python benchmarks/equal_quality.py --scale 1.25

The setting is one that `few_evaluations.py` measured in blocks (``--setting``), or the card's own
(``--setting card``).

The same 1,000 seeds, classes in turn, in batches drawn alternately by Diffusers' own parts and by
guidestar, on the same weights in one process. Prints both Fréchet distances to the test images (in
the judge's features) and the ratio of the times. `--scale` is the scale at which DDIM-25's distance
is lowest, found on other seeds:

    guidestar evaluate fashion-mnist --solver ddim --levels leading --steps 25 --seeds 10000-10499
    \\
        --guidance "cfg(1.25)" --guidance "cfg(1.5)" --guidance "cfg(2)" --guidance "cfg(3)"
"""

from __future__ import annotations

import argparse

import torch
from against_diffusers import diffusers_loop, diffusers_parts, timed
from few_evaluations import read

from guidestar import Draw, load
from guidestar.apps.measure import references, scores
from guidestar.evaluate import run_judge
from guidestar.sampling import write_solver
from guidestar.sampling.geometric import grid_of_ratios


def few(model, name):
    """Return the arguments of a run of a setting of 6 evaluations."""
    found = read()["blocks of 1000"]["6"][name]["setting"]
    return {
        "guidance": found["guidance"],
        "solver": found["solver"],
        "grid": grid_of_ratios(model.schedule, found["levels"]),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--scale", type=float, required=True, help="of Diffusers' classifier-free guidance"
    )
    parser.add_argument("--setting", default="scale 1.9", help="by its name, or card")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=50)
    arguments = parser.parse_args()
    model = load("fashion-mnist")
    setting = {} if arguments.setting == "card" else few(model, arguments.setting)
    unet, scheduler = diffusers_parts(model)
    sigma, totals, images = float(model.grid(25, "leading")[0].sigma), [0.0, 0.0], ([], [])
    wanted = torch.arange(arguments.samples) % len(model.classes)
    for rows in torch.arange(arguments.samples).split(arguments.batch):
        names, seeds = [model.classes[k] for k in wanted[rows].tolist()], rows.tolist()
        cond, null = (
            model.encoder.encode(names)["class_labels"],
            model.encoder.null(len(rows))["class_labels"],
        )
        x = Draw(seeds).at(-1).normal("start", model.shape) * sigma
        runs = (
            lambda: diffusers_loop(
                unet, scheduler, cond, null, x, steps=25, scale=arguments.scale
            ).clamp(-1, 1),
            lambda: model.sample(names, seeds=seeds, **setting).images,
        )
        if not images[0]:
            for run in runs:
                run()  # once untimed
        order = (0, 1) if int(rows[0]) // arguments.batch % 2 else (1, 0)
        for i in order:
            seconds, out = timed(runs[i])
            totals[i] += seconds
            images[i].append(out)
    request, evaluations = model.request(names[0], **setting), model.plan(**setting).nfe
    ours = f"{request.guidance}, {request.levels.steps} steps of {write_solver(request.solver)}"
    reference, floor = references(model)
    print(f"1,000 training images: Fréchet {scores(floor, reference, 10)['frechet']:.3f}")
    for name, out, seconds in zip(
        ("Diffusers DDIM-25", f"{ours} ({evaluations:g} evaluations)"),
        images,
        totals,
        strict=True,
    ):
        row = scores(run_judge(model.judge, torch.cat(out), wanted), reference, len(model.classes))
        print(
            f"{name}: Fréchet {row['frechet']:.3f}, accuracy {row['accuracy']:.2%}, diversity "
            f"{row['diversity']:.3f}, {seconds:.1f} s"
        )
    print(f"ratio of the times: {totals[1] / totals[0]:.3f}")


if __name__ == "__main__":
    main()
