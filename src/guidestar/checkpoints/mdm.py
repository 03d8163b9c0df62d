"""The motion diffusion model (MDM) from the state dict that its authors published."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..core.levels import VP
from ..diffusers.read.clip import find_text
from ..diffusers.read.network import denoiser
from ..diffusers.read.safetensors_io import fill
from ..diffusers.read.scheduler import Process
from ..diffusers.read.text_encoder import TextEncoder
from ..model.model import Model
from ..networks.condition_encoders import ClassEncoder
from ..networks.motion import MotionTransformer, sines
from .state_dicts import read_state_dict

MDM_FRAMES = 196
"""Frames of the longest motions of HumanML3D, at 20 a second."""
_WHAT = "is this MDM's official state dict (of the transformer encoder)?"


def mdm_model(
    path: str | Path,
    *,
    text_encoder: str | Path | None = None,
    classes: Sequence[str] | None = None,
    frames: int = MDM_FRAMES,
    steps: int = 1000,
    heads: int = 4,
    mean: Tensor | None = None,
    std: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Model:
    """Read an official MDM checkpoint (``model000475000.pt``) as a model of motions ``[T, C]``.

    Its default guidance is ``cfg(2.5)``: the authors' ``guidance_param`` multiplies the same
    difference. As theirs, it attends to all frames: give ``frames`` as many as the motion has.
    Captions longer than 20 tokens, which the authors cut, are taken whole.

    Args:
        path: the state dict (``.pt``, read without running code, or ``.safetensors``).
        text_encoder: of a text model: a CLIP with its projection, as a folder or a name on the hub
            (the authors used ViT-B/32); without it, conditions are given as tensors.
        classes: of an action model: the actions' names, in order; by default their numbers.
        frames: T.
        steps: of the noise's table: 1000, or the 50 of the faster checkpoints.
        heads: of attention.
        mean, std: ``[C]``, by which the data were standardised (HumanML3D's ``Mean.npy`` and
            ``Std.npy``); without them samples stay standardised.
        dtype: of the network's parameters.

    Raises:
        ValueError: a file is missing or damaged, a tensor does not fit, or the arguments do not go
            with the checkpoint; it is named.

    References:
        Human Motion Diffusion Model, https://arxiv.org/abs/2209.14916
    """
    file, given = Path(path), _without_clip(read_state_dict(path))
    net = read_mdm(path, frames=frames, heads=heads, dtype=dtype)
    actions = given.get("embed_action.action_embedding")
    encoder = None
    if actions is not None:
        names = tuple(classes or map(str, range(len(actions))))
        encoder = _of_actions(names, actions.to(dtype))
    elif classes is not None:
        raise ValueError(f"{file}: it is no action model; leave classes out")
    if text_encoder is not None:
        encoder = _of_text(file, net, text_encoder)
    process = Process(schedule=VP.cosine(steps), predicts="x0")
    if (mean is None) != (std is None):
        raise ValueError("mean and std go together; give both, or none")
    return Model(
        name=file.stem,
        denoiser=denoiser(net, process),
        schedule=process.schedule,
        shape=(frames, net.config["channels"]),
        encoder=encoder,
        decode=(lambda x: x) if mean is None or std is None else _undo(mean, std),
        defaults={"guidance": "cfg(2.5)", "solver": "ddpm", "grid": "uniform", "steps": 50},
    )


def _undo(mean: Tensor, std: Tensor):
    return lambda x: x * std.to(x) + mean.to(x)


def _of_actions(names: tuple[str, ...], actions: Tensor) -> ClassEncoder:
    """Return the encoder of actions, whose null is the zero vector."""
    if len(names) != len(actions):
        raise ValueError(
            f"{len(names)} names were given for {len(actions)} actions; give one for each"
        )
    encoder = ClassEncoder(names, actions.shape[1])
    table = torch.cat([actions, torch.zeros_like(actions[:1])])
    encoder.table = nn.Embedding.from_pretrained(table, freeze=True)
    return encoder.eval()


def _of_text(file: Path, net: MotionTransformer, name: str | Path) -> TextEncoder:
    wanted = net.config["text_width"]
    if wanted is None:
        raise ValueError(f"{file}: it is no text model; leave text_encoder out")
    found = find_text(name)
    encoder = TextEncoder(found.text, found.tokenizer, output="projected")
    if encoder.width != wanted:
        raise ValueError(
            f"{name}: its embeddings have {encoder.width} numbers, and the network takes {wanted} "
            "(MDM was trained with ViT-B/32)"
        )
    return encoder.eval().requires_grad_(False)


def read_mdm(
    path: str | Path,
    *,
    frames: int = MDM_FRAMES,
    heads: int = 4,
    dtype: torch.dtype = torch.float32,
) -> MotionTransformer:
    """Read an official state dict into a `MotionTransformer`, of the sizes that the tensors have.

    Args:
        path, frames, heads, dtype: as of `mdm_model`.

    Raises:
        ValueError: the file is missing or damaged, or a tensor does not fit.
    """
    file, given = Path(path), _without_clip(read_state_dict(path))
    width, channels = _matrix(file, given, "input_process.poseEmbedding.weight")
    inner, _ = _matrix(file, given, "seqTransEncoder.layers.0.linear1.weight")
    text = None
    if "embed_text.weight" in given:
        text = _matrix(file, given, "embed_text.weight")[1]
    if width % heads:
        raise ValueError(f"{file}: a width of {width} is no multiple of {heads} heads; give heads=")
    _check_places(file, given, width)
    net = MotionTransformer(
        channels=channels,
        length=frames,
        width=width,
        depth=_depth(given),
        heads=heads,
        inner=inner,
        text_width=text,
    )
    fill(net, file, _rename(file, given), dtype)
    return net


def _without_clip(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors without those of CLIP, which some checkpoints hold too."""
    return {k: v for k, v in given.items() if not k.startswith("clip_model.")}


