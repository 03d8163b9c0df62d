"""Show how near a text model's samples are to the pictures it learned from.

    python benchmarks/neighbours.py --data emoji/train --out docs/figures/neighbours.png

A row for each prompt: a sample, then the training pictures that the measuring CLIP finds nearest,
    with their cosines.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from guidestar import load
from guidestar.apps.demo_text import DEMO_PROMPTS
from guidestar.apps.measure_text import embed_images, read_captioned
from guidestar.io.images import SheetRow, save_png, sheet, to_pil


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("docs/figures/neighbours.png"))
    parser.add_argument("--guidance", default=None)
    parser.add_argument("--nearest", type=int, default=6)
    arguments = parser.parse_args()
    model = load("emoji")
    real = read_captioned(arguments.data, model.need_image_shape()[-1])
    samples = model.sample(
        list(DEMO_PROMPTS), guidance=arguments.guidance, seeds=range(len(DEMO_PROMPTS))
    )
    near = (embed_images(model.judge, samples.images) @ embed_images(model.judge, real.x).T).topk(
        arguments.nearest
    )
    rows = []
    for i, prompt in enumerate(DEMO_PROMPTS):
        cosines = " ".join(f"{c:.2f}" for c in near.values[i].tolist())
        rows.append(
            SheetRow(
                label=f"{prompt}\n{cosines}",
                images=[*to_pil(samples.images[i : i + 1]), *to_pil(real.x[near.indices[i]])],
            )
        )
    title = (
        f"{samples.settings.guidance}: a sample, and the {arguments.nearest} training "
        "pictures that an independent CLIP finds nearest"
    )
    save_png(
        sheet(
            rows,
            columns=["sample", *(f"nearest {k + 1}" for k in range(arguments.nearest))],
            title=title,
            scale=max(1, 96 // real.x.shape[-1]),
        ),
        arguments.out,
    )
    print(arguments.out)


if __name__ == "__main__":
    main()
