"""DiT from the state dict that its authors published, as Diffusers' DiTTransformer2DModel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from torch import Tensor

from ..core.levels import VP
from ..diffusers.read.encoders import ClassLabels
from ..diffusers.read.network import denoiser
from ..diffusers.read.safetensors_io import fill
from ..diffusers.read.scheduler import Process
from ..diffusers.read.vae import read_decoder
from ..io.documents import JSONObject
from ..model.model import Model
from .state_dicts import read_state_dict

_HEADS = {1152: 16, 1024: 16, 768: 12, 384: 6}
"""Heads of attention by width, of the published sizes XL, L, B and S."""


def dit_model(
    path: str | Path,
    *,
    vae: str | Path | None = None,
    heads: int | None = None,
    classes: Sequence[str] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Model:
    """Read an official DiT checkpoint as a model of latents.

    Its default guidance is that of the authors' script, ``cfg(4, channels=3)``: only three of the
    four channels are guided.

    Args:
        path: the state dict (``.pt``, read without running code, or ``.safetensors``).
        vae: a folder of an AutoencoderKL (the authors used sd-vae-ft-ema); without it, samples stay
            latents.
        heads: of attention; by default those of the published network of this width.
        classes: their names, in order; by default their numbers.
        dtype: of the network's parameters.

    Raises:
        ValueError: a file is missing or damaged, or a tensor does not fit; it is named.

    References:
        Scalable Diffusion Models with Transformers, https://arxiv.org/abs/2212.09748
    """
    net = read_dit(path, heads=heads, dtype=dtype)
    count, side = net.config["num_embeds_ada_norm"], net.config["sample_size"]
    names = tuple(classes or map(str, range(count)))
    if len(names) != count:
        raise ValueError(f"{len(names)} names were given for {count} classes; give one for each")
    return Model(
        name=Path(path).stem,
        denoiser=denoiser(net, Process(schedule=VP.linear(), predicts="eps")),
        schedule=VP.linear(),
        shape=(net.config["in_channels"], side, side),
        encoder=ClassLabels(classes=names, null_index=count),
        decode=(lambda x: x) if vae is None else read_decoder(vae),
        defaults={"guidance": "cfg(4, channels=3)"},
    )


def read_dit(
    path: str | Path, *, heads: int | None = None, dtype: torch.dtype = torch.float32
) -> DiTTransformer2DModel:
    """Read an official state dict into a DiTTransformer2DModel, of the sizes that the tensors have.

    Raises:
        ValueError: the file is missing or damaged, or a tensor does not fit.
    """
    file, given = Path(path), read_state_dict(path)
    sizes = _sizes(file, given, heads)
    _check_shapes(file, given, _official(sizes))
    net = DiTTransformer2DModel(**sizes)
    fill(net, file, _rename(given, sizes["num_layers"]), dtype)
    _check_places(file, given, net)
    for block in net.transformer_blocks:
        # The authors' frequencies are 10000^(−k/128), k < 128; Diffusers' class spaces them over
        # 127.
        setattr(block.get_submodule("norm1.emb.time_proj"), "downscale_freq_shift", 0)  # noqa: B010
    return net


def _need(file: Path, given: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in given:
        raise ValueError(
            f"{file}: the tensor {name!r} is missing; is this DiT's official state dict?"
        )
    return given[name]


def _shape(file: Path, given: Mapping[str, Tensor], name: str, *meaning: str) -> tuple[int, ...]:
    """Return the sizes of a tensor, of as many dimensions as are named."""
    shape = tuple(_need(file, given, name).shape)
    if len(shape) != len(meaning) or 0 in shape:
        raise ValueError(
            f"{file}: the tensor {name!r} has the shape {shape}, but [{', '.join(meaning)}] was "
            "expected; is this DiT's official state dict?"
        )
    return shape


def _sizes(file: Path, given: Mapping[str, Tensor], heads: int | None) -> JSONObject:
    width, channels, patch, _ = _shape(
        file, given, "x_embedder.proj.weight", "width", "channels", "patch", "patch"
    )
    _, places, _ = _shape(file, given, "pos_embed", "1", "places", "width")
    outputs, _ = _shape(file, given, "final_layer.linear.weight", "patch² · channels", "width")
    rows, _ = _shape(file, given, "y_embedder.embedding_table.weight", "classes + 1", "width")
    heads = heads or _HEADS.get(width)
    if heads is None or width % heads:
        raise ValueError(
            f"{file}: a width of {width} is none of the published ones "
            f"({', '.join(map(str, _HEADS))}); give heads=, a divisor of it"
        )
    return {
        "num_attention_heads": heads,
        "attention_head_dim": width // heads,
        "in_channels": channels,
        "out_channels": outputs // patch**2,
        "num_layers": max(1, len({k.split(".")[1] for k in given if k.startswith("blocks.")})),
        "sample_size": round(places**0.5) * patch,
        "patch_size": patch,
        "num_embeds_ada_norm": rows - 1,
        "norm_eps": 1e-6,
    }


_BLOCK = {
    "attn.qkv": (3, 1),
    "attn.proj": (1, 1),
    "mlp.fc1": (4, 1),
    "mlp.fc2": (1, 4),
    "adaLN_modulation.1": (6, 1),
}
"""The weights of a block, in widths."""


def _official(sizes: JSONObject) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of the official state dict."""
    width, patch = sizes["num_attention_heads"] * sizes["attention_head_dim"], sizes["patch_size"]
    weights = {
        "x_embedder.proj": (width, sizes["in_channels"], patch, patch),
        "t_embedder.mlp.0": (width, 256),
        "t_embedder.mlp.2": (width, width),
        "y_embedder.embedding_table": (sizes["num_embeds_ada_norm"] + 1, width),
        "final_layer.adaLN_modulation.1": (2 * width, width),
        "final_layer.linear": (patch**2 * sizes["out_channels"], width),
        **{
            f"blocks.{i}.{name}": (out * width, into * width)
            for i in range(sizes["num_layers"])
            for name, (out, into) in _BLOCK.items()
        },
    }
    tensors = {
        f"{name}.{kind}": shape if kind == "weight" else shape[:1]
        for name, shape in weights.items()
        for kind in _kinds(name)
    }
    return {"pos_embed": (1, (sizes["sample_size"] // patch) ** 2, width), **tensors}


def _kinds(name: str) -> tuple[str, ...]:
    return ("weight",) if name == "y_embedder.embedding_table" else ("weight", "bias")


def _check_shapes(
    file: Path, given: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]]
) -> None:
    for name, shape in wanted.items():
        if tuple(_need(file, given, name).shape) != shape:
            raise ValueError(
                f"{file}: the tensor {name!r} has the shape {tuple(given[name].shape)}, but the "
                f"other tensors need {shape}"
            )
    other = next((k for k in given if k not in wanted), None)
    if other is not None:
        raise ValueError(
            f"{file}: the tensor {other!r} is unexpected; DiT's official state dict has none of "
            "that name"
        )


_OUTSIDE = {
    "x_embedder.proj": "pos_embed.proj",
    "final_layer.adaLN_modulation.1": "proj_out_1",
    "final_layer.linear": "proj_out_2",
}
_SHARED = {
    "t_embedder.mlp.0": "timestep_embedder.linear_1",
    "t_embedder.mlp.2": "timestep_embedder.linear_2",
    "y_embedder.embedding_table": "class_embedder.embedding_table",
}
_INSIDE = {
    "adaLN_modulation.1": "norm1.linear",
    "attn.proj": "attn1.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
}


def _rename(given: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Name tensors as Diffusers does: every block has its copy of the embeddings, and queries, keys
    and values apart.
    """
    names: dict[str, list[str]] = {}
    for old, new in _OUTSIDE.items():
        names[old] = [new]
    for old, new in _SHARED.items():
        names[old] = [f"transformer_blocks.{i}.norm1.emb.{new}" for i in range(depth)]
    for i in range(depth):
        names |= {
            f"blocks.{i}.{old}": [f"transformer_blocks.{i}.{new}"] for old, new in _INSIDE.items()
        }
    made = {
        f"{new}.{kind}": given[f"{old}.{kind}"]
        for old, news in names.items()
        for new in news
        for kind in _kinds(old)
    }
    for i in range(depth):
        for kind in ("weight", "bias"):
            parts = given[f"blocks.{i}.attn.qkv.{kind}"].chunk(3)
            made |= {
                f"transformer_blocks.{i}.attn1.to_{n}.{kind}": part
                for n, part in zip("qkv", parts, strict=True)
            }
    return made


def _check_places(file: Path, given: Mapping[str, Tensor], net: DiTTransformer2DModel) -> None:
    """Refuse learned position embeddings: the network computes sines and cosines."""
    if not torch.allclose(
        given["pos_embed"].float(), net.pos_embed.get_buffer("pos_embed").float(), atol=1e-5
    ):
        raise ValueError(
            f"{file}: the tensor 'pos_embed' is not the official one (sines and cosines of the "
            "places)"
        )