def _depth(given: Mapping[str, Tensor]) -> int:
    found = [re.match(r"seqTransEncoder\.layers\.(\d+)\.", name) for name in given]
    return 1 + max(int(m[1]) for m in found if m)


def _matrix(file: Path, given: Mapping[str, Tensor], name: str) -> tuple[int, int]:
    if name not in given:
        raise ValueError(f"{file}: the tensor {name!r} is missing; {_WHAT}")
    if given[name].ndim != 2 or 0 in given[name].shape:
        raise ValueError(
            f"{file}: the tensor {name!r} should be a matrix, not {tuple(given[name].shape)}; "
            f"{_WHAT}"
        )
    rows, columns = given[name].shape
    return rows, columns


_PLACES = ("sequence_pos_encoder.pe", "embed_timestep.sequence_pos_encoder.pe")
_OUTSIDE = {
    "input_process.poseEmbedding": "inward",
    "output_process.poseFinal": "outward",
    "embed_timestep.time_embed.0": "time.0",
    "embed_timestep.time_embed.2": "time.2",
    "embed_text": "text",
}
_INSIDE = {
    "self_attn.out_proj": "attention.out",
    **{name: name for name in ("linear1", "linear2", "norm1", "norm2")},
}


def _rename(file: Path, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name tensors as `MotionTransformer` does; queries stand apart from keys and values."""
    made: dict[str, Tensor] = {}
    for name, tensor in given.items():
        if name in _PLACES or name == "embed_action.action_embedding":
            continue
        layer, _, kind = name.rpartition(".")
        inside = re.fullmatch(r"seqTransEncoder\.layers\.(\d+)\.(.+)", name)
        if layer in _OUTSIDE:
            made[f"{_OUTSIDE[layer]}.{kind}"] = tensor
        elif inside and (kind := re.fullmatch(r"self_attn\.in_proj_(weight|bias)", inside[2])):
            at = f"blocks.{inside[1]}.attention"
            width = len(tensor) // 3
            made[f"{at}.query.{kind[1]}"] = tensor[:width]
            made[f"{at}.key_value.{kind[1]}"] = tensor[width:]
        elif inside and inside[2].rpartition(".")[0] in _INSIDE:
            own, _, end = inside[2].rpartition(".")
            made[f"blocks.{inside[1]}.{_INSIDE[own]}.{end}"] = tensor
        else:
            raise ValueError(f"{file}: the tensor {name!r} is unexpected; {_WHAT}")
    return made


def _check_places(file: Path, given: Mapping[str, Tensor], width: int) -> None:
    """Refuse places that are not the official ones: the network computes them."""
    for name in _PLACES:
        places = given.get(name)
        if places is None:
            continue
        fits = places.ndim == 3 and places.shape[1:] == (1, width)
        wanted = sines(torch.arange(len(places)), width) if fits else None
        if wanted is None or not torch.allclose(places[:, 0].float(), wanted, atol=2e-3):
            raise ValueError(
                f"{file}: the tensor {name!r} is not the official one (sines and cosines of the "
                "places)"
            )
