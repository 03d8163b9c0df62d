"""Assemble a model folder from a finished training, and measure its parts on held-out data."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.levels import Schedule
from ..core.rng import Draw
from ..data.identity import identify
from ..data.latents import pictures_of
from ..data.source import Source
from ..diffusers.export import describe_pipeline
from ..diffusers.read.vae import decoded, encoded
from ..evaluate import calibration, psnr, ssim
from ..evaluate.classifier_levels import trusted_rho
from ..evaluate.retrieval import retrieval
from ..io.documents import JSONObject
from ..io.files import Damaged
from ..model.card import write_card
from ..model.folder import save, write_average
from ..model.model import Model
from ..networks.clip import CLIP
from ..networks.low_resolution import low_of
from .build.captions import captions_of
from .build.data import sources, standardiser_of
from .build.networks import build_part, classifier_column
from .build.schedules import process, scheduler_config
from .loop.checkpoints import read_checkpoint
from .objectives.objective import profiles
from .preview import decoder_of
from .recipe.parts import ClassifierPart
from .recipe.schema import Recipe
from .run import averaged, checkpoint, snapshot_file, snapshot_steps, train_settings

Trained = Mapping[str, Any]
"""The trained parts by name: a conditional model, a classifier, or a CLIP."""
RHOS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 40.0, 80.0)
"""Noise ratios at which a noise-aware classifier is measured."""
MOST_EXAMINED = 4000
"""Most held-out samples that measure a classifier: half to calibrate, half to report."""


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
        decode=decoder_of(recipe, source, out),
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
    if encoder is not None:
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
    scale = standardiser_of(source)
    if scale is not None:
        about["scale"] = {"mean": scale.mean.tolist(), "std": scale.std.tolist()}
    if "measuring_clip" in trained and source.size is not None:  # a stream has no end
        about["captions"] = sorted(
            set(captions_of(source, range(min(source.size, 20_000)), shortest=True))
        )
    return about | _examined(recipe, trained, source, aside)


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


def _examined(recipe: Recipe, trained: Trained, source: Source, aside: Source | None) -> JSONObject:
    found: JSONObject = {}
    if aside is None:
        return found
    if "classifier" in trained and recipe.classifier is not None:
        x, y = gather_samples(aside, recipe.classifier, MOST_EXAMINED)
        found |= (examine if y.dtype == torch.int64 else examine_regressor)(
            trained["classifier"], recipe, x, y
        )
    if "judge" in trained and recipe.judge is not None:
        found["judge_accuracy"] = accuracy(
            trained["judge"], *gather_samples(pictures_of(aside), recipe.judge)
        )
    if "autoencoder" in trained:
        found["autoencoder"] = examine_autoencoder(trained["autoencoder"], pictures_of(aside))
    clips = {part: net for part, net in trained.items() if isinstance(net, CLIP)}
    if clips:
        found["retrieval"] = {
            part: examine_clip(net, recipe, pictures_of(aside))
            for part, net in clips.items()
            if not net.noise_aware
        }
    if "noisy_clip" in clips:
        found["noisy_clip"] = examine_noisy_clip(clips["noisy_clip"], recipe, aside)
    return found


def _captioned(source: Source, most: int = MOST_EXAMINED) -> tuple[Tensor, list[str]]:
    """Return up to ``most`` held-out pictures and the first caption of each, no caption twice."""
    rows = list(range(min(source.size or 0, most)))
    x, captions = source.batch(rows, Draw(rows))[0], captions_of(source, rows)
    first = {caption: i for i, caption in reversed(list(enumerate(captions)))}
    kept = sorted(first.values())
    return x[kept], [captions[i] for i in kept]


@torch.inference_mode()
def examine_autoencoder(vae: Any, pictures: Source) -> dict[str, Any]:
    """Report how near held-out pictures come out: PSNR (dB) and SSIM, their means.

    The numbers of a picture and of its latents are given too.
    """
    rows = torch.arange(min(pictures.size or 0, MOST_EXAMINED))
    near, alike, shape = [], [], [0]
    for part in map(Tensor.tolist, rows.split(32)):
        x = pictures.batch(part, Draw(part))[0]
        z = encoded(vae, x)
        made, shape = decoded(vae, z).clamp(-1, 1), list(z.shape[1:])
        near.append(psnr(made, x))
        if min(x.shape[-2:]) >= 11:
            alike.append(ssim(made, x))
    found = {"psnr": round(float(torch.cat(near).mean()), 3), "of": len(rows)}
    if alike:
        found["ssim"] = round(float(torch.cat(alike).mean()), 4)
    return {**found, "pictures": list(pictures.shape), "latents": shape}


@torch.inference_mode()
def examine_clip(clip: CLIP, recipe: Recipe, aside: Source) -> dict[str, float]:
    """Measure a clean CLIP: R@1 and R@5 from held-out pictures to captions, and back."""
    x, captions = _captioned(aside)
    return {
        k: round(v, 4)
        for k, v in retrieval(clip.embed_image(x), clip.embed_captions(captions)).items()
    } | {"of": len(captions)}


@torch.inference_mode()
def examine_noisy_clip(clip: CLIP, recipe: Recipe, aside: Source) -> JSONObject:
    """Measure a noise-aware CLIP by level (R@5 of captions), and set the limit of its trust."""
    schedule, rhos = _levels(recipe)
    x, captions = _captioned(aside)
    noise, texts = Draw(list(range(len(x)))).normal_like("noise", x), clip.embed_captions(captions)
    found = {}
    for rho in rhos:
        level = schedule.at_rho(rho)
        found[rho] = retrieval(
            clip.embed_image(level.alpha * x + level.sigma * noise, level), texts
        )["image to text R@5"]
    clip.rho_max = trusted_rho(found, min(1.0, 5 / len(captions)))
    return {
        "of": len(captions),
        "rho_max": clip.rho_max,
        "image to text R@5": {f"{r:g}": round(v, 4) for r, v in found.items()},
    }


def gather_samples(
    source: Source, spec: ClassifierPart, most: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return up to ``most`` samples ``[N, *S]``, evenly spread, and a classifier's targets."""
    count = min(source.size or 0, most or source.size or 0)
    rows = torch.linspace(0, (source.size or 1) - 1, count).round().long().tolist()
    x, targets = source.batch(rows, Draw(rows))
    return x, torch.as_tensor(targets[classifier_column(spec, source.columns)[0]])


