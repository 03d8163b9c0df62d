"""A model as a folder, in Diffusers' layout, so that Diffusers' own classes read it too.

guidestar.json          what it is, how it is best used, what it measured
README.md               its card
unet/                   UNet2DModel            scheduler/   DDPMScheduler
condition/              ClassEncoder           weak/…       further networks, each with its encoder
classifier/, judge/     Classifier
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from .bridge.diffusers import read as read_parts
from .bridge.schedulers import read_scheduler
from .bridge.weights import read_json, read_module
from .files import make_folder, whole_or_not
from .model import Model
from .models.lean import lean
from .pictures import write_text

SHIPPED = Path(__file__).parent / "weights"
WEIGHTS = "diffusion_pytorch_model.safetensors"
FORMAT = 1


class WeightsError(RuntimeError):
    """A model's folder is damaged: a file is missing, unreadable, or does not fit its network."""


def available() -> dict[str, str]:
    """List the models that ship, with a line on each."""
    return {p.parent.name: str(read_json(p).get("summary", "")) for p in sorted(SHIPPED.glob("*/guidestar.json"))}


def load(name: str | Path, *, device: torch.device | str = "cpu") -> Model:
    """Load a model that ships with guidestar, or any Diffusers folder with a network and a scheduler.

    Args:
        name: "fashion-mnist", or a path.
        device: where its networks go.

    Raises:
        ValueError: there is no such model.
        WeightsError: a file is damaged, or does not fit its network; it is named.
    """
    folder = SHIPPED / str(name) if (SHIPPED / str(name) / "guidestar.json").is_file() else Path(name)
    if not folder.is_dir():
        raise ValueError(f"unknown model {str(name)!r}; there is {', '.join(available())}, and any folder with a network and a scheduler")
    try:
        ours = (folder / "guidestar.json").is_file()
        model = _read_ours(folder, str(name)) if ours else _read_foreign(folder, str(name))
    except ValueError as error:
        raise WeightsError(str(error)) from error
    for denoiser in (model.denoiser, *(d for d, _ in model.nets.values())):
        lean(denoiser)  # type: ignore[type-var]
    return model.to(device)


def _read_foreign(folder: Path, name: str) -> Model:
    parts = read_parts(folder)
    if parts.shape is None:
        raise ValueError(f"{folder}: its network leaves the size of a sample open (no sample_size in config.json)")
    conditional = parts.encoder is not None and parts.encoder.null(1) is not None
    defaults = {"guidance": "cfg(3)"} if conditional else {}
    return Model(name=name, denoiser=parts.denoiser, schedule=parts.schedule, shape=parts.shape, encoder=parts.encoder, defaults=defaults)


def _read_ours(folder: Path, name: str) -> Model:
    from .models.classifier import Classifier

    about = read_json(folder / "guidestar.json")
    if about.get("format") != FORMAT:
        raise ValueError(f"{folder} is of the format {about.get('format')!r}; this version of guidestar reads {FORMAT}")
    process = read_scheduler(folder)
    main, classifier = read_parts(folder), {"Classifier": Classifier}
    weaker = {n: read_parts(folder / n, process=process) for n in about.get("nets", [])}
    return Model(
        name=name,
        denoiser=main.denoiser,
        schedule=main.schedule,
        shape=main.shape or (),
        encoder=main.encoder,
        nets={n: (p.denoiser, p.encoder) for n, p in weaker.items()},
        classifiers={n: read_module(folder / n, known=classifier) for n in about.get("classifiers", [])},
        judge=read_module(folder / "judge", known=classifier) if (folder / "judge").is_dir() else None,
        defaults=about.get("defaults", {}),
        card=about,
    )


def save(model: Model, folder: Path | str, *, dtype: torch.dtype = torch.float16) -> None:
    """Write a model's networks, configs and ``guidestar.json``.

    Args:
        model: its networks must be of the classes named in this module's docstring.
        folder: made if it is missing.
        dtype: of the weights.
    """
    root = make_folder(Path(folder))
    _write_pair(model.denoiser, model.encoder, root, dtype)
    for name, (denoiser, encoder) in model.nets.items():
        _write_pair(denoiser, encoder, root / name, dtype)
    for name, net in {**model.classifiers, **({"judge": model.judge} if model.judge is not None else {})}.items():
        write_module(net, root / name, dtype)
    _write_scheduler(model, root / "scheduler")
    about = {**model.card, "format": FORMAT, "nets": list(model.nets), "classifiers": list(model.classifiers), "defaults": model.defaults}
    write_text(json.dumps(about, indent=2) + "\n", root / "guidestar.json")


def _write_pair(denoiser: Any, encoder: Any, folder: Path, dtype: torch.dtype) -> None:
    # What is read from a folder is called through an adapter; the network itself is within.
    write_module(getattr(denoiser.net, "net", denoiser.net), folder / "unet", dtype)
    write_module(encoder, folder / "condition", dtype)


def write_module(module: Any, folder: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write a module's config, and its weights in ``dtype``: beside, then renamed."""
    from safetensors.torch import save as serialised

    make_folder(folder)
    tensors = {k: (v.to(dtype) if v.is_floating_point() else v).cpu().contiguous() for k, v in module.state_dict().items()}
    with whole_or_not(folder / WEIGHTS) as beside:
        beside.write_bytes(serialised(tensors, {"format": "pt"}))
    module.save_config(folder)


def _write_scheduler(model: Model, folder: Path) -> None:
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    kinds: dict[str, Any] = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
    predicts = model.denoiser.predicts  # type: ignore[attr-defined]
    config = model.card["schedule"]
    DDPMScheduler(**config, prediction_type=kinds[predicts], clip_sample=False).save_config(folder)
