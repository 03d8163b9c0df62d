"""The demonstration of a text model: the same seeds, steered by CLIP, by their captions, and by
both.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from PIL.Image import Image

from ..io.images import SheetRow, save_png, sheet
from ..model.model import Model, Watch
from ..model.protocols import TextJudge
from .demo import Result, of_student
from .measure_text import Ruler, embed_images

DEMO_PROMPTS = (
    "blue heart, flat style",
    "grinning face, noto style",
    "cat face, 3d style",
    "pizza, gradient style",
    "rocket, flat style",
    "red apple, noto style",
    "flag: Japan, 3d style",
    "sunflower, flat style",
)
COLUMNS = (
    ("unguided", "uncond"),
    ("by CLIP", "uncond + clip(4)"),
    ("by its caption", "cfg(1)"),
    ("by its caption", "cfg(2)"),
    ("by its caption", "cfg(4)"),
    ("by both", "cfg(3) + clip(0.5)"),
)
_STEPS = 20


def demo_text(
    model: Model,
    out: Path,
    *,
    seeds: int = 2,
    show: int = 2,
    watch: Watch | None = None,
    students: Sequence[Model] = (),
) -> list[Result]:
    """Write ``text.png`` under ``out``: prompts down, methods and scales across; return a row of
    figures for each column.

    The accuracy is the share of samples for which an independent CLIP has the prompt's caption
    among the first five of all captions that the model was trained on.

    Args:
        model: a text model with a measuring CLIP and a CLIP that guides.
        out: folder.
        seeds: samples of each prompt.
        show: how many of them are shown.
        watch: called with the solver steps done and in all.
        students: of the model; each gets a column at its own setting.

    Raises:
        ValueError: the model lacks one of them.
    """
    if (
        not isinstance(model.judge, TextJudge)
        or "clip" not in model.classifiers
        or "captions" not in model.card
    ):
        raise ValueError(
            "the demonstration needs a text model with a CLIP that measures, one that guides, and "
            f"its captions, as emoji; {model.name!r} lacks one of them"
        )
    ruler = Ruler.of(model.judge, model.card["captions"])
    prompts = [p for p in DEMO_PROMPTS for _ in range(seeds)]
    results, cells = [], []
    every = [(how, expression, model, _STEPS) for how, expression in COLUMNS]
    every += [(of_student(s), None, s, None) for s in students]
    for k, (how, given, used, steps) in enumerate(every):
        step = (
            (lambda done, _, k=k: watch(k * _STEPS + done, len(every) * _STEPS)) if watch else None
        )
        start = time.perf_counter()
        run = used.sample(
            prompts,
            guidance=given,
            seeds=list(range(seeds)) * len(DEMO_PROMPTS),
            steps=steps,
            max_rows=256,
            watch=step,
        )
        seconds = time.perf_counter() - start
        hit = ruler.scores(
            embed_images(model.judge, run.images), [p.partition(", ")[0] for p in prompts]
        )["top 5"]
        expression = str(used.expression(given, steps=steps))
        results.append(
            Result(
                how=how, expression=expression, accuracy=hit, nfe=run.nfe, seconds=round(seconds, 2)
            )
        )
        cells.append(run.pil())
    save_png(_picture(model, cells, results, seeds, show, len(ruler.texts)), out / "text.png")
    return results


def _picture(
    model: Model,
    cells: list[list[Image]],
    results: list[Result],
    seeds: int,
    show: int,
    captions: int,
) -> Image:
    rows = [
        SheetRow(
            label=p.replace(", ", "\n"),
            images=[c[i * seeds + j] for c in cells for j in range(show)],
        )
        for i, p in enumerate(DEMO_PROMPTS)
    ]
    heads = [f"{r.how}\n{r.expression}\ntop 5: {r.accuracy:.0%}" for r in results]
    title = (
        f"{model.name}: the same seeds (top 5: an independent CLIP ranks the caption among the "
        f"first 5 of {captions:,})"
    )
    return sheet(rows, columns=heads, span=show, title=title, scale=max(1, 96 // cells[0][0].width))


__all__ = ["COLUMNS", "DEMO_PROMPTS", "demo_text"]
