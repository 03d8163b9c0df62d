"""Read and write a model as a folder, in Diffusers' layout, so that Diffusers' classes read it too.

guidestar.json               shape, further networks, defaults, measured figures
guidance.toml                the guidance, to read and change
model_index.json             the pipeline of Diffusers that can sample it, where there is one
README.md                    its card
unet/ or transformer/        the network
scheduler/                   the schedule, and what the network predicts
condition/                   the encoder of its conditions
text_encoder/, tokenizer/    CLIP's, where a caption is the only condition
weak/, …                     further networks, each with its conditions
averages/                    the network with other averages of its weights
variants/                    further networks with cards of their own (`variants`)
classifier/, judge/          classifiers; a judge may be a whole CLIP
clip/, clean_clip/           image towers of CLIP, whose text tower is text_encoder/
vae/                         AutoencoderKL, of a model of latents

A network that the user's code makes ("module:callable") is in network/, and is only built with
``trust=True``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from ..core.denoiser import Denoiser
from ..core.levels import Flow
from ..diffusers import guidance_file as recipe
from ..diffusers.export import describe_pipeline, network_of, scheduler_settings, write_index
from ..diffusers.guidance_file import Defaults
from ..diffusers.objects import Config
from ..diffusers.read.building import one_budget
from ..diffusers.read.encoders import TextEncoder, read_encoder
from ..diffusers.read.hub import fetch, repository_of
from ..diffusers.read.network import Parts, read_parts
from ..diffusers.read.pipeline import read_pipeline, readable_of
from ..diffusers.read.safetensors_io import read_module
from ..diffusers.read.scheduler import read_scheduler
from ..diffusers.read.vae import Decoder, read_decoder
from ..diffusers.write import write_classifier, write_denoiser, write_module, write_scheduler
from ..io.documents import read_json
from ..io.files import check_name, make_folder
from ..io.images import write_text
from ..networks.clip import CLIP
from ..networks.cpu_fastpath import lean
from ..networks.low_rank import DIFFERENCE
from .manifest import FORMAT, NAME, Card, read_about
from .model import Model
from .protocols import Encoder, Judge, NoisyClassifier, TextJudge
from .shipped import SHIPPED, available
from .variants import UnknownVariantError, variant_folder

_PARTS = frozenset(
    {
        "unet",
        "transformer",
        "network",
        "condition",
        "scheduler",
        "vae",
        "text_encoder",
        "tokenizer",
        "averages",
        "variants",
        "judge",
        "guidestar.json",
        "guidance.toml",
        "model_index.json",
        "readme.md",
    }
)
"""Names in a folder that no further network or classifier can have."""


class WeightsError(RuntimeError):
    """A model's folder is damaged: a file is missing, unreadable, or does not fit its network."""


class UnknownAverageError(ValueError):
    """A model's folder has no such average of its weights."""


if TYPE_CHECKING:
    from diffusers.models.modeling_utils import ModelMixin

    from ..networks.conditional import ConditionalModel

