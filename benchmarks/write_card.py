"""Write the measured figures into the shipped model's folder: guidestar.json and its card.

    python benchmarks/write_card.py

Reads benchmarks/results/*.json, each as `guidestar evaluate … --out FILE` wrote it.
"""

from __future__ import annotations

import json
from pathlib import Path

from guidestar.card import write_card
from guidestar.folder import SHIPPED
from guidestar.pictures import write_text

RESULTS = Path(__file__).parent / "results"
FOLDER = SHIPPED / "fashion-mnist"
DEFAULTS = {"guidance": "cfg(2, interval=(0.3, 3))", "steps": 10, "solver": "dpmpp-2m", "grid": "log_snr"}
FIDELITY = (
    "Judge accuracy, Fréchet distance in the judge's penultimate features to the 10,000 test images ('real': 1,000 training "
    "images, the floor), mean pairwise feature distance within a class relative to the test images, and the smallest and "
    "largest share of a class the judge sees."
)
FIGURES = (
    ("report", "Figures", FIDELITY + " 1,000 samples, DPM-Solver++(2M), 20 steps, classes in turn, seeds 0–999.", "--steps 20 --seeds 0-999"),
    ("select", "How the scales were chosen", "The same on 500 other seeds.", "--steps 20 --seeds 10000-10499"),
    ("fast", "Ten steps", "Of these the recommended setting is one: the fewest evaluations at the lowest distance.", "--steps 10 --seeds 10000-10499"),
    ("ddim", "Plain DDIM-25", "As Diffusers' loop runs it (the same images to 1e-4: `make bench`).", "--solver ddim --levels leading --steps 25 --seeds 10000-10499"),
)


def main() -> None:
    about = json.loads((FOLDER / "guidestar.json").read_text(encoding="utf-8"))
    about["defaults"] = DEFAULTS
    about["figures"] = [
        {"title": title, "text": text, "command": f'guidestar evaluate fashion-mnist {options} --guidance "…"', "rows": json.loads((RESULTS / f"{name}.json").read_text())}
        for name, title, text, options in FIGURES
        if (RESULTS / f"{name}.json").is_file()
    ]
    write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", FOLDER / "guidestar.json")
    write_card(FOLDER.name, about, FOLDER)


if __name__ == "__main__":
    main()
