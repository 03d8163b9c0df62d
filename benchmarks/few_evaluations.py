"""Solvers and grids at few evaluations: choose a setting on some seeds, measure it on others.

    python benchmarks/few_evaluations.py --evaluations 6 --choose 40
    python benchmarks/few_evaluations.py --evaluations 10 --choose 40
    python benchmarks/few_evaluations.py --evaluations 6 --evaluations 10 --blocks 5

``--choose N`` draws N settings at random (solver, first and last noise ratio, spacing, scale), all
of at most that many evaluations a sample, and scores each on seeds 10,000–10,499. ``--blocks B``
measures the card's solver and grid, and the setting of lowest Fréchet distance among those whose
accuracy is not below the card's, on B blocks of 1,000 other seeds each: mean and standard error.

Every figure is kept in `benchmarks/results/few-evaluations.json` as soon as it is known; a run that
was stopped goes on from there.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
from pathlib import Path

import torch

from guidestar import Model, load
from guidestar.apps.measure import references, scores
from guidestar.core.levels import Grid
from guidestar.evaluate import JudgeOutput, run_judge
from guidestar.io.images import write_text
from guidestar.sampling.grids import karras, log_snr

KEPT = Path(__file__).parent / "results" / "few-evaluations.json"
CARD = {6: 5, 10: 8}
"""Steps of the card's solver and grid, by the evaluations that they take."""
SOLVERS = ("dpmpp-2m", "unipc", "res-multistep(order=3)", "dpmpp-3m")
SCALES = (1.5, 1.75, 2.0, 2.25, 2.5, 3.0)
INTERVALS = ((0.3, 3.0), (0.5, 4.0), (0.2, 2.0))
Setting = dict[str, object]


def grid_of(model: Model, setting: Setting) -> Grid | str:
    """Return the grid of a setting: the card's name, or levels between two noise ratios."""
    if "first" not in setting:
        return "log_snr"
    ends = {"rho_max": float(setting["first"]), "rho_min": float(setting["last"])}
    if setting["power"] is None:
        return log_snr(model.schedule, int(setting["steps"]), **ends)
    return karras(model.schedule, int(setting["steps"]), power=float(setting["power"]), **ends)


def run_of(model: Model, setting: Setting) -> dict[str, object]:
    """Return the arguments of `Model.sample` of a setting."""
    grid = grid_of(model, setting)
    steps = {"steps": setting["steps"]} if isinstance(grid, str) else {}
    return {"guidance": setting["guidance"], "solver": setting["solver"], "grid": grid, **steps}


def score(
    model: Model, setting: Setting, seeds: range, reference: JudgeOutput, batch: int = 100
) -> dict[str, float]:
    """Draw one sample a seed, classes in turn, and return its figures."""
    wanted = torch.arange(len(seeds)) % len(model.classes)
    drawn, nfe = [], 0.0
    for rows in torch.arange(len(seeds)).split(batch):
        names = [model.classes[k] for k in wanted[rows].tolist()]
        run = model.sample(names, seeds=[seeds[i] for i in rows.tolist()], **run_of(model, setting))
        drawn.append(run.images)
        nfe += run.nfe * len(rows) / len(seeds)
    judged = run_judge(model.need_judge(), torch.cat(drawn), wanted)
    found = scores(judged, reference, len(model.classes))
    return {"nfe": nfe, "frechet": found["frechet"], "accuracy": found["accuracy"]}


def card(model: Model, evaluations: int) -> Setting:
    """Return the card's own setting at this many evaluations."""
    return {
        "guidance": model.defaults["guidance"],
        "solver": model.defaults["solver"],
        "steps": CARD[evaluations],
    }


