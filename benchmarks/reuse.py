"""What reuse of pushes costs: `every=`, `reuse=`, `carry=` and `extrapolate=` against plain cfg.

    python benchmarks/reuse.py --model fashion-mnist --scale 1.5 --samples 1000
    python benchmarks/reuse.py --model emoji --scale 4 --samples 100

Plain `cfg` of 20 steps, the same with pushes carried over, and plain `cfg` of as few steps as cost
the same: the same seeds for all. For each the evaluations by those of plain `cfg`; the quality of
each sample less that of plain `cfg`'s, mean and standard error (the judge's probability of the
right class; of a text model the cosine between picture and caption by its measuring CLIP); how far
the samples are from plain `cfg`'s (root mean square, of pictures in [−1, 1]); and the Fréchet
distance, of a class model. Figures are kept in `benchmarks/results/reuse-MODEL.json`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guidestar import Model, load
from guidestar.apps.measure import references, scores
from guidestar.evaluate import JudgeOutput, run_judge
from guidestar.io.images import write_text
from guidestar.model.protocols import TextJudge

RESULTS = Path(__file__).parent / "results"
STEPS = 20
REUSES = (
    "every=3",
    "every=3, carry='eps'",
    "every=3, carry='x0'",
    "every=3, extrapolate=True",
    "every=2",
    "every=4",
    "reuse=0.1",
    "reuse=0.3",
    "reuse=1",
)
FEWER = (14,)
"""Steps of plain cfg that cost 0.7 of 20."""


def draw(
    model: Model, guidance: str, steps: int, names: list[str], first: int, batch: int
) -> tuple[Tensor, float]:
    """Draw one sample a name; return images and evaluations a sample."""
    drawn, nfe = [], 0.0
    for rows in torch.arange(len(names)).split(batch):
        run = model.sample(
            [names[i] for i in rows.tolist()],
            seeds=[first + i for i in rows.tolist()],
            guidance=guidance,
            steps=steps,
            solver="dpmpp-2m",
            grid="log_snr",
        )
        drawn.append(run.images)
        nfe += run.nfe * len(rows) / len(names)
    return torch.cat(drawn), nfe


def quality(
    model: Model, images: Tensor, names: list[str], reference: JudgeOutput | None
) -> tuple[Tensor, dict[str, float]]:
    """Return one number a sample, and figures of all (a distance only to a reference)."""
    if isinstance(model.judge, TextJudge):
        captions = model.judge.embed_captions(names)
        return (model.judge.embed_image(images) * captions).sum(1).double(), {}
    wanted = torch.tensor([model.classes.index(n) for n in names])
    judged = run_judge(model.need_judge(), images, wanted)
    sure = judged.logits.softmax(-1)[torch.arange(len(names)), wanted].double()
    if reference is None:
        return sure, {"accuracy": round(float((judged.predicted == wanted).double().mean()), 4)}
    found = scores(judged, reference, len(model.classes))
    return sure, {k: float(found[k]) for k in ("frechet", "accuracy")}


def names_of(model: Model, count: int) -> list[str]:
    """Name the classes in turn, or ``count`` captions from all parts of the card's list."""
    known = list(model.classes or model.card["captions"])
    stride = 1 if model.classes else max(1, len(known) // count)
    return [known[i * stride % len(known)] for i in range(count)]


def compare(images: Tensor, each: Tensor, first: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Return the mean quality, and what changed against the images and qualities of ``first``."""
    change = each - first[1]
    return {
        "quality": round(float(each.mean()), 5),
        "change": round(float(change.mean()), 5),
        "error": round(float(change.std() / len(change) ** 0.5), 5),
        "rms": round(float((images - first[0]).square().mean().sqrt()), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="fashion-mnist")
    parser.add_argument("--scale", type=float, required=True)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of the first sample")
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--only", action="append", help="settings of reuse; all by default")
    arguments = parser.parse_args()
    model = load(arguments.model)
    names = names_of(model, arguments.samples)
    reference = references(model)[0] if model.classes else None
    runs = [("", STEPS), *((f", {r}", STEPS) for r in arguments.only or REUSES)]
    runs += [("", n) for n in FEWER]
    rows: list[dict[str, Any]] = []
    first = None
    for more, steps in runs:
        guidance = f"cfg({arguments.scale:g}{more})"
        with torch.inference_mode():
            images, nfe = draw(model, guidance, steps, names, arguments.seed, arguments.batch)
            each, figures = quality(model, images, names, reference)
        first = first or (images, each)
        rows.append(
            {
                "guidance": guidance,
                "steps": steps,
                "nfe": round(nfe, 3),
                "share": round(nfe / (2 * STEPS), 4),
                **compare(images, each, first),
                **figures,
            }
        )
        print(json.dumps(rows[-1]), flush=True)
        kept = {"samples": arguments.samples, "seed": arguments.seed, "rows": rows}
        write_text(json.dumps(kept, indent=1) + "\n", RESULTS / f"reuse-{arguments.model}.json")


if __name__ == "__main__":
    main()
