"""Inverse problems on Fashion-MNIST's test images: training-free guidance against simple baselines.

    python benchmarks/inverse.py

Half of a picture hidden, 4 × down-sampled, blurred; all with noise of deviation 0.05 (pixels lie in
[−1, 1]). The unconditional half of the shipped model is guided towards what was observed; nothing
gets the class. Each method has the same number of settings, tried on 20 images of their own;
the one of the highest PSNR is measured on 500 others. PSNR is the mean over images, with a peak of
2; accuracy is the judge's, of the true class. Figures are kept in
`benchmarks/results/inverse.json`, and a run that was stopped goes on from there. `--write` puts the
table into docs/choosing.md and draws the picture.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from guidestar import Blur, Downsample, Draw, Inpaint, Model, Observation, load
from guidestar.data import fashion_mnist
from guidestar.io.images import SheetRow, save_png, sheet, to_pil, write_text

HOME = Path(__file__).parent
KEPT = HOME / "results/inverse.json"
NOISE, STEPS, BATCH = 0.05, 25, 50
TRIED, MEASURED = slice(5000, 5020), slice(0, 500)
LEFT = torch.cat([torch.ones(28, 14), torch.zeros(28, 14)], dim=1)

PROBLEMS: dict[str, Any] = {
    "right half hidden": Inpaint(mask=LEFT),
    "4 × down-sampled": Downsample(factor=4),
    "blurred": Blur(deviation=1.5),
}

METHODS: dict[str, list[str]] = {
    "dps": ["uncond + dps(1)", "uncond + dps(2)", "uncond + dps(4)", "uncond + dps(8)"],
    "mpgd": ["uncond + mpgd(2)", "uncond + mpgd(5)", "uncond + mpgd(10)", "uncond + mpgd(20)"],
    "tfg": [
        "uncond + tfg(1, variance=1, mean=0.5)",
        "uncond + tfg(1, variance=2, mean=0.5)",
        "uncond + tfg(1, variance=2, mean=1)",
        "uncond + tfg(1, variance=4, mean=1)",
    ],
    "mmps": [
        "uncond + mmps(1)",
        "uncond + mmps(0.8)",
        "uncond + mmps(1, iterations=1)",
        "uncond + mmps(0.8, iterations=1)",
    ],
    "lgd": ["uncond + lgd(1)", "uncond + lgd(3)", "uncond + lgd(10)", "uncond + lgd(30)"],
    "freedom": [
        "uncond + freedom(1)",
        "uncond + freedom(3)",
        "uncond + freedom(10)",
        "uncond + freedom(30)",
    ],
    "ugd": ["uncond + ugd(1)", "uncond + ugd(3)", "uncond + ugd(10)", "uncond + ugd(30)"],
    "pigdm": [
        "uncond + pigdm(0.5)",
        "uncond + pigdm(0.8)",
        "uncond + pigdm(1)",
        "uncond + pigdm(1.2)",
    ],
}
"""Settings of each method; as many for each."""

Figures = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--write", action="store_true", help="only write what is known into the documents"
    )
    arguments = parser.parse_args()
    known: Figures = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    model, (images, labels) = load("fashion-mnist"), fashion_mnist.load_split("test")
    if not arguments.write:
        for problem in PROBLEMS:
            for part, rows in (("tried", TRIED), ("measured", MEASURED)):
                done = known.setdefault(problem, {}).setdefault(part, {})
                wanted = (
                    [e for m in METHODS for e in METHODS[m]]
                    if part == "tried"
                    else list(chosen(known, problem).values())
                )
                measured(problem, part, wanted, done, known, model, images[rows], labels[rows])
    write(known, model, images[:6])


def chosen(known: Figures, problem: str) -> dict[str, str]:
    """Return the best setting of each method."""
    return {
        m: max(settings, key=lambda e: known[problem]["tried"][e]["psnr"])
        for m, settings in METHODS.items()
    }


def measured(
    problem: str,
    part: str,
    wanted: list[str],
    done: Figures,
    known: Figures,
    model: Model,
    x: Tensor,
    labels: Tensor,
) -> None:
    runs: dict[str, Callable[[], Tensor]] = {
        "the picture": lambda: x,
        "baseline": lambda: baseline(problem, observed(problem, x)),
    }
    runs |= {e: lambda e=e: restored(model, problem, e, observed(problem, x)) for e in wanted}
    for name, run in runs.items():
        if name in done:
            continue
        start = time.perf_counter()
        found = run()
        seconds = time.perf_counter() - start
        done[name] = {
            "psnr": psnr(found, x),
            "accuracy": accuracy(model, found, labels),
            "seconds": round(seconds, 1),
        }
        write_text(json.dumps(known, indent=1) + "\n", KEPT)
        print(f"{problem}  {part}  {name:<52} {done[name]}", flush=True)


def observed(problem: str, x: Tensor) -> Tensor:
    """Return ``A x`` with noise, each picture's own."""
    y = PROBLEMS[problem](x)
    noise = NOISE * Draw(list(range(len(x)))).normal_like("observed", y)
    return PROBLEMS[problem](y + noise) if problem == "right half hidden" else y + noise


