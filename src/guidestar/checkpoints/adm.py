"""OpenAI's guided-diffusion: ADM networks and noise-aware classifiers from published state dicts.

    model = adm_model(
        "256x256",
        diffusion="256x256_diffusion.pt",
        classifier="256x256_classifier.pt",
    )
    model.sample(["207"], guidance="classifier(1)", seeds=[0])

The modules have the names of the original's parameters, so its state dicts fit key for key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import nn

from ..core.levels import VP
from ..diffusers.read.encoders import ClassLabels
from ..diffusers.read.safetensors_io import fill
from ..model.model import Model
from ..model.protocols import NoisyClassifier
from ..networks.network import Network
from .adm_networks import ADM, ADMClassifier, ClassifierSettings, UNetSettings
from .state_dicts import read_state_dict

_M = TypeVar("_M", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published model, by the flags of its authors' scripts.

    Args:
        network: of the diffusion model.
        classifier: of its noise-aware classifier; None where there is none.
        scale: of the classifier's gradient, as published.
        noise_schedule: "linear" or "cosine".
    """

    network: UNetSettings
    classifier: ClassifierSettings | None
    scale: float
    noise_schedule: Literal["linear", "cosine"] = "linear"


_WIDE = UNetSettings(image_size=256, num_channels=256)
_UNCONDITIONAL = replace(_WIDE, classes=None)

PUBLISHED = {
    "64x64": Published(
        network=UNetSettings(
            image_size=64, num_channels=192, num_res_blocks=3, use_new_attention_order=True
        ),
        classifier=ClassifierSettings(image_size=64, depth=4),
        scale=1.0,
        noise_schedule="cosine",
    ),
    "128x128": Published(
        network=replace(_WIDE, image_size=128, num_heads=4, num_head_channels=None),
        classifier=ClassifierSettings(image_size=128),
        scale=0.5,
    ),
    "256x256": Published(network=_WIDE, classifier=ClassifierSettings(image_size=256), scale=1.0),
    "256x256_uncond": Published(
        network=_UNCONDITIONAL, classifier=ClassifierSettings(image_size=256), scale=10.0
    ),
    "512x512": Published(
        network=replace(_WIDE, image_size=512),
        classifier=ClassifierSettings(image_size=512),
        scale=4.0,
    ),
    "lsun": Published(network=_UNCONDITIONAL, classifier=None, scale=0.0),
}
"""The settings of the published checkpoints, by size ("lsun": bedroom, cat and horse)."""


def adm_model(
    which: str | Published,
    *,
    diffusion: str | Path,
    classifier: str | Path | None = None,
    classes: Sequence[str] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Model:
    """Read a guided-diffusion checkpoint, and its classifier's, as a model.

    The default guidance is ``classifier(s)`` at the published scale s, on the conditional base
    where the network takes the class. The published figures displace the mean of the ancestral
    step: ``guidance="classifier(s, form='mean', variance='learned')"``,
    ``solver=DDPM(variance="learned")``, ``steps=250``, ``grid="linspace"``.

    Args:
        which: a name in `PUBLISHED`, or settings of your own.
        diffusion: the diffusion model's state dict (``.pt``, read without running code, or
            ``.safetensors``).
        classifier: the classifier's.
        classes: their names, in order; by default their numbers.
        dtype: of the parameters.

    Raises:
        ValueError: an unknown name, or a file that is missing, damaged or does not fit.

    References:
        Diffusion Models Beat GANs on Image Synthesis, https://arxiv.org/abs/2105.05233
    """
    about = _find_published(which)
    net = read_adm(diffusion, about.network, dtype=dtype)
    count = about.network.classes
    labels = None if count is None else ClassLabels(classes=_names(classes, count))
    classifiers: dict[str, NoisyClassifier] = {}
    if classifier is not None:
        if about.classifier is None:
            raise ValueError(f"the model {which!r} has no classifier; leave classifier= out")
        classifiers["classifier"] = read_adm_classifier(classifier, about.classifier, dtype=dtype)
    base = "cond" if count is not None else "uncond"
    size = about.network.image_size
    return Model(
        name=f"adm-{which if isinstance(which, str) else size}",
        denoiser=Network(net, predicts="eps", learned_variance=about.network.learn_sigma),
        schedule=VP.linear() if about.noise_schedule == "linear" else VP.cosine(),
        shape=(about.network.channels, size, size),
        encoder=labels,
        classifiers=classifiers,
        # Without a condition there is no class: the expression must name one.
        defaults={
            "guidance": f"classifier({about.scale:g})"
            if classifiers and count is not None
            else base
        },
        card={"classifier_scale": about.scale},
    )


def read_adm(
    path: str | Path, settings: UNetSettings, *, dtype: torch.dtype = torch.float32
) -> ADM:
    """Read a diffusion model's state dict.

    Raises:
        ValueError: the file is missing or damaged, or its first tensor that does not fit the
            settings.
    """
    return _fill(ADM(settings), path, dtype)


def read_adm_classifier(
    path: str | Path, settings: ClassifierSettings, *, dtype: torch.dtype = torch.float32
) -> ADMClassifier:
    """Read a noise-aware classifier's state dict.

    Raises:
        ValueError: the file is missing or damaged, or its first tensor that does not fit the
            settings.
    """
    return _fill(ADMClassifier(settings), path, dtype)


def _fill(module: _M, path: str | Path, dtype: torch.dtype) -> _M:
    fill(module, Path(path), read_state_dict(path), dtype)
    return module


def _find_published(which: str | Published) -> Published:
    if isinstance(which, Published):
        return which
    if which not in PUBLISHED:
        raise ValueError(
            f"unknown guided-diffusion model {which!r}; there are {', '.join(PUBLISHED)}, or "
            "give a Published of your own (upsamplers are not read)"
        )
    return PUBLISHED[which]


def _names(classes: Sequence[str] | None, count: int) -> tuple[str, ...]:
    if classes is not None and len(classes) != count:
        raise ValueError(f"{len(classes)} names were given for {count} classes; give one for each")
    return tuple(classes or map(str, range(count)))
