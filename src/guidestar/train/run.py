"""Run a recipe: its parts one after the other, each from its checkpoint, in one process or many."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core.rng import Draw
from ..data.latents import is_unencoded, pictures_of
from ..data.source import Source
from ..io.files import make_folder, whole_or_not
from .build.autoencoders import vae_folder, write_autoencoder
from .build.clips import take_from_clip, uses_clip
from .build.data import in_latents, sources
from .build.networks import build_part, source_of
from .build.trial import check_out, foresee
from .loop.checkpoints import read_checkpoint
from .loop.ema import EMA
from .loop.fit import fit
from .loop.lock import locked
from .loop.memory import activations, training_memory
from .loop.origins import of_tensors, read_origins
from .loop.signals import Stop
from .loop.trainer import Trainer
from .objectives.decoding import Decoding
from .objectives.objective import Built, Progress, TrainSettings, profiles
from .preview import Board, preview_hook, reconstruction_hook
from .progress import Reporter
from .recipe.parts import OF_PICTURES, PARTS, AutoencoderPart, CLIPPart, DecoderPart, NetworkPart
from .recipe.schema import Recipe

if TYPE_CHECKING:
    from accelerate import Accelerator


def train_settings(recipe: Recipe, part: str) -> TrainSettings:
    """Return how long and how fast a part trains."""
    return TrainSettings(
        **getattr(recipe, part).train.model_dump(), seed=recipe.seed + PARTS.index(part)
    )


_IDLE = ("cache", "test", "max_bad", "about")
"""Keys of data that shape no weights; neither does their path, in whose place is their identity."""


def _unset(recipe: Recipe) -> set[str]:
    """Return newer keys that are not used, which older checkpoints lack."""
    return {key for key in ("reduced", "motion") if getattr(recipe.data, key) is None}


def describe_origin(recipe: Recipe, part: str) -> dict[str, object]:
    """Return all that shapes a part's weights besides its settings, by dotted names."""
    spec = getattr(recipe, part)
    own = spec.model_dump(
        exclude={"train", "snapshots", "calibrate"}
    )  # which snapshots are kept shapes nothing
    if isinstance(spec, AutoencoderPart | DecoderPart):  # they take no condition, and no noise
        idle = {"path", *_IDLE, "vae", "columns", "classes", *_unset(recipe)}
        data = recipe.data.model_dump(exclude=idle)
        own.pop("spread", None)
        return _dotted({"data": data, part: own})
    noise = (
        {}
        if part == "judge" or isinstance(spec, CLIPPart)
        else {
            "schedule": recipe.schedule.model_dump(),
            "levels": recipe.levels.model_dump(),
            "objective": recipe.objective.model_dump(
                exclude={"motion"} if recipe.objective.motion is None else None
            ),
        }
    )
    conditions = {name: spec.model_dump() for name, spec in (recipe.conditions or {}).items()}
    tables = {
        **noise,
        "data": recipe.data.model_dump(exclude={"path", *_IDLE, *_unset(recipe)}),
        "conditions": conditions,
        part: own,
        "": {"joint_dropout": recipe.joint_dropout},
    }
    if recipe.upscale is not None:
        tables["upscale"] = recipe.upscale.model_dump()
    return _dotted(tables)


