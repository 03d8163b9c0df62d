"""Assemble a model folder from a finished training, and measure its parts on held-out data."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.identity import identify
from ..data.source import Source
from ..diffusers.export import describe_pipeline
from ..diffusers.read.vae import Decoder
from ..io.documents import JSONObject
from ..io.files import Damaged
from ..model.card import write_card
from ..model.folder_writing import save, write_average
from ..model.model import Model
from ..networks.lengths import LengthEncoder
from ..networks.low_resolution import low_of
from .build.captions import captions_of
from .build.data import body_of, sources, standardiser_of
from .build.networks import build_part
from .build.schedules import process, scheduler_config
from .examine import Trained, examine_parts
from .loop.checkpoints import read_checkpoint
from .objectives.objective import profiles
from .preview import decoder_of
from .recipe.schema import Recipe
from .snapshots import averaged, checkpoint, snapshot_file, snapshot_steps, train_settings


def assemble(
    recipe: Recipe, out: Path, *, command: str = "guidestar train", folder: Path | None = None
) -> Model:
    """Make a model of the trained parts under ``out`` and write it to ``folder``, by default
    ``out / recipe.name``.

    A noise-aware classifier is measured on held-out data: a temperature is fitted at each level,
    and its default interval ends at the noise ratio where its accuracy falls below 1.2 times
    chance.
    """
    source, aside = sources(recipe, out=out)
    trained = {part: averaged(recipe, part, out, source) for part in recipe.parts()}
    about = _about(recipe, out, trained, source, aside, command)
    model = model_of(recipe, trained, source, about, out)
    model.nets |= _snapshots(recipe, out, source)
    folder = folder or out / recipe.name
    save(model, folder)
    for name in [p.name for p in profiles(train_settings(recipe, "model"))][1:]:
        write_average(averaged(recipe, "model", out, source, name), folder, name)
    write_card(
        model.name,
        {**model.card, "defaults": model.defaults, "diffusers": describe_pipeline(model)},
        folder,
    )
    return model


def model_of(
    recipe: Recipe, trained: Trained, source: Source, about: JSONObject, out: Path | None = None
) -> Model:
    """Return the model of trained parts; ``about`` is its card, ``out`` the folder of the parts."""
    main, e = trained["model"], recipe.export
    encoder = main.encoder.alone()
    guides = {"classifier": "classifier", "noisy_clip": "clip", "clip": "clean_clip"}
    return Model(
        name=recipe.name,
        denoiser=main.denoiser,
        schedule=process(recipe).schedule,
        shape=tuple(source.shape),
        encoder=encoder,
        decode=Decoder(trained["decoder"])
        if "decoder" in trained
        else decoder_of(recipe, source, out),
        nets={"weak": (trained["weak"].denoiser, trained["weak"].encoder.alone())}
        if "weak" in trained
        else {},
        classifiers={name: trained[part] for part, name in guides.items() if part in trained},
        judge=trained.get("measuring_clip", trained.get("judge")),
        defaults={
            "guidance": _guidance(recipe, encoder),
            "steps": e.steps,
            "solver": e.solver,
            "grid": e.grid,
        },
        card=about,
    )


def _guidance(recipe: Recipe, encoder: object) -> str:
    """Return the guidance that the finished model recommends: no terms where there is no condition;
    a super-resolution stage is thresholded unless the recipe says otherwise.
    """
    wanted = recipe.export.guidance
    if low_of(encoder) is not None and "guidance" not in recipe.export.model_fields_set:
        wanted = f"{wanted} | threshold(0.995)"
    if encoder is not None and not isinstance(encoder, LengthEncoder):
        return wanted
    posts = wanted.partition("|")[2]
    return f"uncond |{posts}" if posts else "uncond"


def _snapshots(recipe: Recipe, out: Path, source: Source) -> JSONObject:
    """Return the kept early weights as further networks, for autoguidance: ``step-300``, …."""
    nets = {}
    for step in snapshot_steps(recipe, "model") if recipe.export.snapshots else ():
        module: Any = build_part(recipe, "model", source, out).module
        module.load_state_dict(_snapshot(snapshot_file(out, "model", step)), strict=False)
        module.requires_grad_(False).eval()
        nets[f"step-{step}"] = (module.denoiser, module.encoder.alone())
    return nets


def _snapshot(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise Damaged(
            f"{file}: cannot be read ({error}); set export.snapshots = false to finish the model "
            "without it"
        ) from error


def _about(
    recipe: Recipe,
    out: Path,
    trained: Trained,
    source: Source,
    aside: Source | None,
    command: str,
) -> JSONObject:
    checkpoints = {part: read_checkpoint(checkpoint(out, part)) for part in trained}
    about: JSONObject = {
        "summary": recipe.summary or _summary(recipe, source),
        "licence": recipe.licence or "unknown",
        "data": _data(recipe, source),
        "data_identity": identify(source),
        "scheduler": scheduler_config(recipe),
        "shape": list(source.shape),
        "averages": [p.name for p in profiles(train_settings(recipe, "model"))],
        "command": command,
        "machine": machine(),
        "parameters": {
            part: sum(p.numel() for p in net.parameters()) for part, net in trained.items()
        },
        "seconds": {part: round(c["seconds"]) for part, c in checkpoints.items()},
        "loss": {part: round(c["loss"], 5) for part, c in checkpoints.items()},
        "recipe": recipe.model_dump(mode="json", exclude_none=True),
    }
    scale, body = standardiser_of(source), body_of(source)
    if body is not None:
        about["motion"] = body.to_json()
    if scale is not None:
        about["scale"] = {"mean": scale.mean.tolist(), "std": scale.std.tolist()}
    if "measuring_clip" in trained and source.size is not None:  # a stream has no end
        about["captions"] = sorted(
            set(captions_of(source, range(min(source.size, 20_000)), shortest=True))
        )
    return about | examine_parts(recipe, trained, source, aside)


def _summary(recipe: Recipe, source: Source) -> str:
    conditions = (
        ", ".join(recipe.conditions) if recipe.conditions is not None else ", ".join(source.columns)
    )
    return (
        f"samples of {list(source.shape)}, "
        f"{f'conditional on {conditions}' if conditions else 'unconditional'}, "
        f"{recipe.predicts()}-prediction ({recipe.schedule.kind})"
    )


def _data(recipe: Recipe, source: Source) -> str:
    if recipe.data.kind == "fashion-mnist":
        return (
            "Fashion-MNIST (60,000 training and 10,000 test images of clothing; Zalando SE, "
            "MIT licence)"
        )
    if recipe.data.about:
        return recipe.data.about
    return (
        f"{recipe.data.path} ({recipe.data.kind}, "
        f"{'a stream' if source.size is None else f'{source.size:,} training samples'})"
    )


def machine() -> str:
    """Describe this machine in a few words."""
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{torch.get_num_threads()} CPU threads ({platform.machine()})"
    )
    return f"{device}, torch {torch.__version__}"
