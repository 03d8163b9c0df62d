"""Run a recipe: its parts one after the other, each from its checkpoint, in one process or many."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..data.latents import is_unencoded, pictures_of
from ..data.source import Source
from ..io.files import make_folder
from .build.autoencoders import vae_folder, write_autoencoder
from .build.clips import take_from_clip, uses_clip
from .build.data import in_latents, sources
from .build.networks import build_part, source_of
from .build.trial import check_out, foresee
from .loop.fit import fit
from .loop.lock import locked
from .loop.origins import of_tensors, read_origins
from .loop.signals import Stop
from .loop.trainer import Trainer
from .objectives.decoding import Decoding
from .objectives.objective import Progress
from .origin import describe_origin
from .preview import Board, preview_hook, reconstruction_hook
from .progress import Reporter
from .recipe.parts import OF_PICTURES, AutoencoderPart, DecoderPart, NetworkPart
from .recipe.schema import Recipe
from .snapshots import (
    averaged,
    checkpoint,
    save_snapshot,
    snapshot_file,
    snapshot_steps,
    train_settings,
)

if TYPE_CHECKING:
    from accelerate import Accelerator


def train_part(
    recipe: Recipe,
    part: str,
    out: Path,
    source: Source,
    *,
    aside: Source | None = None,
    stop: Stop | None = None,
    accelerator: Accelerator | None = None,
    accept_data: bool = False,
) -> Generator[Progress, None, None]:
    """Train one part, from its checkpoint if there is one; write its snapshots and previews.

    Raises:
        ValueError: it learns from latents of an autoencoder that is not trained.
    """
    if accept_data and (recipe.data.standardise or recipe.data.kind == "motion"):
        what = (
            "the standardisation of motions" if recipe.data.kind == "motion" else "data.standardise"
        )
        raise ValueError(
            f"{what} takes its units from the data, so a training cannot go on with "
            "other data; leave --accept-data out, or give another --out"
        )
    built, own = build_part(recipe, part, source, out), source_of(part, source)
    if is_unencoded(own) or (part == "decoder" and vae_folder(recipe, out) is None):
        raise ValueError(
            f"{out} holds no trained autoencoder yet, whose latents {part!r} learns from; train "
            "it first (--only autoencoder)"
        )
    if uses_clip(recipe, part):
        take_from_clip(built.module, averaged(recipe, "clip", out, source))
    vae = None if part in OF_PICTURES and part != "decoder" else vae_folder(recipe, out)
    made = describe_origin(recipe, part) | read_origins(recipe, part, built.module, vae)
    if isinstance(built.objective, Decoding) and built.objective.features:
        clip = averaged(recipe, "clip", out, source)
        made |= {"clip (its weights)": of_tensors(clip.state_dict())}
        built = replace(built, objective=replace(built.objective, clip=clip))
    trainer = Trainer(
        built.module,
        built.objective,
        own,
        train_settings(recipe, part),
        made,
        prepare=built.prepare,
        accelerator=accelerator,
        accept_data=accept_data,
    )
    keep = set(snapshot_steps(recipe, part))

    def snapshot(trainer: Trainer) -> None:
        if trainer.done in keep and trainer.accelerator.is_main_process:
            save_snapshot(trainer.ema.weights(), snapshot_file(out, part, trainer.done))

    hooks: list[Callable[[Trainer], None]] = [snapshot]
    with closing(Board(out / "tensorboard" / part, trainer)) as board:
        if recipe.preview.every:
            hooks += _previews(recipe, part, out, source, aside, board)
        more = {"every": recipe.checkpoint_seconds, "keep": recipe.keep_checkpoints}
        with closing(fit(trainer, checkpoint(out, part), after=hooks, stop=stop, **more)) as steps:
            for progress in steps:
                board.add(progress)
                yield progress


def _previews(
    recipe: Recipe, part: str, out: Path, source: Source, aside: Source | None, board: Board
) -> list[Callable[[Trainer], None]]:
    """Return what draws a part's pictures: guided samples, or reconstructions of what is held out
    (of what is trained on where nothing is).
    """
    spec = getattr(recipe, part)
    if isinstance(spec, NetworkPart):
        return [preview_hook(recipe, part, out, source, board)]
    if isinstance(spec, AutoencoderPart | DecoderPart):
        return [reconstruction_hook(recipe, part, out, pictures_of(aside or source), board)]
    return []


def train(
    recipe: Recipe,
    out: Path,
    report: Reporter | None = None,
    *,
    only: Sequence[str] | None = None,
    stop: Stop | None = None,
    say: Callable[[str], None] | None = None,
    accept_data: bool = False,
) -> bool:
    """Train the parts of ``recipe`` under ``out``; each goes on from its checkpoint.

    Args:
        recipe: what to train.
        out: folder of checkpoints, snapshots, pictures and TensorBoard's logs.
        report: called after each step with the part, its progress and its steps.
        only: which parts to train; by default all.
        stop: on its request the training stops after a step, and is saved.
        say: called with a line about each image that is skipped.
        accept_data: go on from checkpoints though samples were added, removed or changed since.

    Returns:
        Whether the training went to its end.

    Raises:
        ValueError: ``only`` names no part, the data do not fit the recipe, network and data do not
            fit, or a checkpoint is damaged or of another recipe.
        OSError: ``out`` cannot be written to, or the data are missing; nothing was trained.
        NotFinite: a loss is not finite.
        Locked: another training runs in ``out``.
    """
    from accelerate import Accelerator

    parts = recipe.parts(only)
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    with locked(make_folder(out)) if accelerator.is_main_process else nullcontext():
        return _train(
            recipe,
            parts,
            out,
            accelerator,
            report=report,
            stop=stop,
            say=say,
            accept_data=accept_data,
        )


def _train(
    recipe: Recipe,
    parts: Sequence[str],
    out: Path,
    accelerator: Accelerator,
    *,
    report: Reporter | None,
    stop: Stop | None,
    say: Callable[[str], None] | None,
    accept_data: bool,
) -> bool:
    """Train ``parts``; arguments as in `train`."""
    check_out(recipe, out)
    with accelerator.main_process_first():  # so that caches are written once
        source, aside = sources(recipe, say, out)
    with accelerator.main_process_first():
        # Refuse what cannot be before an hour of the part before it, or at the very end.
        foresee(recipe, {part: build_part(recipe, part, source, out) for part in parts}, source)
    for part in parts:
        steps = getattr(recipe, part).train.steps
        with closing(
            train_part(
                recipe,
                part,
                out,
                source,
                aside=aside,
                stop=stop,
                accelerator=accelerator,
                accept_data=accept_data,
            )
        ) as progresses:
            for progress in progresses:
                if report and accelerator.is_main_process:
                    report(part, progress, steps)
        if stop is not None and stop.agreed:
            return False
        accelerator.wait_for_everyone()
        if part == "autoencoder":
            with accelerator.main_process_first():
                write_autoencoder(recipe, averaged(recipe, part, out, source), source, out)
                source = in_latents(recipe, source, out)
    return True
