"""Draw the sheet by which a person judges the shipped text model: 16 prompts, the first seeds.

    python benchmarks/prompt_sheet.py                       # docs/figures/sheet.png
    python benchmarks/prompt_sheet.py --blind blind.png     # without the prompts, in another order

The prompts were chosen before a sample of this model was drawn for them. In the blind sheet, whose
key is printed, the first seed of every prompt is shown with its number alone.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from guidestar import load
from guidestar.apps.demo_text import DEMO_PROMPTS
from guidestar.io.images import SheetRow, save_png, sheet

PROMPTS = (
    *DEMO_PROMPTS,
    "banana, noto style",
    "soccer ball, 3d style",
    "snowman, flat style",
    "umbrella, gradient style",
    "hamburger, noto style",
    "panda, blob style",
    "house, firefox style",
    "crescent moon, gradient style",
)
SEEDS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--guidance", default=None, help="by default the card's")
    parser.add_argument("--out", type=Path, default=Path("docs/figures/sheet.png"))
    parser.add_argument("--blind", type=Path, default=None)
    arguments = parser.parse_args()
    model = load(arguments.model)
    seeds = 1 if arguments.blind else SEEDS
    run = model.sample(
        [prompt for prompt in PROMPTS for _ in range(seeds)],
        guidance=arguments.guidance,
        seeds=[*range(seeds)] * len(PROMPTS),
    )
    pictures = run.pil()
    scale = max(1, 128 // pictures[0].width)
    if arguments.blind:
        order = random.Random(1).sample(range(len(PROMPTS)), len(PROMPTS))
        rows = [
            SheetRow(
                label=f"{4 * i + 1}–{4 * i + 4}", images=[pictures[k] for k in order[4 * i :][:4]]
            )
            for i in range(len(PROMPTS) // 4)
        ]
        save_png(sheet(rows, columns=["", "", "", ""], title="", scale=scale), arguments.blind)
        print(*(f"{i + 1} {PROMPTS[k]}" for i, k in enumerate(order)), sep="\n")
        return
    rows = [
        SheetRow(label=prompt.replace(", ", "\n"), images=pictures[SEEDS * i :][:SEEDS])
        for i, prompt in enumerate(PROMPTS)
    ]
    title = f"{model.name}, {run.settings.guidance}, {run.settings.steps} steps"
    columns = [f"seed {k}" for k in range(SEEDS)]
    save_png(sheet(rows, columns=columns, title=title, scale=scale), arguments.out)
    print(arguments.out)


if __name__ == "__main__":
    main()