def baseline(problem: str, y: Tensor) -> Tensor:
    """Return the simple answer: the mean training picture where nothing is seen, bicubic, or what
    was observed.
    """
    if problem == "right half hidden":
        return y + (1 - LEFT) * fashion_mnist.load_split("train")[0].mean(0)
    return (
        F.interpolate(y, scale_factor=4, mode="bicubic").clamp(-1, 1)
        if problem == "4 × down-sampled"
        else y.clamp(-1, 1)
    )


def restored(model: Model, problem: str, guidance: str, y: Tensor) -> Tensor:
    parts = [
        model.sample(
            guidance=guidance,
            seeds=rows,
            losses={"loss": Observation(PROBLEMS[problem], y[rows], noise=NOISE)},
            solver="ddpm",
            steps=STEPS,
        ).images
        for rows in (range(i, min(i + BATCH, len(y))) for i in range(0, len(y), BATCH))
    ]
    return torch.cat(parts)


def psnr(x: Tensor, truth: Tensor) -> float:
    """Return the mean over pictures of ``10 log10(4/mse)``."""
    return round(
        float(
            (10 * torch.log10(4 / ((x - truth) ** 2).flatten(1).mean(1).clamp_min(1e-10))).mean()
        ),
        2,
    )


@torch.inference_mode()
def accuracy(model: Model, x: Tensor, labels: Tensor) -> float:
    return round(float((model.judge(x).argmax(1) == labels).double().mean()), 4)


def write(known: Figures, model: Model, x: Tensor) -> None:
    """Write the table into docs/choosing.md, and draw a few pictures of every problem and
    method.
    """
    lines = ["| problem | method | its best setting | PSNR | accuracy |", "|---|---|---|---|---|"]
    rows = [SheetRow(label="the picture", images=to_pil(x))]
    for problem in [
        p for p in PROBLEMS if len(known.get(p, {}).get("measured", {})) == len(METHODS) + 2
    ]:  # those that are done
        best, y = chosen(known, problem), observed(problem, x)
        lines.append(line(problem, "baseline", "", known[problem]["measured"]["baseline"]))
        lines += [line("", m, f"`{e}`", known[problem]["measured"][e]) for m, e in best.items()]
        shown = F.interpolate(y, size=28) if y.shape[-1] < 28 else y
        rows += [
            SheetRow(label=problem.replace("×", "x"), images=to_pil(shown.clamp(-1, 1))),
            SheetRow(label="baseline", images=to_pil(baseline(problem, y))),
        ]
        rows += [
            SheetRow(label=m, images=to_pil(restored(model, problem, e, y)))
            for m, e in best.items()
        ]
    save_png(
        sheet(rows, title="Restored from what was observed", scale=2),
        HOME.parent / "docs/figures/inverse.png",
    )
    document = HOME.parent / "docs/choosing.md"
    text = document.read_text()
    before, after = text.split("<!-- inverse -->")[0], text.split("<!-- end of inverse -->")[1]
    write_text(
        f"{before}<!-- inverse -->\n" + "\n".join(lines) + f"\n<!-- end of inverse -->{after}",
        document,
    )


def line(problem: str, method: str, setting: str, row: Figures) -> str:
    return f"| {problem} | {method} | {setting} | {row['psnr']:.2f} dB | {row['accuracy']:.1%} |"


if __name__ == "__main__":
    main()
