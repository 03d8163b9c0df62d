"""Settings for few evaluations: search on some seeds, measure the winner on others.

    python benchmarks/few_evaluations.py --evaluations 6 --search 60
    python benchmarks/few_evaluations.py --evaluations 6 --settings settings.json
    python benchmarks/few_evaluations.py --evaluations 6 --evaluations 10 --finals 6 --blocks 5
    python benchmarks/few_evaluations.py --evaluations 6 --store FOLDER --name "scale 2.3"

A setting is the noise ratios of the levels, a solver, and a scale of ``cfg`` with the steps at
which it acts (``every=``: evaluated at the first of them, and carried to the next). ``--search N``
scores N settings on 120 seeds (20,000–20,119): each is a change of one of the best five so far.
``--settings FILE`` scores those of a JSON list, in the form of `setting_genes.SEEDS`, on the same
seeds. ``--finals K`` scores the K best again on 500 (20,000–20,499). ``--blocks B`` measures the
setting that was the card's before and the best one of the finals on B blocks of 1,000 other seeds
each.

Every figure is kept in `benchmarks/results/few-evaluations.json` as soon as it is known; a run that
was stopped goes on from there. Best is the lowest Fréchet distance, where each hundredth of
accuracy below the old setting's adds 0.05; in the search, of so few samples, the judge's mean
probability of the right class stands for its accuracy.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
from pathlib import Path
from typing import Any

import torch
from setting_genes import KEEPING, SEEDS, Setting, changed, written

from guidestar import Model, load
from guidestar.apps.measure import references, scores
from guidestar.core.levels import Grid
from guidestar.evaluate import JudgeOutput, run_judge
from guidestar.io.images import write_text
from guidestar.model.card import write_card
from guidestar.model.fitted import store
from guidestar.sampling.geometric import grid_of_ratios

KEPT = Path(__file__).parent / "results" / "few-evaluations.json"
OLD = {
    6: {"guidance": "cfg(2, interval=(0.3, 3))", "solver": KEEPING, "steps": 5},
    10: {"guidance": "cfg(2, interval=(0.3, 3))", "solver": KEEPING, "steps": 8},
}
"""The card's setting before, on its log-SNR grid, by the evaluations that it takes."""
SURE = "probability"


def grid_of(model: Model, setting: Setting) -> Grid:
    """Return the grid of a setting: of its noise ratios, or the card's."""
    if "levels" in setting:
        return grid_of_ratios(model.schedule, setting["levels"])
    return model.grid(setting["steps"], "log_snr")


def score(
    model: Model, setting: Setting, seeds: range, reference: JudgeOutput, batch: int = 120
) -> dict[str, float]:
    """Draw one sample a seed, classes in turn, and return its figures."""
    wanted = torch.arange(len(seeds)) % len(model.classes)
    drawn, nfe, grid = [], 0.0, grid_of(model, setting)
    for rows in torch.arange(len(seeds)).split(batch):
        run = model.sample(
            [model.classes[k] for k in wanted[rows].tolist()],
            seeds=[seeds[i] for i in rows.tolist()],
            guidance=setting["guidance"],
            solver=setting["solver"],
            grid=grid,
        )
        drawn.append(run.images)
        nfe += run.nfe * len(rows) / len(seeds)
    judged = run_judge(model.need_judge(), torch.cat(drawn), wanted)
    found = scores(judged, reference, len(model.classes))
    sure = judged.logits.softmax(-1)[torch.arange(len(wanted)), wanted].mean()
    return {
        "nfe": round(nfe, 6),
        **{k: found[k] for k in ("frechet", "accuracy", "diversity")},
        "probability": round(float(sure), 4),
    }


def worth(row: dict[str, Any], old: dict[str, Any], name: str = "accuracy") -> float:
    """Return the Fréchet distance, with what is missing in accuracy."""
    return row["frechet"] + 5 * max(0.0, old[name] - row[name])


def search(model: Model, evaluations: int, count: int, reference: JudgeOutput) -> None:
    """Score the old setting, those of the other count of evaluations, and changes of the best."""
    kept = read()
    tried = kept.setdefault("searched on 20000-20119", {}).setdefault(str(evaluations), [])
    seeds = range(20_000, 20_120)
    if not tried:
        tried.append({**OLD[evaluations], **score(model, OLD[evaluations], seeds, reference)})
        print(json.dumps(tried[0]), flush=True)
    old = tried[0]
    chance = random.Random(100 * evaluations + len(tried))
    while len(tried) <= count:
        ranked = sorted((r for r in tried if "genes" in r), key=lambda r: worth(r, old, SURE))[:5]
        parents = [row["genes"] for row in ranked]
        begin = SEEDS[evaluations]
        fresh = len(tried) <= len(begin)
        genes = begin[len(tried) - 1] if fresh else changed(chance.choice(parents), chance)
        setting = written(genes, evaluations)
        if setting is None or any(
            row.get("levels") and setting.items() <= row.items() for row in tried
        ):
            if fresh:
                raise SystemExit(f"a setting to begin with has no meaning: {genes}")
            continue
        tried.append({**setting, **score(model, setting, seeds, reference), "genes": genes})
        keep(kept)
        row = {k: v for k, v in tried[-1].items() if k != "genes"}
        print(len(tried) - 1, f"{worth(row, old, SURE):.3f}", json.dumps(row), flush=True)


