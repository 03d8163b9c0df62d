"""Train the stages of a cascade, one after the other, and write its folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..io.images import write_text
from ..model.card import markdown_table
from ..model.cascade import Cascade, load_cascade, write_cascade_index
from ..model.manifest import NAME, read_about
from .export import assemble
from .loop.signals import Stop
from .progress import Reporter
from .recipe.cascade import WORK, CascadeRecipe
from .run import train


def train_cascade(
    spec: CascadeRecipe,
    out: Path,
    report: Reporter | None = None,
    *,
    only: list[str] | None = None,
    stop: Stop | None = None,
    say: Callable[[str], None] | None = None,
    accept_data: bool = False,
    command: str = "guidestar train",
) -> Cascade | None:
    """Train stages under ``out / "stages"``, each from its checkpoints; write their models.

    Args:
        spec: the recipe.
        out: folder of all that is written.
        report: as of `guidestar.train.run.train`; parts are named "STAGE/PART".
        only: which stages to train; by default all.
        stop: as of `train`.
        say: as of `train`.
        accept_data: as of `train`.
        command: for the cards.

    Returns:
        The cascade where all its stages are trained; None where the training was stopped, or
        stages are missing.

    Raises:
        ValueError: as of `train`; a stage needs the text encoder of the first, which is not there.
        OSError: as of `train`.
    """
    first = next(iter(spec.stages))
    for stage in spec.chosen(only):
        if stage != first and spec.clip is not None and not _is_there(spec, out, first):
            raise ValueError(
                f"{stage!r} needs the text encoder that is trained with {first!r}; train that "
                f"first (--only {first})"
            )
        recipe, work = spec.recipe(stage, out), out / WORK / stage
        named = report and (lambda part, *rest, at=stage: report(f"{at}/{part}", *rest))
        if not train(recipe, work, named, stop=stop, say=say, accept_data=accept_data):
            return None
        if stop is not None and stop.agreed:
            return None
        assemble(recipe, work, command=command, folder=out / spec.name / stage)
    if not all(_is_there(spec, out, stage) for stage in spec.stages):
        return None
    return finish_cascade(spec, out, command)


def _is_there(spec: CascadeRecipe, out: Path, stage: str) -> bool:
    return (out / spec.name / stage / NAME).is_file()


def finish_cascade(spec: CascadeRecipe, out: Path, command: str) -> Cascade:
    """Write the cascade's index and card, and return the cascade."""
    folder = out / spec.name
    about = {"summary": spec.summary or f"a cascade of {len(spec.stages)} stages"}
    about |= {"licence": spec.licence or "unknown", "command": command}
    last = read_about(folder / list(spec.stages)[-1])
    about |= {key: last[key] for key in ("recipe", "data_identity") if key in last}
    write_cascade_index(folder, list(spec.stages), about)
    cascade = load_cascade(folder)
    rows = [
        (
            f"[{name}]({name}/README.md)",
            " × ".join(map(str, model.shape)),
            f"{model.card['parameters']['model']:,}",
            f"`{model.defaults.get('guidance')}`",
            model.defaults.get("steps"),
        )
        for name, model in cascade.stages.items()
    ]
    head = ("stage", "pictures", "parameters", "guidance", "steps")
    text = (
        f"# {spec.name}\n\n{about['summary']}. Licence: {about['licence']}.\n\n"
        f"{markdown_table(head, rows)}\n\nTrained by `{command}`.\n\n"
        f"```sh\nguidestar sample {folder} --num 4 --grid\nguidestar upscale "
        f"{folder / list(spec.stages)[-1]} picture.png --out larger\n```\n"
    )
    write_text(text, folder / "README.md")
    return cascade