def examine(classifier: Any, recipe: Recipe, x: Tensor, y: Tensor) -> JSONObject:
    """Calibrate a noise-aware classifier on every other sample, and measure it on the rest.

    Sets its temperatures and the noise ratio up to which it is trusted.
    """
    schedule, rhos = _levels(recipe)
    before = calibration.by_level(classifier, _reported(x, y), schedule, rhos)
    if recipe.classifier is not None and recipe.classifier.calibrate:
        fitted = calibration.fit_temperatures(classifier, (x[::2], y[::2]), schedule, rhos)
        classifier.calibrate(tuple((rho, round(t, 4)) for rho, t in fitted.items()))
    after = calibration.by_level(classifier, _reported(x, y), schedule, rhos)
    trusted = trusted_rho(
        {rho: row.accuracy for rho, row in after.items()}, 1 / len(classifier.config["classes"])
    )
    classifier.rho_max = trusted  # None: no limit was found
    classifier.register_to_config(rho_max=trusted)
    return {
        "classifier_accuracy": {f"{rho:g}": round(row.accuracy, 4) for rho, row in after.items()},
        "classifier_ece": {
            f"{rho:g}": [round(before[rho].ece, 4), round(row.ece, 4)] for rho, row in after.items()
        },
        "classifier_rho_max": trusted,
    }


def _levels(recipe: Recipe) -> tuple[Schedule, list[float]]:
    """Return the schedule, and the noise ratios within its range at which parts are measured."""
    schedule = process(recipe).schedule
    low, high = schedule.rho_range
    return schedule, [r for r in RHOS if low <= r <= high]


def _reported(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the samples that are not calibrated on, or the only one."""
    return x[-1:] if len(x) == 1 else x[1::2], y[-1:] if len(y) == 1 else y[1::2]


def examine_regressor(regressor: Any, recipe: Recipe, x: Tensor, y: Tensor) -> JSONObject:
    """Calibrate a regressor's variances on every other sample, and measure it on the rest."""
    schedule, rhos = _levels(recipe)
    found = calibration.regression_by_level(regressor, _reported(x, y), schedule, rhos)
    if recipe.classifier is not None and recipe.classifier.calibrate:
        fitted = calibration.regression_by_level(
            regressor, (x[::2], y[::2]), schedule, rhos, seed=1
        )
        regressor.calibrate(
            tuple(
                (rho, round(min(max(row.surprise, 0.05), 20.0), 4)) for rho, row in fitted.items()
            )
        )
    return {
        "regressor": {
            f"{rho:g}": [round(row.unexplained, 4), round(row.surprise, 4)]
            for rho, row in found.items()
        }
    }


def machine() -> str:
    """Describe this machine in a few words."""
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{torch.get_num_threads()} CPU threads ({platform.machine()})"
    )
    return f"{device}, torch {torch.__version__}"


@torch.inference_mode()
def accuracy(judge: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the share of clean samples that ``judge`` classifies rightly."""
    hits = [judge(a).argmax(1) == b for a, b in zip(x.split(500), y.split(500), strict=True)]
    return float(torch.cat(hits).double().mean())
