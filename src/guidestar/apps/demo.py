"""The demonstration: one model and the same seeds under every kind of guidance, measured."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor

from ..io.files import make_folder
from ..io.images import SheetRow, save_png, sheet, to_pil, write_text
from ..model.model import Model, Watch

GUIDANCES = (
    ("unguided", "uncond"),
    ("by the classifier", "uncond + classifier(3)"),
    ("by the classifier", "uncond + classifier(10)"),
    ("by its condition", "cfg(1)"),
    ("by its condition", "cfg(2)"),
    ("by its condition", "cfg(4)"),
    ("by both", "cfg(2) + classifier(1)"),
    ("by both", "cfg(4) + classifier(1)"),
)
STEPS_EXPRESSION = "cfg(3) + classifier(2)"
STEPS = 20


@dataclass(frozen=True, kw_only=True)
class Result:
    """Figures of one expression: the judge's accuracy, network evaluations a sample, seconds."""

    how: str
    expression: str
    accuracy: float
    nfe: float
    seconds: float


def demo(
    model: Model,
    out: Path | str,
    *,
    seeds: int = 4,
    show: int = 2,
    watch: Watch | None = None,
    students: Sequence[Model] = (),
) -> list[Result]:
    """Write ``demo.png`` and ``steps.png`` under ``out``, and return the rows of figures.

    Args:
        model: a class model with a judge and a classifier.
        out: folder.
        seeds: samples of each class.
        show: how many of them are shown.
        watch: called with the solver steps done and in all.
        students: of the model; each gets a row at its own setting.

    Raises:
        ValueError: the model lacks one of them.
    """
    if model.judge is None or not model.classes or "classifier" not in model.classifiers:
        raise ValueError(
            "the demonstration needs a class model with a classifier and a judge, as "
            f"fashion-mnist has; {model.name!r} lacks one of them"
        )
    folder = make_folder(Path(out))
    cond = [name for name in model.classes for _ in range(seeds)]
    total, rows, results = (len(GUIDANCES) + len(students) + 1) * STEPS, [], []
    every = [(how, expression, model, STEPS) for how, expression in GUIDANCES]
    every += [(of_student(s), None, s, None) for s in students]
    for k, (how, given, used, steps) in enumerate(every):
        step = (lambda done, _, k=k: watch(k * STEPS + done, total)) if watch else None
        start = time.perf_counter()
        run = used.sample(
            cond,
            guidance=given,
            seeds=list(range(seeds)) * len(model.classes),
            steps=steps,
            max_rows=256,
            watch=step,
        )
        expression = str(used.expression(given, steps=steps))
        seconds = time.perf_counter() - start
        hit = judged(model, run.images, cond)
        results.append(
            Result(
                how=how, expression=expression, accuracy=hit, nfe=run.nfe, seconds=round(seconds, 2)
            )
        )
        pictures = [p for i, p in enumerate(run.pil()) if i % seeds < show]
        rows.append(SheetRow(label=f"{how}\n{expression}\njudge: {hit:.0%}", images=pictures))
    title = (
        f"{model.name}: the same {seeds} seeds, steered in different ways (judge: share of "
        f"{len(cond)} samples that an independent network takes for the class above)"
    )
    save_png(sheet(rows, columns=model.classes, span=show, title=title), folder / "demo.png")
    save_png(draw_steps(model), folder / "steps.png")
    if watch:
        watch(total, total)
    return results


def of_student(student: Model) -> str:
    """Describe a student in a table: what it is of, and its steps."""
    about = student.card.get("student") or {}
    return f"student of {about['guidance']}, {student.defaults.get('steps')} steps"


def write_figures(results: Mapping[str, Sequence[Result]], folder: Path) -> None:
    """Write the rows of every demonstrated model to ``demo.json``."""
    about = {
        "threads": torch.get_num_threads(),
        "models": {name: [asdict(r) for r in rows] for name, rows in results.items()},
    }
    write_text(json.dumps(about, indent=2) + "\n", folder / "demo.json")


@torch.inference_mode()
def judged(model: Model, images: Tensor, cond: Sequence[str | int]) -> float:
    """Return the share of ``images`` that the model's judge takes for their class."""
    index, judge = model.need_classes().index, model.need_judge()
    wanted = torch.tensor([index(c) for c in cond], device=images.device)
    return float((judge(images).argmax(1) == wanted).double().mean())


def draw_steps(
    model: Model, *, names: Sequence[str] = ("dress", "ankle boot"), columns: int = 10
) -> Image:
    """Draw x_t, the guided clean estimate and each term's push, along the steps of a run."""
    names = [n for n in names if n in model.classes] or list(model.classes[:2])
    states = list(
        model.trajectory(
            names, guidance=STEPS_EXPRESSION, seeds=[3] * len(names), steps=STEPS, explain=True
        )
    )
    chosen = [states[round(i * (len(states) - 1) / (columns - 1))] for i in range(columns)]
    rows = []
    for k, name in enumerate(names):
        noisy = torch.stack([s.prediction.x_t[k] / s.step.t.norm for s in chosen])
        rows.append(SheetRow(label=f"{name}\nx_t", images=to_pil(noisy / 2)))
        rows.append(
            SheetRow(
                label="guided estimate of x0",
                images=to_pil(torch.stack([s.prediction.x0[k] for s in chosen])),
            )
        )
        for term in chosen[0].pushes or {}:
            pushes = torch.stack(
                [
                    (s.pushes or {})[term][k]
                    if term in (s.pushes or {})
                    else torch.zeros(model.shape)
                    for s in chosen
                ]
            )
            largest = pushes.abs().amax((1, 2, 3), keepdim=True).clamp_min(1e-8)
            rows.append(SheetRow(label=f"push of {term}", images=to_pil(pushes / largest)))
    labels = [f"rho {float(torch.as_tensor(s.step.t.rho)):.2g}" for s in chosen]
    title = (
        f"{STEPS_EXPRESSION}, from noise to image: grey is no push, white adds light, black "
        "takes it (each push at its own largest)"
    )
    return sheet(rows, columns=labels, title=title, scale=3)
