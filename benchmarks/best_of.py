"""Take the best of several seeds by the text model's own CLIP, and measure it by the other.

    python benchmarks/best_of.py --data emoji/train --seeds 4 --guidance "cfg(2)"

Each caption gets several samples. The clean CLIP that guides takes the one nearest to the caption;
the measuring CLIP, of other sizes and another seed, ranks the captions for it. Row k is the best
of the first k seeds. Every seed is kept in `--out` as soon as it is drawn.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from guidestar import load
from guidestar.apps.measure_text import Ruler, draw_samples, embed_images, read_captioned
from guidestar.io.images import write_text
from guidestar.model.protocols import TextJudge
from guidestar.networks.clip import CLIP


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--captions", type=int, default=200)
    parser.add_argument("--first", type=int, default=100, help="the first seed")
    parser.add_argument("--seeds", type=int, default=4, help="samples of each caption")
    parser.add_argument("--guidance", default="cfg(2)")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("best-of.json"))
    arguments = parser.parse_args()
    model = load("emoji")
    guiding, judge = model.classifiers["clean_clip"], model.judge
    assert isinstance(guiding, CLIP) and isinstance(judge, TextJudge)
    train = read_captioned(arguments.data, model.need_image_shape()[-1])
    wanted = train.take(arguments.captions)
    ruler = Ruler.of(judge, train.labels, train.x)
    captions = guiding.embed_captions(list(wanted.prompts)).cpu()
    guidance, agreements, measured, rows = model.expression(arguments.guidance), [], [], []
    for k in range(arguments.seeds):
        seed = arguments.first + 10_000 * k
        images, nfe, seconds = draw_samples(
            model,
            guidance,
            wanted.prompts,
            seed,
            64,
            None,
            steps=arguments.steps,
            solver=None,
            grid=None,
        )
        agreements.append((embed_images(guiding, images) * captions).sum(1))
        measured.append(embed_images(judge, images))
        best = torch.stack(agreements).argmax(0)
        chosen = torch.stack(measured)[best, torch.arange(len(best))]
        found = {"guidance": str(guidance), "best of": k + 1, "nfe": nfe * (k + 1)}
        rows.append({**found, "seconds": round(seconds), **ruler.scores(chosen, wanted.labels)})
        write_text(json.dumps(rows, indent=1) + "\n", arguments.out)
        print(rows[-1], flush=True)


if __name__ == "__main__":
    main()