def _dotted(tables: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {
        f"{table}.{key}".strip("."): _plain(value)
        for table, values in tables.items()
        for key, value in values.items()
    }


def _plain(value: object) -> object:
    """Return a value with dicts and lists in the place of mappings and tuples."""
    return (
        {str(k): _plain(v) for k, v in value.items()}
        if isinstance(value, Mapping)
        else [_plain(v) for v in value]
        if isinstance(value, list | tuple)
        else value
    )


def checkpoint(out: Path, part: str) -> Path:
    """Return where a part's checkpoint is kept."""
    return out / "parts" / f"{part}.pt"


def averaged(
    recipe: Recipe, part: str, out: Path, source: Source, average: str | None = None
) -> Any:
    """Return a part with its averaged weights (the first average, or the one named), from its
    checkpoint, frozen.

    Raises:
        ValueError: there is no checkpoint, or the training of this part has not come to its end.
    """
    if not checkpoint(out, part).is_file():
        raise ValueError(f"{out} holds no trained {part!r} yet; train it first (--only {part})")
    module, state = (
        build_part(recipe, part, source, out).module,
        read_checkpoint(checkpoint(out, part)),
    )
    if state["done"] < getattr(recipe, part).train.steps:
        raise ValueError(
            f"{part!r} is trained for {state['done']} of its {getattr(recipe, part).train.steps} "
            f"steps; let it finish first (--only {part})"
        )
    module.load_state_dict(state["module"])
    name = average or next(iter(state["averages"]))
    ema = EMA(module, next(p for p in profiles(train_settings(recipe, part)) if p.name == name))
    ema.load_state_dict(state["averages"][name])
    module.load_state_dict(ema.weights(), strict=False)
    return module.requires_grad_(False).eval()


def snapshot_file(out: Path, part: str, step: int) -> Path:
    """Return where a part's averaged weights after ``step`` steps are kept."""
    return out / "snapshots" / f"{part}-{step:06d}.safetensors"


def snapshot_steps(recipe: Recipe, part: str) -> list[int]:
    """Return after which steps a part's averaged weights are kept."""
    spec = getattr(recipe, part)
    return sorted(
        {max(1, round(share * spec.train.steps)) for share in getattr(spec, "snapshots", ())}
    )


def save_snapshot(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write weights in float16, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    from safetensors.torch import save  # its own writing of files hides the reason of a failure

    with whole_or_not(path) as beside:
        beside.write_bytes(
            save(
                {
                    k: (v.half() if v.is_floating_point() else v).cpu().contiguous()
                    for k, v in weights.items()
                }
            )
        )


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


def dry_run(
    recipe: Recipe, only: Sequence[str] | None = None, say: Callable[[str], None] | None = None
) -> tuple[list[str], Tensor]:
    """Describe a training in lines, and draw its first batch, without training anything.

    Returns:
        The lines, and the first samples ``[B, *S]`` (of a latent model, pictures).
    """
    source, aside = sources(recipe, say)
    count = "a stream" if source.size is None else f"{source.size:,} samples"
    columns = (
        ", ".join(
            f"{n} ({c.kind}{f', {len(c.classes)} classes' if c.classes else ''})"
            for n, c in source.columns.items()
        )
        or "none"
    )
    lines = [
        f"data: {count} of "
        f"{list(source.shape)}{'' if aside is None else f', {aside.size:,} held out'}; columns: "
        f"{columns}"
    ]
    rows = list(range(min(recipe.model.train.batch, source.size or recipe.model.train.batch)))
    first = source.batch(rows, Draw(rows))[0]
    shown = first if recipe.data.vae is None else pictures_of(source).batch(rows, Draw(rows))[0]
    lines[0] += (
        f"; the first batch has mean {first.mean():.3g} and standard deviation "
        f"{first.std(correction=0):.3g}"
    )
    built = {part: build_part(recipe, part, source) for part in recipe.parts(only)}
    foresee(recipe, built, source)
    return lines + [
        _line(recipe, part, b, source_of(part, source)) for part, b in built.items()
    ], shown


def _line(recipe: Recipe, part: str, built: Built, source: Source) -> str:
    s = train_settings(recipe, part)
    held, each = training_memory(built.module, s, source.shape), activations(built, source)
    at_once = -(-s.batch // s.accumulate)
    passes = (
        ""
        if source.size is None
        else f", {s.steps * s.batch / source.size:.1f} passes over the data"
    )
    total = sum(held.values()) + at_once * each
    parameters = sum(p.numel() for p in built.module.parameters())
    return (
        f"{part}: {parameters:,} parameters; {s.steps:,} steps of {s.batch}{passes}; about "
        f"{total:,.0f} MB of memory in one process"
    )
