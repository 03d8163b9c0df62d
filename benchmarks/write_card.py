"""Write the measured figures into the shipped models' folders (guidestar.json and their cards), and
the text model's into docs/text-to-image.md.

    python benchmarks/write_card.py

Reads benchmarks/results/*.json, each as `guidestar evaluate … --out FILE` wrote it.
"""

from __future__ import annotations

import json
from pathlib import Path

from guidestar.io.images import write_text
from guidestar.model.card import text_table, write_card
from guidestar.model.shipped import SHIPPED

RESULTS = Path(__file__).parent / "results"
FIDELITY = (
    "Judge accuracy, Fréchet distance in the judge's penultimate features to the 10,000 test "
    "images ('real': 1,000 training "
    "images, the floor), mean pairwise feature distance within a class relative to the test "
    "images, and the smallest and "
    "largest share of a class the judge sees."
)
CLIP = (
    "An independent CLIP that guides nothing compares each sample with the names of all concepts "
    "(those it cannot tell apart, of cosine above 0.95, are one): how often "
    "the right one is first, or among the first five; mean cosine with the right one; Fréchet "
    "distance of its embeddings to all training pictures; mean cosine with the "
    "nearest training picture. 'real' are the pictures whose captions were asked for, the "
    "ceiling; with captions shuffled, the floor. 20 steps of DPM-Solver++(2M). "
)
DEFAULTS = {
    "fashion-mnist": {
        "guidance": "cfg(2, interval=(0.3, 3))",
        "steps": 10,
        "solver": "dpmpp-2m",
        "grid": "log_snr",
    },
    "emoji": {"guidance": "cfg(4)", "steps": 20, "solver": "dpmpp-2m", "grid": "log_snr"},
}
FIGURES = {
    "fashion-mnist": (
        (
            "report",
            "Figures",
            FIDELITY + " 1,000 samples, DPM-Solver++(2M), 20 steps, classes in turn, seeds 0–999.",
            "--steps 20 --seeds 0-999",
        ),
        (
            "select",
            "How the scales were chosen",
            "The same on 500 other seeds.",
            "--steps 20 --seeds 10000-10499",
        ),
        (
            "fast",
            "Ten steps",
            "Of these the recommended setting is one: the fewest evaluations at the lowest "
            "distance.",
            "--steps 10 --seeds 10000-10499",
        ),
        (
            "ddim",
            "Plain DDIM-25",
            "As Diffusers' loop runs it (the same images to 1e-4: `make bench`).",
            "--solver ddim --levels leading --steps 25 --seeds 10000-10499",
        ),
    ),
    "emoji": (
        ("emoji-train", "Captions it was trained on", CLIP, "--data emoji/train --seeds 0-99"),
        (
            "emoji-sweep",
            "Other captions it was trained on",
            "The same on captions and seeds that nothing was chosen on; the network calculated in "
            "bfloat16.",
            "--data emoji/train --seeds 100-299",
        ),
        (
            "emoji-clip",
            "By CLIP alone",
            "The unconditional model, steered by the gradient of the noise-aware CLIP, and by "
            "the clean one through the clean estimate.",
            "--data emoji/train --seeds 0-199",
        ),
        (
            "emoji-pairs",
            "Concepts it knows, in styles it has not seen them in",
            "The same on held-out pairs.",
            "--data emoji/unseen-pairs --seeds 100-299",
        ),
        (
            "emoji-concepts",
            "Concepts it has never seen",
            "The same on held-out concepts; the network calculated in bfloat16.",
            "--data emoji/unseen-concepts --seeds 100-199",
        ),
    ),
}


DOCUMENT = Path(__file__).parents[1] / "docs/text-to-image.md"


def main() -> None:
    for name, figures in FIGURES.items():
        if (SHIPPED / name / "guidestar.json").is_file():
            write(SHIPPED / name, figures)
    text = DOCUMENT.read_text(encoding="utf-8")
    for name, *_ in FIGURES["emoji"]:
        file, start, end = RESULTS / f"{name}.json", f"<!-- {name} -->", f"<!-- end of {name} -->"
        if start in text and file.is_file():
            table = text_table(json.loads(file.read_text()))
            before, after = text.split(start)[0], text.split(end)[1]
            text = f"{before}{start}\n{table}\n{end}{after}"
    write_text(text, DOCUMENT)


def write(folder: Path, figures: tuple[tuple[str, str, str, str], ...]) -> None:
    about = json.loads((folder / "guidestar.json").read_text(encoding="utf-8"))
    about["defaults"] = DEFAULTS[folder.name]
    about["figures"] = [
        {
            "title": title,
            "text": text,
            "command": f'guidestar evaluate {folder.name} {options} --guidance "…"',
            "rows": json.loads((RESULTS / f"{name}.json").read_text()),
        }
        for name, title, text, options in figures
        if (RESULTS / f"{name}.json").is_file()
    ]
    write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", folder / "guidestar.json")
    write_card(folder.name, about, folder)


if __name__ == "__main__":
    main()
