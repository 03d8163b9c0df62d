"""What is a super-resolution stage worth, how much noise should its picture get, and does it need
the class?

    guidestar train recipes/cascade.toml --out out
    python benchmarks/cascade.py out/fashion-cascade

The base's pictures are drawn once. They are enlarged by cubic interpolation, and by the second
stage at each level of noise, with and without the class: all with the same seeds. The judge of the
shipped class model measures all of them, against the test images.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from guidestar import Cascade, load, upscale
from guidestar.apps.measure import references, scores
from guidestar.evaluate import run_judge
from guidestar.io.images import SheetRow, save_png, sheet, to_pil
from guidestar.model.cascade_stages import stage_seed

LEVELS = (0.0, 0.1, 0.2, 0.3)
PLAIN = "cond | threshold(0.995)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("cascade", type=Path)
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--base", default="cfg(2)", help="guidance of the base")
    parser.add_argument("--scales", type=float, nargs="*", default=[1.5], help="cfg of stage two")
    parser.add_argument("--picture", type=Path, default=Path("docs/figures/cascade.png"))
    arguments = parser.parse_args()
    cascade = load(str(arguments.cascade))
    assert isinstance(cascade, Cascade), f"{arguments.cascade} is no cascade"
    (first, base), (second, large) = cascade.stages.items()
    judged_by, seeds = load("fashion-mnist"), range(arguments.samples)
    reference, floor = references(judged_by)
    names = [base.classes[k % len(base.classes)] for k in seeds]
    wanted = torch.tensor([k % len(base.classes) for k in seeds])
    small = base.sample(
        names,
        seeds=[stage_seed(s, first) for s in seeds],
        steps=arguments.steps,
        guidance=arguments.base,
    ).images

    def enlarged(guidance: str, level: float, cond: list[str] | str) -> Tensor:
        parts = []
        for k in range(0, len(small), 50):
            part = slice(k, k + 50)
            made = upscale(
                large,
                small[part],
                cond if isinstance(cond, str) else cond[part],
                guidance=guidance,
                augmentation=level,
                seeds=[stage_seed(s, second) for s in seeds[part]],
                steps=arguments.steps,
            )
            parts.append(made.images)
        return torch.cat(parts)

    side = large.shape[-1]
    rows: dict[str, Callable[[], Tensor]] = {
        "base, bicubic": lambda: F.interpolate(small, size=(side, side), mode="bicubic").clamp(
            -1, 1
        )
    }
    for level in LEVELS:
        rows[f"with the class, {level:g}"] = lambda s=level: enlarged(PLAIN, s, names)
        rows[f"without the class, {level:g}"] = lambda s=level: enlarged(PLAIN, s, "")
    for scale in arguments.scales:
        text = f"cfg({scale:g}) | threshold(0.995)"
        rows[f"cfg({scale:g}) of the class, 0.1"] = lambda t=text: enlarged(t, 0.1, names)
    print("| second stage | accuracy | Fréchet | diversity |\n| --- | --- | --- | --- |")
    print(line("1,000 training images", scores(floor, reference, 10)))
    pictures = []
    for name, make in rows.items():
        images = make()
        found = scores(run_judge(judged_by.need_judge(), images, wanted), reference, 10)
        print(line(name, found), flush=True)
        pictures.append(SheetRow(label=name, images=to_pil(images[:10])))
    title = f"{large.name}: the same pictures of the base, enlarged"
    save_png(
        sheet(pictures, columns=[n.replace(" ", "\n") for n in names[:10]], title=title, scale=2),
        arguments.picture,
    )


def line(name: str, found: dict[str, object]) -> str:
    return (
        f"| {name} | {found['accuracy']:.1%} | {found['frechet']:.3f} | {found['diversity']:.2f} |"
    )


if __name__ == "__main__":
    main()
