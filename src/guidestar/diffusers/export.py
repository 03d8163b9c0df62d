"""Choose the Diffusers pipeline that samples exactly as a model does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

from ..core.denoiser import Denoiser
from ..io.images import write_text
from ..networks.guidance_scale import ScaledNetwork
from ..networks.interval import IntervalNetwork
from ..networks.network import Network
from .objects import Config, DiffusersNetwork, SavedModel
from .read.network import Adapter
from .read.text_encoder import TextEncoder

TABLES = ("DDPMScheduler", "DDIMScheduler")
FLOW = "FlowMatchEulerDiscreteScheduler"


def network_of(denoiser: Denoiser) -> DiffusersNetwork:
    """Return the network within a denoiser and its wrappers.

    Raises:
        ValueError: it is no `guidestar.Network`.
    """
    if not isinstance(denoiser, Network):
        raise ValueError(
            f"a {type(denoiser).__name__} cannot be written; only a guidestar.Network can, whose "
            "network has settings"
        )
    net = denoiser.net
    while isinstance(net, Adapter | ScaledNetwork | IntervalNetwork):
        net = net.net
    return cast(DiffusersNetwork, net)


def pipeline_of(model: SavedModel, scheduler: str) -> tuple[str | None, str]:
    """Return the class of pipeline that samples as the model does, and how to use it; None, and
    what is needed in its place.

    - An unconditional UNet2DModel of pixels: DDIMPipeline, or of a flow DDPMPipeline.
    - A UNet2DConditionModel of a VAE's latents and CLIP's states:
      StableDiffusionPipeline.
    - A DiTTransformer2DModel of latents with 1000 classes, which is the null that DiTPipeline has
      written in.

    Args:
        model: a `Model`.
        scheduler: the class of its scheduler.
    """
    net, vae = network_of(model.denoiser), getattr(model.decode, "vae", None)
    kind = type(net).__name__
    if isinstance(getattr(model.denoiser, "net", None), ScaledNetwork):
        return None, (
            f"its guidance scale is an input that {kind} lacks; the network loads in Diffusers as "
            "that of scale 1, and guidestar gives the others"
        )
    if getattr(model.denoiser, "takes_interval", False):
        return None, (
            f"the interval of a step is an input that {kind} lacks; the network loads in Diffusers "
            "as that of no interval, and guidestar takes whole steps"
        )
    steps = scheduler in TABLES
    plain = (
        kind == "UNet2DModel"
        and model.encoder is None
        and vae is None
        and "scale" not in model.card
    )
    if (
        plain
        and (steps or scheduler == FLOW)
        and not getattr(model.denoiser, "learned_variance", False)
    ):
        return ("DDIMPipeline" if steps else "DDPMPipeline"), "pipe(num_inference_steps=50)"
    if (
        kind == "UNet2DConditionModel"
        and steps
        and _unlike_stable_diffusion(model, net, vae) is None
    ):
        return "StableDiffusionPipeline", 'pipe("a prompt", guidance_scale=3.0)'
    if (
        kind == "DiTTransformer2DModel"
        and steps
        and vae is not None
        and not _shifts(vae)
        and net.config.num_embeds_ada_norm == 1000
    ):
        return "DiTPipeline", "pipe([207], guidance_scale=4.0)"
    return None, _needed(model, net, kind, scheduler, vae)


def _unlike_stable_diffusion(
    model: SavedModel, net: DiffusersNetwork, vae: DiffusersNetwork | None
) -> str | None:
    """Tell in what a model of prompts differs from what StableDiffusionPipeline does; None in
    nothing.
    """
    encoder = model.encoder
    if vae is None or _shifts(vae):
        return (
            "it has no VAE, which that pipeline cannot do without"
            if vae is None
            else "its VAE shifts the latents"
        )
    if not (
        isinstance(encoder, TextEncoder)
        and encoder.settings == {"layer": "last", "output": "states", "mask": False}
    ):
        return "its condition is not the states of CLIP's last layer"
    config = dict(net.config)
    return next(
        (
            f"its network is conditioned on {k}"
            for k in (
                "class_embed_type",
                "addition_embed_type",
                "encoder_hid_dim_type",
                "time_cond_proj_dim",
            )
            if config.get(k)
        ),
        None,
    )


def _shifts(vae: DiffusersNetwork) -> bool:
    return bool(vae.config.get("shift_factor") or vae.config.get("latents_mean"))


def _needed(
    model: SavedModel,
    net: DiffusersNetwork,
    kind: str,
    scheduler: str,
    vae: DiffusersNetwork | None,
) -> str:
    """Say what stands between the folder and a pipeline."""
    import diffusers

    if not hasattr(diffusers, kind):
        return f"its network, {kind}, is none of Diffusers'; it is used by guidestar"
    part = "unet" if kind.startswith("UNet") else "transformer"
    loads = (
        f'{kind}.from_pretrained(folder, subfolder="{part}") and '
        f'{scheduler}.from_pretrained(folder, subfolder="scheduler") load'
    )
    return (
        f"no pipeline of Diffusers samples it: {_why(model, net, kind, scheduler, vae)}; "
        f"{loads}, and the loop is yours (or guidestar's)"
    )


def _why(
    model: SavedModel,
    net: DiffusersNetwork,
    kind: str,
    scheduler: str,
    vae: DiffusersNetwork | None,
) -> str:
    if scheduler not in (*TABLES, FLOW):
        return f"its pipelines do not step as {scheduler} needs"
    if model.encoder is None:
        return (
            "unconditional latents have none"
            if vae is not None
            else f"an unconditional {kind} of this kind has none"
        )
    if kind == "UNet2DConditionModel":
        return (
            _unlike_stable_diffusion(model, net, vae)
            or f"StableDiffusionPipeline does not step as {scheduler} needs"
        )
    if kind == "DiTTransformer2DModel":
        count = net.config.num_embeds_ada_norm
        return (
            "DiTPipeline wants a VAE that does not shift"
            if vae is None or _shifts(vae)
            else f"DiTPipeline's null is class 1000, this network's {count}"
            if count != 1000
            else f"it is a {scheduler}"
        )
    if kind == "PixArtTransformer2DModel":
        return "PixArt's pipelines want T5 and a VAE, and this network is conditioned by CLIP"
    return "its network takes embeddings, class_labels [B, D], which condition/ makes"


def write_index(model: SavedModel, folder: Path, scheduler: Config) -> None:
    """Write ``model_index.json``, by which ``DiffusionPipeline.from_pretrained(folder)`` loads,
    where a pipeline can be the model.

    Args:
        model: whose parts are in ``folder``.
        folder: of the model.
        scheduler: its settings, with ``_class_name``.
    """
    import diffusers

    name, _ = pipeline_of(model, scheduler["_class_name"])
    file = folder / "model_index.json"
    if name is None:
        file.unlink(missing_ok=True)
        return
    # The settings of a table are read as DDIM's, which draws no noise and so samples as our solver
    # of that name.
    parts: dict[str, object] = {
        "scheduler": [
            "diffusers",
            "DDIMScheduler" if scheduler["_class_name"] in TABLES else scheduler["_class_name"],
        ]
    }
    net = type(network_of(model.denoiser)).__name__
    parts["unet" if net.startswith("UNet") else "transformer"] = ["diffusers", net]
    if name in ("StableDiffusionPipeline", "DiTPipeline"):
        parts["vae"] = ["diffusers", type(getattr(model.decode, "vae", None)).__name__]
    if name == "StableDiffusionPipeline":
        nothing: list[None] = [None, None]
        parts |= {
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
        }
        parts |= {
            "safety_checker": nothing,
            "feature_extractor": nothing,
            "image_encoder": nothing,
            "requires_safety_checker": False,
        }
    if name == "DiTPipeline":
        parts["id2label"] = {str(i): c for i, c in enumerate(model.classes)}
    about = {
        "_class_name": name,
        "_diffusers_version": diffusers.__version__,
        **dict(sorted(parts.items())),
    }
    write_text(json.dumps(about, indent=2) + "\n", file)


def scheduler_settings(model: SavedModel, config: Config) -> Config:
    """Return a scheduler's settings as the model's pipeline wants them.

    StableDiffusionPipeline counts the steps of a table from 1, written where it is missing.
    """
    found = dict(config)
    if pipeline_of(model, found["_class_name"])[0] == "StableDiffusionPipeline":
        found.setdefault("steps_offset", 1)
    return found


def describe_pipeline(model: SavedModel) -> dict[str, str]:
    """Return a card's entry on Diffusers: ``{"pipeline", "use"}`` or ``{"needs"}``."""
    name, how = pipeline_of(
        model, model.card.get("scheduler", {}).get("_class_name", "DDPMScheduler")
    )
    return {"needs": how} if name is None else {"pipeline": name, "use": how}
