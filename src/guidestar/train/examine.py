"""Measure the trained parts of a recipe on held-out data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.levels import Schedule
from ..core.rng import Draw
from ..data.latents import pictures_of
from ..data.source import Source
from ..diffusers.objects import DiffusersNetwork
from ..diffusers.read.vae import decoded, encoded
from ..evaluate import calibration, fit_gaussian, gaussian_distance, psnr, ssim
from ..evaluate.classifier_levels import trusted_rho
from ..evaluate.retrieval import retrieval
from ..io.documents import JSONObject
from ..networks.clip import CLIP
from .build.captions import captions_of
from .build.classifiers import classifier_column
from .build.schedules import process
from .recipe.parts import ClassifierPart
from .recipe.schema import Recipe

Trained = Mapping[str, Any]
"""The trained parts by name: a conditional model, a classifier, or a CLIP."""
RHOS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 40.0, 80.0)
"""Noise ratios at which a noise-aware classifier is measured."""
MOST_EXAMINED = 4000
"""Most held-out samples that measure a classifier: half to calibrate, half to report."""


def examine_parts(
    recipe: Recipe, trained: Trained, source: Source, aside: Source | None
) -> JSONObject:
    """Measure the trained parts on held-out data, for the card; nothing where there is none.

    A noise-aware classifier is calibrated on half of it (see `examine`), and the levels up to which
    it and a noise-aware CLIP are trusted are set.
    """
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
    for part in ("autoencoder", "decoder"):
        if part in trained:
            found[part] = examine_autoencoder(
                trained[part], pictures_of(aside), trained.get("measuring_clip")
            )
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
def examine_autoencoder(
    vae: DiffusersNetwork, pictures: Source, clip: CLIP | None = None
) -> JSONObject:
    """Report how near held-out pictures come out: PSNR (dB) and SSIM, their means.

    With a clean CLIP, ``frechet`` is the Fréchet distance between its embeddings of the
    reconstructions and of the pictures, and ``half`` the same for pictures that were halved and
    enlarged again (bicubic). The numbers of a picture and of its latents are given too.
    """
    rows = torch.arange(min(pictures.size or 0, MOST_EXAMINED))
    near, alike, shape = [], [], [0]
    embedded: dict[str, list[Tensor]] = {"pictures": [], "frechet": [], "half": []}
    for part in map(Tensor.tolist, rows.split(32)):
        x = pictures.batch(part, Draw(part))[0]
        z = encoded(vae, x)
        made, shape = decoded(vae, z).clamp(-1, 1), list(z.shape[1:])
        near.append(psnr(made, x))
        if min(x.shape[-2:]) >= 11:
            alike.append(ssim(made, x))
        if clip is not None:
            for name, shown in (("pictures", x), ("frechet", made), ("half", _halved(x))):
                embedded[name].append(clip.embed_image(shown))
    found = {"psnr": round(float(torch.cat(near).mean()), 3), "of": len(rows)}
    if alike:
        found["ssim"] = round(float(torch.cat(alike).mean()), 4)
    if clip is not None and len(rows) > 1:  # one picture has no covariance
        fitted = {name: fit_gaussian(torch.cat(parts)) for name, parts in embedded.items()}
        for name in ("frechet", "half"):
            found[name] = round(gaussian_distance(*fitted[name], *fitted["pictures"]), 5)
    return {**found, "pictures": list(pictures.shape), "latents": shape}


def _halved(x: Tensor) -> Tensor:
    """Return pictures at half their side, enlarged to it again, both by cubic interpolation."""
    size = tuple(x.shape[-2:])
    half = F.interpolate(x, scale_factor=0.5, mode="bicubic", antialias=True)
    return F.interpolate(half, size=size, mode="bicubic").clamp(-1, 1)


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


@torch.inference_mode()
def accuracy(judge: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the share of clean samples that ``judge`` classifies rightly."""
    hits = [judge(a).argmax(1) == b for a, b in zip(x.split(500), y.split(500), strict=True)]
    return float(torch.cat(hits).double().mean())
