"""How well does the shipped text model's autoencoder rebuild pictures that it was not trained on?

    python benchmarks/autoencoder.py --data emoji/unseen-pairs

Against the same pictures reduced and enlarged again by cubic interpolation: to half their side, and
to a quarter, which keeps about as many numbers as the latents have. PSNR (dB) and SSIM are means
over pictures; the Fréchet distance is of the measuring CLIP's embeddings, to the pictures.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from guidestar import load
from guidestar.apps.measure_text import embed_images, read_captioned
from guidestar.evaluate import fit_gaussian, gaussian_distance, psnr, ssim
from guidestar.model.protocols import TextJudge


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?", default="emoji")
    parser.add_argument("--data", type=Path, required=True, help="pictures that were held out")
    arguments = parser.parse_args()
    model = load(arguments.model)
    judge = model.judge
    assert isinstance(judge, TextJudge), f"{arguments.model} has no CLIP that measures"
    x = read_captioned(arguments.data, model.need_image_shape()[-1]).x
    with torch.inference_mode():
        z = torch.cat([model.from_images(part) for part in x.split(32)])
        rebuilt = torch.cat([model.to_images(part) for part in z.split(32)])
    rows = {f"autoencoder, {z[0].numel():,} numbers": rebuilt}
    for times in (2, 4):
        small = F.interpolate(x, scale_factor=1 / times, mode="bicubic", antialias=True)
        large = F.interpolate(small, size=tuple(x.shape[-2:]), mode="bicubic").clamp(-1, 1)
        name = f"bicubic {small.shape[-1]} → {x.shape[-1]}, {small[0].numel():,} numbers"
        rows[name] = large
    real = fit_gaussian(embed_images(judge, x))
    print(f"{len(x)} pictures of {x[0].numel():,} numbers")
    for name, made in rows.items():
        print(f"{name:<34}{figures(made, x, judge, real)}", flush=True)


def figures(made: Tensor, x: Tensor, judge: TextJudge, real: tuple[Tensor, Tensor]) -> str:
    distance = gaussian_distance(*fit_gaussian(embed_images(judge, made)), *real)
    return (
        f"PSNR {float(psnr(made, x).mean()):.1f} dB  SSIM {float(ssim(made, x).mean()):.3f}  "
        f"Fréchet {distance:.5f}"
    )


if __name__ == "__main__":
    main()