CASCADE = "cascade.json"
"""The file that makes a folder a cascade's."""
DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}
DTYPES |= {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def dtype_of(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Return torch's dtype of a name.

    Raises:
        ValueError: there is none, or it is not a floating point one.
    """
    found = DTYPES.get(dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
    if dtype is not None and found not in DTYPES.values():
        raise ValueError(
            f"dtype must be a floating point one, not {str(dtype)!r}; give one of "
            f"{', '.join(DTYPES)}, or torch's of that name"
        )
    return found


def load(
    name: str | Path,
    *,
    device: torch.device | str = "cpu",
    average: str | None = None,
    variant: str | None = None,
    trust: bool = False,
    size: tuple[int, int] | None = None,
    dtype: torch.dtype | str | None = None,
) -> Model:
    """Load one model. Arguments and errors as in `guidestar.model.loading.load`.

    Raises:
        ValueError: the folder is a cascade's.
    """
    name, variant = _split(name, variant)
    folder = _find(name)
    if (folder / CASCADE).is_file():
        raise ValueError(
            f"{folder} is a cascade, and this needs one model; give the folder of a stage in it"
        )
    ours = (folder / NAME).is_file()
    if ours and (size is not None or dtype not in (None, "float32", torch.float32)):
        raise ValueError(
            f"{name} is a model of guidestar's own, which has one size and is loaded in float32; "
            "leave size= and dtype= out (they are for pipelines of Diffusers)"
        )
    if average is not None and not ours:
        raise ValueError(
            f"{folder} is not a model of guidestar's own, so it keeps no averages of its weights; "
            "leave average= out"
        )
    home = folder
    if variant is not None:
        if average is not None:
            raise ValueError(f"the variant {variant!r} keeps no averages; leave average= out")
        home, name = variant_folder(folder, variant), f"{name}:{variant}"
    kind = dtype_of(dtype)
    with one_budget():
        model = _read(folder, home, str(name), average, trust, size, kind or torch.float32)
    for denoiser in (model.denoiser, *(d for d, _ in model.nets.values())):
        lean(denoiser)  # type: ignore[type-var]
    return model.to(device)


def _split(name: str | Path, variant: str | None) -> tuple[str | Path, str | None]:
    """Split "model:variant" where a model of that name has variants."""
    base, sign, last = str(name).rpartition(":")
    if variant is not None or not sign or Path(name).is_dir():
        return name, variant
    shipped = (SHIPPED / base / NAME).is_file()
    return (base, last) if shipped or (Path(base) / NAME).is_file() else (name, None)


def _read(
    folder: Path,
    home: Path,
    name: str,
    average: str | None,
    trust: bool,
    size: tuple[int, int] | None,
    dtype: torch.dtype,
) -> Model:
    ours = (folder / NAME).is_file()
    try:
        model = (
            _read_ours(folder, home, name, average, trust)
            if ours
            else _read_foreign(folder, name, size, dtype)
        )
        model.defaults |= recipe.settings(home)
        return model
    except (UnknownAverageError, UnknownVariantError):
        raise
    except ValueError as error:
        raise WeightsError(str(error)) from error


def _find(name: str | Path) -> Path:
    """Return the folder of a model that ships, of a path, or of the hub."""
    folder = SHIPPED / str(name) if (SHIPPED / str(name) / NAME).is_file() else Path(name)
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise ValueError(f"{folder} is a file, and a model is a folder; {_checkpoint(folder)}")
    repository = None if isinstance(name, Path) else repository_of(name)
    if repository is not None:
        return fetch(repository)
    raise ValueError(
        f"unknown model {str(name)!r}{_near(folder)}; give one of {', '.join(available())}, a "
        "folder with a network and a scheduler, or owner/model of the Hugging Face hub"
    )


def _near(folder: Path) -> str:
    """Describe the part of a missing path that exists, or name the shipped model it resembles."""
    if resembled := get_close_matches(str(folder), available(), n=1):
        return f" (did you mean {resembled[0]!r}?)"
    there = next((p for p in folder.parents if p.exists()), Path())
    if there in (Path(), Path("/"), Path("..")):
        return ""
    missing = f"there is {there}, but no {folder.relative_to(there).parts[0]!r} in it"
    address = f"https://huggingface.co/{folder}" if len(folder.parts) == 2 else ""
    return f" ({missing}{f'; the repository of that name is {address}' if address else ''})"


def _checkpoint(file: Path) -> str:
    """Describe how a model in one file is read."""
    if file.suffix == ".pkl":
        return (
            "a .pkl carries code, which is not run here: load it by its authors' code where "
            "you trust it, and give the module to guidestar.checkpoints.edm.edm_model"
        )
    ours = (
        "guided-diffusion's with guidestar.checkpoints.adm.adm_model, DiT's with "
        "guidestar.checkpoints.dit.dit_model"
    )
    return (
        f"read {ours}; a Stable Diffusion in one file becomes a folder by Diffusers' "
        "from_single_file and save_pretrained"
    )


def _read_foreign(
    folder: Path, name: str, size: tuple[int, int] | None, dtype: torch.dtype
) -> Model:
    family, parts = readable_of(folder), read_pipeline(folder, size=size, dtype=dtype)
    if parts.shape is None:
        raise ValueError(
            f"{folder}: its network leaves the size of a sample open (no sample_size in "
            "config.json)"
        )
    conditional = parts.encoder is not None and parts.encoder.null(1) is not None
    usual = family.guidance if family else "cfg(3)"
    defaults = Defaults(guidance=usual) if conditional else Defaults()
    if isinstance(parts.schedule, Flow):
        defaults["grid"] = "uniform"  # bent by the flow's shift, as the pipelines space their steps
    decode = _decoder(folder, {"shape": parts.shape})
    return Model(
        name=name,
        denoiser=parts.denoiser,
        schedule=parts.schedule,
        shape=parts.shape,
        encoder=parts.encoder,
        decode=decode,
        defaults=defaults,
    )


def _read_ours(folder: Path, home: Path, name: str, average: str | None, trust: bool) -> Model:
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
        decode=_decoder(folder, model),
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
    return network_of(parts.denoiser)  # type: ignore[return-value]


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


def _decoder(folder: Path, about: Card) -> Callable[[Tensor], Tensor]:
    """Return what turns the model's samples into data: pixels, values in their own units, or
    decoded latents.
    """
    if (folder / "vae" / "config.json").is_file():
        return read_decoder(folder / "vae")
    if "scale" in about:
        mean, std = (torch.tensor(about["scale"][k]) for k in ("mean", "std"))
        return lambda x: x * std.to(x) + mean.to(x)
    return (lambda x: x.clamp(-1, 1)) if len(about.get("shape", (1, 1, 1))) == 3 else (lambda x: x)


def save(model: Model, folder: Path | str, *, dtype: torch.dtype = torch.float16) -> None:
    """Write a model's networks, configs, ``guidestar.json`` and ``guidance.toml``.

    Where one of Diffusers' pipelines can be the model (`guidestar.diffusers.export.pipeline_of`),
    ``model_index.json`` names it, and ``DiffusionPipeline.from_pretrained`` loads the folder
    without guidestar; else the network and the scheduler load.

    Args:
        model: its networks must be of the classes named in this module's docstring.
        folder: made if it is missing.
        dtype: of the weights.

    Raises:
        ValueError: the model was read from Diffusers, so its folder is there already; or a
            network's or classifier's name cannot be a folder's.
    """
    config = _scheduler(model)
    for name in (*model.nets, *model.classifiers):
        check_name(name, "the name of a network or classifier", taken=_PARTS)
    root = make_folder(Path(folder))
    write_denoiser(model.denoiser, model.encoder, root, dtype)
    for name, (denoiser, encoder) in model.nets.items():
        write_denoiser(denoiser, encoder, root / name, dtype)
    clips = {n: c for n, c in model.classifiers.items() if isinstance(c, CLIP)}
    for name, net in {
        **model.classifiers,
        **({"judge": model.judge} if model.judge is not None else {}),
    }.items():
        write_classifier(net, root / name, dtype, whole=name == "judge")
    write_scheduler(config, root / "scheduler")
    if isinstance(model.decode, Decoder):
        write_module(model.decode.vae, root / "vae", dtype)
    about = {
        **model.card,
        "format": FORMAT,
        "shape": list(model.shape),
        "nets": list(model.nets),
        "classifiers": [n for n in model.classifiers if n not in clips],
        "defaults": model.defaults,
        "diffusers": describe_pipeline(model),
    }
    write_index(model, root, config)
    if guidance := model.defaults.get("guidance"):
        recipe.write(
            recipe.GuidanceRecipe(
                guidance=guidance, **{k: model.defaults.get(k) for k in ("steps", "solver", "grid")}
            ),
            root,
        )
    if clips:
        about["clips"] = {
            n: {"log_scale": float(c.log_scale.detach()), "rho_max": c.rho_max}
            for n, c in clips.items()
        }
    write_text(json.dumps(about, indent=2) + "\n", root / NAME)


def write_average(
    module: ConditionalModel, folder: Path, name: str, dtype: torch.dtype = torch.float16
) -> None:
    """Add another average of the main network's weights (a `ConditionalModel`) to a folder, under
    ``name``.

    Raises:
        ValueError: the name cannot be a folder's.
    """
    check_name(name, "the name of an average")
    denoiser = cast(Denoiser, module.denoiser)
    encoder = getattr(module.encoder, "alone")()  # noqa: B009
    write_denoiser(denoiser, encoder, folder / "averages" / name, dtype)


def _scheduler(model: Model) -> Config:
    if "scheduler" not in model.card and "schedule" not in model.card:
        raise ValueError(
            f"the model {model.name!r} was not trained by guidestar, so its scheduler "
            "is not known; copy the folder that it was read from"
        )
    return scheduler_settings(model, model.card.get("scheduler") or _of_betas(model))


def _of_betas(model: Model) -> Config:
    kinds = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
    predicts = getattr(model.denoiser, "predicts", None)
    return {
        "_class_name": "DDPMScheduler",
        **model.card["schedule"],
        "prediction_type": kinds[str(predicts)],
        "clip_sample": False,
    }
