"""Measure every guidance at its best parameters, on the shipped models.

    python benchmarks/choosing.py fashion-mnist
    python benchmarks/choosing.py emoji --data emoji/train        (after: guidestar data emoji --out
    emoji)

Each method has up to four settings to choose from (`TRIALS`), tried on the same seeds; the
best (lowest Fréchet distance of a class model, most prompts found among the first five of a text
model) is
then measured on other seeds, and timed: a batch of each in turn, three times. Every figure is
    kept in `benchmarks/results/choosing-<model>.json` as soon
as it is known, and a run that was stopped goes on from there. `--write` puts the tables into
docs/choosing.md and the pictures into docs/figures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from guidestar import Model, load
from guidestar.apps.demo_text import DEMO_PROMPTS
from guidestar.apps.measure import measure
from guidestar.apps.measure_text import measure_text
from guidestar.io.images import SheetRow, save_png, sheet, to_pil, write_text

HOME = Path(__file__).parent

TRIALS: dict[str, dict[str, list[str]]] = {
    "fashion-mnist": {
        "no guidance": ["cond"],
        "no condition": ["uncond"],
        "cfg": ["cfg(1.15)", "cfg(1.25)", "cfg(1.5)", "cfg(2)"],
        "cfg, interval": [
            "cfg(1.5, interval=(0.3, 3))",
            "cfg(2, interval=(0.3, 3))",
            "cfg(1.5, interval=(0.1, 1))",
            "cfg(2, interval=(0.1, 1))",
        ],
        "cfg, linear": [
            "cfg(1.15, schedule=linear)",
            "cfg(1.25, schedule=linear)",
            "cfg(1.5, schedule=linear)",
            "cfg(2, schedule=linear)",
        ],
        "cfg, cosine": [
            "cfg(1.15, schedule=cosine)",
            "cfg(1.25, schedule=cosine)",
            "cfg(1.5, schedule=cosine)",
            "cfg(2, schedule=cosine)",
        ],
        "classifier, on uncond": [
            "uncond + classifier(2)",
            "uncond + classifier(4)",
            "uncond + classifier(6)",
            "uncond + classifier(8)",
        ],
        "classifier, on cond": [
            "cond + classifier(0.25)",
            "cond + classifier(0.5)",
            "cond + classifier(1)",
            "cond + classifier(2)",
        ],
        "autoguidance": [
            "autoguidance(1.25)",
            "autoguidance(1.5)",
            "autoguidance(2)",
            "autoguidance(3)",
        ],
        "cfg + autoguidance": [
            "cfg(1.15) + autoguidance(1.25)",
            "cfg(1.25) + autoguidance(1.25)",
            "cfg(1.15) + autoguidance(1.5)",
            "cfg(1.25) + autoguidance(1.5)",
        ],
        "cfgpp": ["cfgpp(0.2)", "cfgpp(0.4)", "cfgpp(0.6)"],
        "apg": ["apg(1.25)", "apg(1.5)", "apg(2)"],
        "cfg_zero": ["cfg_zero(1.25)", "cfg_zero(1.5)", "cfg_zero(1.25, zero=0)"],
        "tcfg": ["tcfg(1.15)", "tcfg(1.25)", "tcfg(1.5)"],
        "fdg": ["fdg(1.25)", "fdg(1.5)", "fdg(2)"],
        "mambo": ["mambo(1.5)", "mambo(2)", "mambo(2, damping=2)"],
        "adaptive": [
            "adaptive(1.25)",
            "adaptive(1.25, gamma=0.999)",
            "adaptive(1.25, gamma=0.9999)",
        ],
        "cads": ["cfg(1.5) | cads(0.05)", "cfg(1.5) | cads(0.1)", "cfg(2) | cads(0.1)"],
        "icg": ["icg(1.15)", "icg(1.25)", "icg(1.5)"],
        "tsg": ["tsg(1.25)", "tsg(1.5)", "tsg(2)"],
        "pag": ["cond + pag(0.25)", "cond + pag(0.5)", "cond + pag(1)"],
        "cfg + pag": ["cfg(1.15) + pag(0.25)", "cfg(1.25) + pag(0.25)", "cfg(1.15) + pag(0.5)"],
        "seg": ["cond + seg(0.25)", "cond + seg(0.5)", "cond + seg(1)"],
        "slg": ["cond + slg(0.1)", "cond + slg(0.25)", "cond + slg(0.5)"],
        "sag": ["cond + sag(0.1)", "cond + sag(0.25)", "cond + sag(0.5)"],
        "rescale": ["cfg(1.5) | rescale(0.5)", "cfg(1.5) | rescale(1)", "cfg(2) | rescale(0.5)"],
        "threshold": [
            "cfg(1.25) | threshold(0.995)",
            "cfg(1.5) | threshold(0.995)",
            "cfg(1.25) | threshold(0.95)",
        ],
    },
    "emoji": {
        "no guidance": ["cond"],
        "no condition": ["uncond"],
        "cfg": ["cfg(2)", "cfg(3)", "cfg(4)"],
        "cfg, interval": [
            "cfg(2, interval=(0.3, 20))",
            "cfg(3, interval=(0.3, 20))",
            "cfg(4, interval=(0.5, 10))",
        ],
        "cfg, linear": [
            "cfg(2, schedule=linear)",
            "cfg(3, schedule=linear)",
            "cfg(4, schedule=linear)",
        ],
        "clip, on uncond": ["uncond + clip(4)", "uncond + clip(8)", "uncond + clip(12)"],
        "cfg + clip": ["cfg(3) + clip(0.5)"],
        "cfgpp": ["cfgpp(0.6)", "cfgpp(0.8)"],
        "apg": ["apg(2)", "apg(3)"],
        "cfg_zero": ["cfg_zero(2, zero=0)"],
        "tcfg": ["tcfg(3)"],
        "fdg": ["fdg(2)"],
        "mambo": ["mambo(6)"],
        "adaptive": ["adaptive(2, gamma=0.999)"],
        "cads": ["cfg(2) | cads(0.05)"],
        "tsg": ["tsg(1.5)"],
        "pag": ["cond + pag(0.25)"],
        "cfg + pag": ["cfg(2) + pag(0.25)"],
        "seg": ["cond + seg(0.25)"],
        "slg": ["cond + slg(0.25)"],
        "nag": ["cond + nag(2)"],
        "rescale": ["cfg(3) | rescale(0.7)"],
        "threshold": ["cfg(2) | threshold(0.995)"],
    },
}
"""Up to four settings of each method, by model."""

Figures = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", choices=[*TRIALS])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--tries", type=int, default=150, help="samples of a trial")
    parser.add_argument("--samples", type=int, default=300, help="samples of a measurement")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument(
        "--batch", type=int, default=16, help="samples of a batch that is timed; 0: none"
    )
    parser.add_argument(
        "--bfloat16", action="store_true", help="the network calculates in bfloat16 (autocast)"
    )
    parser.add_argument(
        "--write", action="store_true", help="only write what is known into the documents"
    )
    arguments = parser.parse_args()
    kept = HOME / f"results/choosing-{arguments.model}.json"
    how = {"tries": arguments.tries, "samples": arguments.samples, "steps": arguments.steps}
    known = (
        json.loads(kept.read_text()) if kept.exists() else {"how": how, "tried": {}, "measured": {}}
    )
    if known.setdefault("how", how) != how and not arguments.write:
        parser.error(f"{kept.name} was measured with {known['how']}; repeat that, or move it away")
    if not arguments.write:
        measure_all(arguments, known, kept)
    draw_all(arguments, known)


def measure_all(arguments: argparse.Namespace, known: dict[str, Figures], kept: Path) -> None:
    """Try all settings, and measure the best of each method."""
    model, trials = load(arguments.model), TRIALS[arguments.model]
    if arguments.bfloat16:
        cast(model.denoiser)
    every = [e for settings in trials.values() if len(settings) > 1 for e in settings]
    missing("tried", every, arguments.tries, 10_000, model, arguments, known, kept)
    chosen = [best(settings, known["tried"], arguments.model) for settings in trials.values()]
    missing("measured", chosen, arguments.samples, 0, model, arguments, known, kept)
    if arguments.batch and not all("batch" in known["measured"][e] for e in chosen):
        for expression, seconds in times(model, chosen, arguments.steps, arguments.batch).items():
            known["measured"][expression]["batch"] = round(seconds, 3)
        write_text(json.dumps(known, indent=1) + "\n", kept)


def cast(network: Any) -> None:
    """Let a network calculate in bfloat16; its weights and all that is around it stay float32."""
    forward = network.forward

    def narrow(*given: Any, **named: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return forward(*given, **named)

    network.forward = narrow


def times(
    model: Model, expressions: list[str], steps: int, batch: int, rounds: int = 3
) -> dict[str, float]:
    """Return the median seconds of a batch of each, drawn in turn."""
    names = [(model.classes or list(DEMO_PROMPTS))[i % 8] for i in range(batch)]
    seconds: dict[str, list[float]] = {e: [] for e in expressions}
    for _ in range(rounds):
        for expression, taken in seconds.items():
            start = time.perf_counter()
            model.sample(names, guidance=expression, seeds=range(batch), steps=steps)
            taken.append(time.perf_counter() - start)
    return {e: statistics.median(taken) for e, taken in seconds.items()}


def missing(
    part: str,
    expressions: list[str],
    samples: int,
    seed: int,
    model: Model,
    arguments: argparse.Namespace,
    known: dict[str, Figures],
    kept: Path,
) -> None:
    """Measure what is not known yet, keeping each figure at once."""
    wanted = [e for e in dict.fromkeys(expressions) if e not in known[part]]
    if not wanted:
        return
    names = iter(["real", *([] if model.classes else ["shuffled"]), *wanted])
    for name, row in zip(names, rows(model, wanted, samples, seed, arguments), strict=True):
        known[part][name] = row
        write_text(json.dumps(known, indent=1) + "\n", kept)
        print(f"{part}  {name:<40} {summary(row)}", flush=True)


def rows(
    model: Model, wanted: list[str], samples: int, seed: int, arguments: argparse.Namespace
) -> Iterator[Figures]:
    if model.classes:
        return measure(
            model,
            wanted,
            seeds=range(seed, seed + samples),
            steps=arguments.steps,
            data=arguments.data,
        )
    return measure_text(
        model, wanted, count=samples, seed=seed, steps=arguments.steps, data=arguments.data
    )


def best(settings: list[str], tried: Figures, model: str) -> str:
    """Choose the setting of the lowest distance, or of the most prompts found."""
    if len(settings) == 1:
        return settings[0]
    order: Callable[[str], Any] = (
        (lambda e: tried[e]["frechet"])
        if model == "fashion-mnist"
        else lambda e: (-tried[e]["top 5"], tried[e]["frechet"])
    )
    return min(settings, key=order)


def summary(row: Figures) -> str:
    return "  ".join(
        f"{k} {v}" for k, v in row.items() if k not in ("guidance", "shares", "captions")
    )


def draw_all(arguments: argparse.Namespace, known: dict[str, Figures]) -> None:
    """Write the table of a model into docs/choosing.md, and draw every method from the same
    seeds.
    """
    trials = TRIALS[arguments.model]
    chosen = {
        name: best(settings, known["tried"], arguments.model)
        for name, settings in trials.items()
        if len(settings) == 1 or all(e in known["tried"] for e in settings)
    }
    chosen = {name: e for name, e in chosen.items() if e in known["measured"]}
    document = HOME.parent / "docs/choosing.md"
    text, (start, end) = (
        document.read_text(),
        (f"<!-- {arguments.model} -->", f"<!-- end of {arguments.model} -->"),
    )
    if start not in text:  # the first table of this model is put at the end
        text += f"\n{start}\n{end}\n"
    before, after = text.split(start)[0], text.split(end)[1]
    write_text(
        f"{before}{start}\n{table(arguments.model, chosen, known['measured'])}\n{end}{after}",
        document,
    )
    model = load(arguments.model)
    if arguments.bfloat16:
        cast(model.denoiser)
    prompts = model.classes or list(DEMO_PROMPTS)
    sheets = [
        SheetRow(
            label=f"{name}\n{e}",
            images=to_pil(
                model.sample(
                    list(prompts), guidance=e, seeds=range(len(prompts)), steps=arguments.steps
                ).images
            ),
        )
        for name, e in chosen.items()
    ]
    save_png(
        sheet(
            sheets,
            columns=[str(p).partition(",")[0].replace(" ", "\n") for p in prompts],
            title=f"{model.name}: the same seeds under every guidance, each at its best setting",
            scale=2,
        ),
        HOME.parent / f"docs/figures/choosing-{model.name}.png",
    )


def table(model: str, chosen: dict[str, str], measured: Figures) -> str:
    """Return the figures as a table, the reference of the seconds being plain cfg."""
    if model == "fashion-mnist":
        head, cells = (
            ("accuracy", "Fréchet", "diversity"),
            lambda r: (f"{r['accuracy']:.1%}", f"{r['frechet']:.3f}", f"{r['diversity']:.2f}"),
        )
    else:
        head, cells = (
            ("first five", "cosine", "Fréchet"),
            lambda r: (f"{r['top 5']:.1%}", f"{r['score']:.3f}", f"{r['frechet']:.3f}"),
        )
    unit = measured[chosen["cfg"]].get("batch")
    timed, rule = (" time / cfg |", "---|") if unit else ("", "")
    lines = [
        f"| method | its best setting | {' | '.join(head)} | NFE |{timed}",
        f"|---|---|---|---|---|---|{rule}",
        f"| real pictures | | {' | '.join(cells(measured['real']))} | |{' |' if unit else ''}",
    ]
    for name, expression in chosen.items():
        r = measured[expression]
        lines.append(
            f"| {name} | `{expression.replace('|', chr(92) + '|')}` | {' | '.join(cells(r))} | "
            f"{round(r['nfe'], 1):g} |" + (f" {r['batch'] / unit:.2f} |" if unit else "")
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
