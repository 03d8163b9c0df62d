"""Mocap clips by action and style: train MDM's transformer, guide it, measure and edit.

    python examples/motion.py clips.zip --out out/motion

Clips: BVH files of the Bandai-Namco-Research-Motiondataset-2 (CC BY-NC 4.0: research only, so
neither the clips nor the weights are part of guidestar), ten actions in seven styles. The model
learns from takes 1 to 4 of each. The judge, which names actions and gives the features of the
Fréchet distance, learns from takes 5 to 8: it has seen neither the model nor its clips.
"""

from __future__ import annotations

import argparse
import json
import re
import time
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import guidestar
from guidestar.apps.measure_motion import (
    MotionJudge,
    inbetween_error,
    names_like,
    real_motions,
    sample_like,
    score_motions,
)
from guidestar.data.motions import Motions
from guidestar.model.motion_editing import keep
from guidestar.motion.drawing import draw_motions, write_animation
from guidestar.sampling import DDIM, TimeTravel
from guidestar.train.build.data import sources
from guidestar.train.export import assemble
from guidestar.train.progress import progress_report
from guidestar.train.recipe import schema as recipes
from guidestar.train.recipe.parts import ClassifierPart, Training
from guidestar.train.run import train
from guidestar.train.snapshots import averaged

RECIPE = Path(__file__).parents[1] / "recipes" / "motion.toml"
SCALES = ("uncond", "cfg(1)", "cfg(1.5)", "cfg(2)", "cfg(2.5)")
KNOWN = 10
"""Frames at each end that in-betweening keeps."""


def unpack(clips: Path, out: Path) -> None:
    """Part the clips by takes: 1 to 4 for the model, 5 to 8 for the judge."""
    for part in ("model", "judge"):
        (out / part).mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(clips) as held:
        for name in held.namelist():
            take = re.search(r"_(\d+)\.bvh$", name)
            if take:
                part = "model" if int(take[1]) <= 4 else "judge"
                (out / part / Path(name).name).write_bytes(held.read(name))


def read(path: Path, **more: Any) -> recipes.Recipe:
    """Return the recipe with other clips and further parts."""
    recipe = recipes.read_recipe(RECIPE)
    data = recipe.data.model_copy(update={"path": str(path)})
    return recipe.model_copy(update={"data": data, **more})


def train_judge(out: Path) -> MotionJudge:
    """Train a classifier of actions on the other clips."""
    steps = Training(steps=500, batch=32, rate=1e-3, warmup=50, decay=0.99, weight_decay=0.01)
    judge = ClassifierPart(column="action", widths=(64, 128), dropout=0.1, train=steps)
    recipe = read(out / "clips" / "judge", judge=judge)
    with progress_report() as report:
        train(recipe, out / "judge", report, only=["judge"])
    source, _ = sources(recipe)
    assert isinstance(source, Motions)
    net = averaged(recipe, "judge", out / "judge", source)
    return MotionJudge(net=net, data=source, column="action")


def measure(model: guidestar.Model, judge: MotionJudge, source: Motions) -> dict[str, Any]:
    """Measure real and guided motions, as many of each, of the same actions, styles and lengths."""
    other = real_motions(judge.data)
    reference = judge.run(other, torch.as_tensor(judge.data.targets["action"]))
    labels = torch.as_tensor(source.targets["action"])
    names = names_like(source, ("action", "style"))
    how = {"judge": judge, "body": source.body, "reference": reference}
    found: dict[str, Any] = {}
    sets = {"real": lambda: real_motions(source)}
    sets |= {g: lambda g=g: sample_like(model, names, g) for g in SCALES}
    for name, make in sets.items():
        found[name] = asdict(score_motions(make(), labels, **how))
        print(name, {k: round(v, 4) for k, v in found[name].items()}, flush=True)
    return found


def edit(model: guidestar.Model, judge: MotionJudge) -> dict[str, float]:
    """Measure in-betweening on clips that the model has not seen."""
    data, frames = judge.data, model.shape[0]
    rows = [k for k, count in enumerate(data.counts) if count >= frames][::6]
    every = real_motions(data)
    names = names_like(data, ("action", "style"))
    made, line = inbetween_error(
        model, data.body, [every[k] for k in rows], [names[k] for k in rows], KNOWN
    )
    found = {"in-betweening": made, "linear interpolation": line, "of": float(len(rows))}
    print(found, flush=True)
    return found


def seconds(model: guidestar.Model) -> float:
    """Return the seconds that one motion of the model's length takes (the best of five)."""
    found = []
    for seed in range(5):
        begun = time.perf_counter()
        model.sample("action=walk; style=normal", seeds=[seed], guidance="cfg(1.5)", steps=20)
        found.append(time.perf_counter() - begun)
    print({"seconds of one motion": min(found)}, flush=True)
    return min(found)


def draw(model: guidestar.Model, judge: MotionJudge, out: Path) -> None:
    """Draw guided motions, and an in-betweening beside the clip that it is of."""
    body, form = judge.data.body, judge.data.body.format
    actions = ("walk", "run", "wave-both-hands", "raise-up-left-hand")
    names = [f"action={a}; style=normal" for a in actions]
    made = model.sample(names, guidance="cfg(1.5)", seeds=[0] * len(names)).images
    frames = draw_motions([body.joints(x) for x in made], form.skeleton, labels=actions)
    write_animation(frames, out / "motion.webp", body.rate)
    row = next(k for k, count in enumerate(judge.data.counts) if count >= model.shape[0])
    clip = real_motions(judge.data)[row]
    name = names_like(judge.data, ("action", "style"))[row]
    ends = [*range(KNOWN), *range(model.shape[0] - KNOWN, model.shape[0])]
    kept = keep(model, body.to_bvh(clip), frames=ends, solver=DDIM())
    run = {"guidance": "cfg(1)", "solver": TimeTravel(solver=kept, times=10), "grid": "uniform"}
    two = model.sample([name] * 2, seeds=[0, 1], steps=20, **run).images
    shown, labels = [clip, *two], ["a clip", "filled in", "filled in again"]
    frames = draw_motions([body.joints(x) for x in shown], form.skeleton, labels=labels)
    write_animation(frames, out / "inbetween.webp", body.rate)


def main() -> None:
    """Unpack, train, measure and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("clips", type=Path, help="zip of the BVH files")
    parser.add_argument("--out", type=Path, default=Path("out/motion"))
    given = parser.parse_args()
    out = given.out
    if not (out / "clips").is_dir():
        unpack(given.clips, out / "clips")
    recipe = read(out / "clips" / "model")
    with progress_report() as report:
        train(recipe, out / "train", report)
    assemble(recipe, out / "train", folder=out / "model")
    model, judge = guidestar.load(out / "model"), train_judge(out)
    draw(model, judge, out)
    source, _ = sources(recipe)
    assert isinstance(source, Motions)
    found = {"scores": measure(model, judge, source), "editing": edit(model, judge)}
    found["seconds"] = seconds(model)
    (out / "measures.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