def given(model: Model, evaluations: int, file: Path, reference: JudgeOutput) -> None:
    """Score settings from a file, as `search` does its own."""
    kept = read()
    tried = kept["searched on 20000-20119"][str(evaluations)]
    for genes in json.loads(file.read_text()):
        genes["logs"] = [math.log(v) for v in genes.pop("levels")]
        setting = written(genes, evaluations)
        if setting is None:
            raise SystemExit(f"a setting has no meaning: {genes}")
        if any(setting.items() <= row.items() for row in tried):
            continue
        found = score(model, setting, range(20_000, 20_120), reference)
        tried.append({**setting, **found, "genes": genes})
        keep(kept)
        row = {k: v for k, v in tried[-1].items() if k != "genes"}
        print("given", f"{worth(row, tried[0], SURE):.3f}", json.dumps(row), flush=True)


def finals(model: Model, evaluations: int, count: int, reference: JudgeOutput) -> None:
    """Score the old setting and the best ones of the search on 500 seeds."""
    kept = read()
    old, *others = kept["searched on 20000-20119"][str(evaluations)]
    ranked = sorted(others, key=lambda row: worth(row, old, SURE))[:count]
    found = kept.setdefault("finals on 20000-20499", {}).setdefault(str(evaluations), [])
    for row in (old, *ranked):
        setting = {k: row[k] for k in ("guidance", "solver", "levels", "steps") if k in row}
        if any(setting.items() <= done.items() for done in found):
            continue
        found.append({**setting, **score(model, setting, range(20_000, 20_500), reference)})
        keep(kept)
        print("final", json.dumps(found[-1]), flush=True)


def best(evaluations: int) -> Setting:
    """Return the best setting of the finals."""
    old, *others = read()["finals on 20000-20499"][str(evaluations)]
    found = min(others, key=lambda row: worth(row, old))
    return {k: found[k] for k in ("guidance", "solver", "levels")}


def blocks(model: Model, evaluations: int, count: int, reference: JudgeOutput) -> None:
    """Measure the old setting and those chosen (the best one, if none is) in blocks of 1,000 seeds.

    What was chosen stands in the results by a name.
    """
    kept = read()
    measured = kept.setdefault("blocks of 1000", {}).setdefault(str(evaluations), {})
    if not measured:
        measured["old"] = {"setting": OLD[evaluations], "blocks": []}
        measured["best"] = {"setting": best(evaluations), "blocks": []}
    for name, row in measured.items():
        while len(row["blocks"]) < count:
            start = 1000 * len(row["blocks"])
            seeds = range(start, start + 1000)
            row["blocks"].append(score(model, row["setting"], seeds, reference))
            keep(kept)
            print(evaluations, name, json.dumps(row["blocks"][-1]), flush=True)
    old = measured["old"]["blocks"]
    for name, row in measured.items():
        pairs = list(zip(row["blocks"], old, strict=False))
        ratio = figure([new["frechet"] / before["frechet"] for new, before in pairs])
        change = figure([new["accuracy"] - before["accuracy"] for new, before in pairs])
        print(f"{evaluations} {name}: {ratio} of the old distance, accuracy by {change}")


def store_in(folder: Path, evaluations: int, name: str) -> None:
    """Keep a setting that was measured in a model's folder: the default for its step count."""
    setting = read()["blocks of 1000"][str(evaluations)][name]["setting"]
    steps = len(setting["levels"]) - 1
    own = {key: setting[key] for key in ("guidance", "solver")}
    store(folder, {steps: setting["levels"]}, {steps: own})
    write_card(folder.name, json.loads((folder / "guidestar.json").read_text()), folder)


def figure(values: list[float]) -> str:
    """Return mean and standard error of a figure over the blocks."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else math.nan
    return f"{statistics.mean(values):.4f} ± {error:.4f}"


def read() -> dict[str, Any]:
    """Return what was measured before."""
    return json.loads(KEPT.read_text()) if KEPT.is_file() else {}


def keep(results: dict[str, Any]) -> None:
    """Write what was measured."""
    write_text(json.dumps(results, indent=1) + "\n", KEPT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--evaluations", type=int, action="append", choices=sorted(OLD))
    parser.add_argument("--search", type=int, default=0, help="settings to score on 120 seeds")
    parser.add_argument("--settings", type=Path, help="JSON list of settings to score on them")
    parser.add_argument("--finals", type=int, default=0, help="of the best, to score on 500")
    parser.add_argument("--blocks", type=int, default=0, help="blocks of 1,000 seeds to measure")
    parser.add_argument("--store", type=Path, help="a model's folder that keeps a setting")
    parser.add_argument("--name", default="best", help="of that setting in the blocks")
    arguments = parser.parse_args()
    if arguments.store:
        for evaluations in arguments.evaluations or []:
            store_in(arguments.store, evaluations, arguments.name)
        return
    model = load("fashion-mnist")
    reference, _ = references(model)
    for evaluations in arguments.evaluations or sorted(OLD):
        if arguments.search:
            search(model, evaluations, arguments.search, reference)
        if arguments.settings:
            given(model, evaluations, arguments.settings, reference)
        if arguments.finals:
            finals(model, evaluations, arguments.finals, reference)
        if arguments.blocks:
            blocks(model, evaluations, arguments.blocks, reference)


if __name__ == "__main__":
    main()
