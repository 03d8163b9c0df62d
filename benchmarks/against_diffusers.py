"""Time guidestar against the same loop written with Diffusers' own parts, in turn, in one process.

    make bench                                          (what the README quotes)
    python benchmarks/against_diffusers.py --rounds 15

Same weights, same starting noise, classifier-free guidance, batch 16, 25 DDIM steps, on the CPU.
Prints the largest difference of the images and the ratio of the median times; then counts what
`cfg(3) + cfg(2, negative=…) + apg(2)` costs, in network rows and in time.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from diffusers import DDIMScheduler, UNet2DModel
from guidestar import Draw, load
from guidestar.model.shipped import SHIPPED
from guidestar.networks.network import Network

BATCH, STEPS, SCALE = 16, 25, 3.0


def diffusers_parts(model):
    """Load the model's folder with Diffusers' own classes."""
    unet = UNet2DModel.from_pretrained(
        SHIPPED / model.name, subfolder="unet", torch_dtype=torch.float32
    ).eval()
    scheduler = DDIMScheduler.from_pretrained(
        SHIPPED / model.name, subfolder="scheduler", timestep_spacing="leading"
    )
    return unet, scheduler


def diffusers_loop(unet, scheduler, cond, null, x, *, steps=STEPS, scale=SCALE):
    """Classifier-free guidance as one writes it with Diffusers: one concatenated batch, no_grad."""
    emb = torch.cat([null, cond])
    scheduler.set_timesteps(steps)
    with torch.no_grad():
        for t in scheduler.timesteps:
            u, c = unet(torch.cat([x, x]), t, class_labels=emb).sample.chunk(2)
            x = scheduler.step(u + scale * (c - u), t, x, eta=0.0).prev_sample
    return x


def timed(function):
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def in_turn(functions, rounds):
    """Run each function once a round, in turn; return median seconds and the last results."""
    for function in functions:
        function()
    runs = [[timed(f) for f in functions] for _ in range(rounds)]
    return [statistics.median(r[i][0] for r in runs) for i in range(len(functions))], [
        r for _, r in runs[-1]
    ]


class Counting(torch.nn.Module):
    """A denoiser that counts the rows it is given."""

    def __init__(self, inner: Network) -> None:
        super().__init__()
        self.inner, self.rows, self.calls = inner, 0, 0

    def forward(self, x, level, cond):
        self.rows += len(x)
        self.calls += 1
        return self.inner(x, level, cond)


def against_diffusers(model, rounds):
    unet, scheduler = diffusers_parts(model)
    names = [model.classes[i % 10] for i in range(BATCH)]
    cond, null = (
        model.encoder.encode(names)["class_labels"],
        model.encoder.null(BATCH)["class_labels"],
    )
    grid = model.grid(STEPS, "leading")
    x = Draw(range(BATCH)).at(-1).normal("start", model.shape) * grid[0].sigma

    def theirs():
        return diffusers_loop(unet, scheduler, cond, null, x)

    def ours():
        return model.sample(
            names,
            guidance=f"cfg({SCALE})",
            seeds=range(BATCH),
            solver="ddim",
            grid="leading",
            steps=STEPS,
        ).x

    (a, b), (x_theirs, x_ours) = in_turn([theirs, ours], rounds)
    print(
        f"Diffusers {a:.3f} s, guidestar {b:.3f} s, ratio {b / a:.3f}; largest difference of the "
        f"images {float((x_theirs - x_ours).abs().max()):.1e}"
    )


def shared_passes(model, rounds):
    names = [model.classes[i % 10] for i in range(BATCH)]
    counting = Counting(model.denoiser)
    model.denoiser = counting
    expressions = [
        f"cfg(3) + cfg(2, negative='{model.classes[0]}') + apg(2)",
        "cfg(3)",
        f"cfg(2, negative='{model.classes[0]}')",
        "apg(2)",
    ]
    rows = []
    for expression in expressions:
        counting.rows = 0
        model.sample(names, guidance=expression, seeds=range(BATCH), steps=1)
        rows.append(counting.rows // BATCH)
    model.denoiser = counting.inner
    times, _ = in_turn(
        [
            lambda e=e: model.sample(names, guidance=e, seeds=range(BATCH), steps=5)
            for e in expressions
        ],
        rounds,
    )
    print(
        f"{expressions[0]}: {rows[0]} passes a step (each alone: "
        f"{' + '.join(map(str, rows[1:]))}), time {times[0] / sum(times[1:]):.2f} of the three "
        "apart"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    model = load("fashion-mnist")
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {arguments.rounds} "
        "rounds in turn, medians"
    )
    against_diffusers(model, arguments.rounds)
    shared_passes(model, arguments.rounds)


if __name__ == "__main__":
    main()
