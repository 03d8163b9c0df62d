"""Load Diffusers' models: any folder with a denoising network and its scheduler."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin
from safetensors import safe_open
from torch import Tensor, nn

from ...core.levels import Schedule
from ...networks.low_rank import DIFFERENCE, add_difference
from ...networks.low_resolution import LOW, low_of
from ...networks.network import Network, OutputKind
from ..objects import Answer, Config
from . import flux
from .encoders import ClassLabels, ConditionReader, read_encoder
from .safetensors_io import network_folder, read_module, read_network, read_tensors
from .scheduler import Process, read_scheduler, scheduler_file
from .text_encoder import TextEncoder

_ADDED = ("image_embeds", "text_embeds", "time_ids", "resolution", "aspect_ratio")
"""Conditions that a network takes in a dictionary of their own (SDXL's and PixArt's)."""


SCALE_FOLDER = "guidance_scale"
"""Where a student's folder holds what embeds its guidance scale."""
INTERVAL_FOLDER = "interval"
"""Where a student's folder holds what embeds the interval of a step."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a Diffusers folder holds.

    Args:
        denoiser: estimates x0; its ``net.net`` is the Diffusers network.
        schedule: it was trained on.
        shape: (C, H, W) of one sample; None where the network's settings leave it open.
        encoder: makes its conditions; None where it takes none, or only the caller can make them.
        predicts: what the network's output means.
        folder: where it was read from.
    """

    denoiser: Network
    schedule: Schedule
    shape: tuple[int, int, int] | None
    encoder: ConditionReader | None
    predicts: OutputKind
    folder: Path


def read_parts(
    folder: str | Path,
    *,
    process: Process | None = None,
    dtype: torch.dtype = torch.float32,
    known: Mapping[str, type[ModelMixin]] | None = None,
    trust: bool = False,
    base: Path | None = None,
) -> Parts:
    """Read a Diffusers folder: the network, the scheduler, and what makes the network's conditions.

    Args:
        folder: holds unet/ or transformer/ (or is that folder itself) and scheduler/, as Diffusers'
            ``save_pretrained`` writes them; only safetensors are read, nothing is unpickled.
        process: how the network was trained, in place of the scheduler's settings; needed where
            there is no scheduler.
        dtype: of the network's parameters.
        known: classes of networks by name that are not Diffusers' own.
        trust: import and call the code that a network of the user's own names
            (network/config.json).
        base: the folder of another network, of which ``folder`` holds the difference
            (`guidestar.networks.low_rank`).

    Raises:
        ValueError: one line that names the file at fault.
    """
    home = network_folder(folder if base is None else base)
    if process is None and scheduler_file(folder) is None:
        raise ValueError(
            f"{folder}: there is no scheduler/scheduler_config.json to say how the network was "
            "trained; add it, or give process="
        )
    process = process or read_scheduler(folder)
    network = read_module(home, dtype=dtype, known=known, trust=trust)
    if base is not None:
        _add_difference(network, Path(folder) / DIFFERENCE)
    encoder = read_encoder(folder, network, dtype=dtype)
    low = low_of(encoder)
    beside = low.channels if low else 0
    try:
        made, shape = denoiser(network, process, beside), _shape(network, beside)
    except ValueError as error:
        raise ValueError(f"{home / 'config.json'}: {error}") from None
    _take_inputs(made, Path(folder), dtype)
    return Parts(
        denoiser=made,
        schedule=process.schedule,
        shape=shape,
        encoder=encoder,
        predicts=process.predicts,
        folder=Path(folder),
    )


def _add_difference(network: nn.Module, file: Path) -> None:
    """Add the difference in a file to a network.

    Raises:
        ValueError: the file is damaged, or of another network; it is named.
    """
    tensors = read_tensors(file)
    with safe_open(file, framework="pt") as opened:
        about = dict(opened.metadata() or {})
    try:
        add_difference(network, tensors, about)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _take_inputs(made: Network, folder: Path, dtype: torch.dtype) -> None:
    """Make the interval of a step and the guidance scale inputs of a student's network, where its
    folder holds these parts.

    Raises:
        ValueError: one does not fit the network.
    """
    from ...networks.guidance_scale import GuidanceScale, ScaledNetwork
    from ...networks.interval import Interval, IntervalNetwork

    kinds = {
        INTERVAL_FOLDER: (Interval, IntervalNetwork),
        SCALE_FOLDER: (GuidanceScale, ScaledNetwork),
    }
    for name, (kind, around) in kinds.items():
        home = folder / name
        if not (home / "config.json").is_file():
            continue
        part: Any = read_module(home, dtype=dtype, known={kind.__name__: kind})
        assert isinstance(made.net, nn.Module)
        try:
            made.net = around(made.net, part)
        except ValueError as error:
            raise ValueError(f"{home / 'config.json'}: {error}") from None


