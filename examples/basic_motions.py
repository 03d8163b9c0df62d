"""Motion, not pictures: train on real recordings of four activities, guide by class, and let an
independent classifier judge.

    pip install 'guidestar[examples]'
    python examples/basic_motions.py --out out/motions

BasicMotions (Keogh et al., in the UCR/UEA archive; it ships inside the package `aeon`, BSD
licence): a watch's accelerometer and gyroscope, 6 channels × 100 steps, 40 + 40 recordings of
standing, walking, running and playing badminton. The model learns from the first 40. The judge is
scikit-learn's logistic regression on each channel's mean, spread and spectrum, fitted to the
*other* 40: it has seen neither the model nor its data.
"""

from __future__ import annotations

import argparse
import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import guidestar
from guidestar.io.images import SheetRow, save_png, sheet, to_drawings
from guidestar.train.export import assemble
from guidestar.train.progress import progress_report
from guidestar.train.recipe import schema as recipes
from guidestar.train.run import train

CLASSES = ("standing", "running", "walking", "badminton")


def recordings(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Read recordings ``[40, 100, 6]`` and their activities ``[40]`` from aeon's file (dimensions
    part at ':').
    """
    lines = (
        (files("aeon") / "datasets" / "data" / "BasicMotions" / f"BasicMotions_{split}.ts")
        .read_text()
        .lower()
        .splitlines()
    )
    rows = [line.split(":") for line in lines[lines.index("@data") + 1 :] if line]
    x = np.array(
        [[[float(v) for v in channel.split(",")] for channel in row[:-1]] for row in rows],
        dtype=np.float32,
    )
    return torch.from_numpy(x).movedim(1, 2).contiguous(), torch.tensor(
        [CLASSES.index(row[-1].strip()) for row in rows]
    )


def features(x: torch.Tensor) -> np.ndarray:
    """Return mean, spread and spectrum of every channel."""
    x = x.double()
    spectrum = torch.fft.rfft(x - x.mean(1, keepdim=True), dim=1).abs()[:, 1:25]
    return torch.cat([x.mean(1), x.std(1), spectrum.flatten(1)], 1).numpy()


def main() -> None:
    """Train, sample with and without guidance, judge, and draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("out/motions"))
    parser.add_argument(
        "--recipe",
        type=Path,
        default=Path(__file__).parent.parent / "recipes" / "basic-motions.toml",
    )
    parser.add_argument("--steps", type=int, help="training steps, in place of the recipe's")
    parser.add_argument("--each", type=int, default=50, help="samples of each activity")
    parser.add_argument("--guidance", nargs="+", default=["cond", "cfg(1.5)", "cfg(2)", "cfg(3)"])
    arguments = parser.parse_args()

    (x, y), (other, its) = recordings("TRAIN"), recordings("TEST")
    arguments.out.mkdir(parents=True, exist_ok=True)
    data = arguments.out / "motions.safetensors"
    save_file({"x": x, "activity": y}, data, {"classes": json.dumps({"activity": CLASSES})})
    recipe = recipes.read_recipe(arguments.recipe)
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"path": str(data)})})
    if arguments.steps:
        training = recipe.model.train.model_copy(update={"steps": arguments.steps})
        recipe = recipe.model_copy(
            update={"model": recipe.model.model_copy(update={"train": training})}
        )
    with progress_report() as report:
        train(recipe, arguments.out, report)
    assemble(recipe, arguments.out, command="python examples/basic_motions.py")

    judge = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(
        features(other), its.numpy()
    )
    rows = [
        SheetRow(
            label="real",
            images=to_drawings(x[[int((y == k).nonzero()[i]) for k in range(4) for i in range(2)]]),
        )
    ]
    print(
        f"the judge tells {judge.score(features(x), y.numpy()):.1%} of the 40 recordings that "
        "the model learned from"
    )
    model = guidestar.load(arguments.out / recipe.name)
    wanted = [k for k in range(4) for _ in range(arguments.each)]
    results = []
    for guidance in arguments.guidance:
        samples = model.sample(
            [CLASSES[k] for k in wanted], guidance=guidance, seeds=range(len(wanted))
        )
        accuracy = float((judge.predict(features(samples.images)) == np.array(wanted)).mean())
        results.append({"guidance": guidance, "accuracy": accuracy, "samples": len(wanted)})
        print(
            f"{guidance}: the judge sees the wanted activity in {accuracy:.1%} of {len(wanted)} "
            "samples"
        )
        rows.append(
            SheetRow(
                label=guidance,
                images=to_drawings(
                    samples.images[[k * arguments.each + i for k in range(4) for i in range(2)]]
                ),
            )
        )
    save_png(
        sheet(rows, columns=CLASSES, span=2, scale=1, title="Recordings, real and generated"),
        arguments.out / "motions.png",
    )
    (arguments.out / "motions.json").write_text(json.dumps(results, indent=2) + "\n")
    print(arguments.out / "motions.png")


if __name__ == "__main__":
    main()
