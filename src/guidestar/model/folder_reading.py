"""Read the parts of a model's own folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..diffusers.export import network_of
from ..diffusers.objects import Config
from ..diffusers.read.encoders import read_encoder
from ..diffusers.read.network import Parts, read_parts
from ..diffusers.read.safetensors_io import read_module
from ..diffusers.read.scheduler import read_scheduler
from ..diffusers.read.text_encoder import TextEncoder
from ..diffusers.read.vae import read_decoder
from ..io.documents import read_json
from ..networks.clip import CLIP
from ..networks.low_rank import DIFFERENCE
from .manifest import NAME, Card, read_about
from .model import Model
from .protocols import Encoder, Judge, NoisyClassifier, TextJudge

if TYPE_CHECKING:
    from diffusers.models.modeling_utils import ModelMixin


class UnknownAverageError(ValueError):
    """A model's folder has no such average of its weights."""


def read_own(folder: Path, home: Path, name: str, average: str | None, trust: bool) -> Model:
    """Read a model whose own network is in ``home``: its folder, or that of a variant."""
    about, model = read_about(home), read_about(folder)
    process = read_scheduler(folder)
    main = read_parts(
        _of_average(home, about, average),
        process=process,
        known=_networks(),
        trust=trust,
        base=folder if home != folder and (home / DIFFERENCE).is_file() else None,
    )
    if home != folder and not (home / "condition").is_dir():
        main = replace(main, encoder=read_encoder(folder, _inner(main)))
    shape = _shape(home / NAME, about.get("shape"), main)
    further = {
        n: read_parts(folder / n, process=process, known=_networks(), trust=trust)
        for n in about.get("nets", [])
    }
    return Model(
        name=name,
        denoiser=main.denoiser,
        schedule=main.schedule,
        shape=shape,
        encoder=main.encoder,
        decode=read_decode(folder, model),
        nets={n: (p.denoiser, p.encoder) for n, p in further.items()},
        classifiers={
            **_read_classifiers(folder, model),
            **_read_clips(folder, model, main.encoder),
        },
        judge=_read_judge(folder / "judge") if (folder / "judge").is_dir() else None,
        defaults=about.get("defaults", {}),
        card=about,
    )


def _inner(parts: Parts) -> ModelMixin:
    return network_of(parts.denoiser)


def _shape(file: Path, given: Sequence[int] | None, main: Parts) -> tuple[int, ...]:
    """Return the shape of one sample; refuse a folder and a network that differ in it."""
    network = main.shape or _sequence(main)
    if given is None and not network:
        raise ValueError(
            f"{file}: shape is missing, and the network's settings leave it open; write e.g. "
            '"shape": [3, 32, 32]'
        )
    if given is not None and network and tuple(given) != network:
        raise ValueError(
            f"{file}: shape is {list(given)}, but the network in {main.folder} is of samples "
            f"{list(network)}; correct the shape"
        )
    return tuple(given or network or ())


def _sequence(main: Parts) -> tuple[int, ...] | None:
    """Return (T, C) or (C,) of a network of sequences or vectors; None of others."""
    net = getattr(main.denoiser.net, "net", None)
    if type(net).__name__ not in ("SequenceTransformer", "MotionTransformer"):
        return None
    config: Config = getattr(net, "config", {})
    return (
        (config["channels"],)
        if config["length"] is None
        else (config["length"], config["channels"])
    )


def _read_classifiers(folder: Path, about: Card) -> dict[str, NoisyClassifier]:
    return {n: read_module(folder / n, known=_classifiers()) for n in about.get("classifiers", [])}


def _read_clips(folder: Path, about: Card, encoder: Encoder | None) -> dict[str, CLIP]:
    from ..diffusers.read.clip import read_tower

    if not about.get("clips"):
        return {}
    if not isinstance(encoder, TextEncoder):
        raise ValueError(
            f"{folder / NAME}: clips are for a model that takes text prompts, and this one has no "
            "text encoder"
        )
    return {
        n: CLIP(encoder.text, encoder.tokenizer, read_tower(folder / n), **more)
        .eval()
        .requires_grad_(False)
        for n, more in about.get("clips", {}).items()
    }


def _read_judge(folder: Path) -> Judge | TextJudge:
    from ..diffusers.read.clip import read_clip

    return (
        read_clip(folder)
        if "text_config" in read_json(folder / "config.json")
        else read_module(folder, known=_classifiers())
    )


def _of_average(folder: Path, about: Card, average: str | None) -> Path:
    known = about.get("averages", [])
    if average is None or average == next(iter(known), None):
        return folder
    if average not in known:
        raise UnknownAverageError(
            f"{folder} has no average {average!r}; it has {', '.join(known) or 'only one'}"
        )
    return folder / "averages" / average


def _networks() -> dict[str, type[ModelMixin]]:
    from ..networks.motion import MotionTransformer
    from ..networks.sequence import SequenceTransformer

    return {c.__name__: c for c in (SequenceTransformer, MotionTransformer)}


def _classifiers() -> dict[str, type[ModelMixin]]:
    from ..networks.classifier import Classifier
    from ..networks.sequence_classifier import SequenceClassifier

    return {"Classifier": Classifier, "SequenceClassifier": SequenceClassifier}


def read_decode(folder: Path, about: Card) -> Callable[[Tensor], Tensor]:
    """Return what turns the model's samples into data: pixels, values in their own units, or
    decoded latents.
    """
    if (folder / "vae" / "config.json").is_file():
        return read_decoder(folder / "vae")
    if "scale" in about:
        mean, std = (torch.tensor(about["scale"][k]) for k in ("mean", "std"))
        return lambda x: x * std.to(x) + mean.to(x)
    shape = about.get("shape")
    if shape is not None and len(shape) != 3:
        return lambda x: x
    return lambda x: x.clamp(-1, 1)