def denoiser(network: nn.Module, process: Process, beside: int = 0) -> Network:
    """Make a denoiser of a Diffusers network, called as ``network(x, timestep=t, **cond)``.

    Conditions are the network's keyword arguments (``class_labels``, ``encoder_hidden_states``, …;
    SDXL's ``text_embeds`` and ``time_ids`` too). A network of 2C output channels is taken to
    predict its variance in the second half. Of its input channels the last ``beside`` are a
    condition, ``low_resolution``.

    Raises:
        ValueError: the network does not take the time, or returns neither C nor 2C channels.
    """
    if hasattr(network, "made_by"):
        return Network(
            network,
            predicts=process.predicts,
            sigma_data=process.sigma_data,
            time=lambda t: t * process.time_scale,
        )
    if "timestep" not in inspect.signature(network.forward).parameters:
        raise ValueError(
            f"{type(network).__name__} is not a denoising network: it takes no timestep"
        )
    # Flux multiplies its time by 1000 itself.
    scale = process.time_scale / (1000 if _is_flux(network) else 1)
    return Network(
        Adapter(network),
        predicts=process.predicts,
        learned_variance=_learned_variance(network, beside),
        sigma_data=process.sigma_data,
        time=lambda t: t * scale,
    )


class Adapter(nn.Module):
    """Call a network with the timestep by name: some families take other arguments before it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor, **cond: Tensor) -> Answer:
        if LOW in cond:
            x = torch.cat([x, cond.pop(LOW)], 1)
        if _is_flux(self.net):
            return flux.call(self.net, x, t, **cond)
        added: dict[str, Tensor | None] = {k: cond.pop(k) for k in _ADDED if k in cond}
        is_pixart = type(self.net).__name__ == "PixArtTransformer2DModel"
        if is_pixart and not _config(self.net).get("use_additional_conditions"):
            added = {"resolution": None, "aspect_ratio": None}  # PixArt reads both keys anyway
        more = {"added_cond_kwargs": added} if added else {}
        return self.net(x, timestep=t, **cond, **more)


def _is_flux(network: nn.Module) -> bool:
    return type(network).__name__ == "FluxTransformer2DModel"


def _config(network: nn.Module) -> Config:
    """Return a network's settings; none of a network of the user's own."""
    return getattr(network, "config", {})


def _channels(network: nn.Module) -> tuple[int | None, int | None]:
    config = _config(network)
    inputs = config.get("in_channels")
    return inputs, config.get("out_channels") or inputs


def _learned_variance(network: nn.Module, beside: int = 0) -> bool:
    inputs, outputs = _channels(network)
    inputs = None if inputs is None else inputs - beside
    if inputs is None or outputs is None or outputs == inputs:
        return False
    if outputs != 2 * inputs:
        raise ValueError(
            f"the network takes {inputs} channels and returns {outputs}; supported are as many, "
            "or twice as many (a learned variance)"
        )
    return True


def _shape(network: ModelMixin, beside: int = 0) -> tuple[int, int, int] | None:
    if not hasattr(network, "config"):
        return None
    channels, size = _channels(network)[0], dict(network.config).get("sample_size")
    if channels is None or size is None or "2D" not in type(network).__name__:
        return None
    height, width = size if isinstance(size, Sequence) else (size, size)
    return channels - beside, int(height), int(width)


__all__ = [
    "ClassLabels",
    "ConditionReader",
    "Parts",
    "Process",
    "TextEncoder",
    "denoiser",
    "read_encoder",
    "read_network",
    "read_parts",
    "read_scheduler",
]