def draw(model: Model, evaluations: int, chance: random.Random) -> Setting:
    """Draw a setting of at most this many evaluations a sample."""
    while True:
        low, high = chance.choice(INTERVALS)
        setting = {
            "guidance": f"cfg({chance.choice(SCALES):g}, interval=({low:g}, {high:g}))",
            "solver": chance.choice(SOLVERS),
            "steps": chance.randrange(evaluations // 2 + 1, evaluations),
            "first": round(math.exp(chance.uniform(math.log(15), math.log(157))), 1),
            "last": round(math.exp(chance.uniform(math.log(0.03), math.log(0.25))), 3),
            "power": chance.choice((None, None, 5, 7, 10)),
        }
        passes = model.sample(model.classes[0], seeds=[0], **run_of(model, setting)).nfe
        if evaluations - 1 < passes <= evaluations:
            return setting


def choose(model: Model, evaluations: int, count: int, reference: JudgeOutput) -> None:
    """Score the card's setting and ``count`` drawn ones on the seeds for choosing."""
    kept = read()
    tried = kept.setdefault("chosen on 10000-10499", {}).setdefault(str(evaluations), [])
    chance = random.Random(evaluations)
    settings = [card(model, evaluations)]
    settings += [draw(model, evaluations, chance) for _ in range(count)]
    for setting in settings[len(tried) :]:
        tried.append({**setting, **score(model, setting, range(10_000, 10_500), reference)})
        keep(kept)
        print(json.dumps(tried[-1]), flush=True)


def best(evaluations: int) -> Setting:
    """Return the chosen setting: the lowest distance at an accuracy not below the card's."""
    first, *others = read()["chosen on 10000-10499"][str(evaluations)]
    good = [t for t in others if t["accuracy"] >= first["accuracy"]]
    if not good:
        raise SystemExit(f"no setting at {evaluations} evaluations keeps the card's accuracy")
    found = min(good, key=lambda t: t["frechet"])
    return {k: v for k, v in found.items() if k not in ("nfe", "frechet", "accuracy")}


def blocks(model: Model, evaluations: int, count: int, reference: JudgeOutput) -> None:
    """Measure the card's setting and the chosen one in blocks of 1,000 seeds."""
    kept = read()
    measured = kept.setdefault("blocks of 1000", {}).setdefault(str(evaluations), {})
    for name, setting in (("card", card(model, evaluations)), ("chosen", best(evaluations))):
        row = measured.setdefault(name, {"setting": setting, "blocks": []})
        while len(row["blocks"]) < count:
            start = 1000 * len(row["blocks"])
            row["blocks"].append(score(model, setting, range(start, start + 1000), reference))
            keep(kept)
        print(evaluations, name, setting, *(figure(row, k) for k in ("frechet", "accuracy", "nfe")))
    means = [statistics.mean(b["frechet"] for b in measured[n]["blocks"]) for n in measured]
    print(f"Fréchet distance, chosen by the card's: {means[1] / means[0]:.3f}")


def figure(row: dict[str, list[dict[str, float]]], name: str) -> str:
    """Return mean and standard error of a figure over the blocks."""
    values = [block[name] for block in row["blocks"]]
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else math.nan
    return f"{name} {statistics.mean(values):.4f} ± {error:.4f}"


def read() -> dict[str, dict[str, object]]:
    """Return what was measured before."""
    return json.loads(KEPT.read_text()) if KEPT.is_file() else {}


def keep(results: dict[str, dict[str, object]]) -> None:
    """Write what was measured."""
    write_text(json.dumps(results, indent=1) + "\n", KEPT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--evaluations", type=int, action="append", choices=sorted(CARD))
    parser.add_argument("--choose", type=int, default=0, help="settings to draw and score")
    parser.add_argument("--blocks", type=int, default=0, help="blocks of 1,000 seeds to measure")
    arguments = parser.parse_args()
    model = load("fashion-mnist")
    reference, _ = references(model)
    for evaluations in arguments.evaluations or sorted(CARD):
        if arguments.choose:
            choose(model, evaluations, arguments.choose, reference)
        if arguments.blocks:
            blocks(model, evaluations, arguments.blocks, reference)


if __name__ == "__main__":
    main()
