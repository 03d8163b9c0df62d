"""Build the fresh networks of a recipe's parts, each with its objective and targets."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from ...data.latents import pictures_of
from ...data.source import Column, Source
from ...diffusers.read.encoders import is_masked
from ...diffusers.read.network import denoiser as bridged
from ...io.documents import JSONObject
from ...networks import from_config as networks
from ...networks.conditional import ConditionalModel
from ...networks.conditions import Conditions
from ...networks.cpu_fastpath import plain_attention
from ...networks.low_resolution import LOW
from ..objectives.denoising import Conditional
from ..objectives.objective import Built, Objective
from ..objectives.super_resolution import SuperResolution
from ..recipe.parts import (
    OF_PICTURES,
    PARTS,
    AutoencoderPart,
    CLIPPart,
    DecoderPart,
    NetworkPart,
    VisionPart,
)
from ..recipe.schema import Recipe
from .autoencoders import build_autoencoder, build_decoder
from .classifiers import build_classifier
from .clips import build_clip, build_noisy_clip
from .conditions import build_encoder, build_text, chosen_conditions, low_resolution
from .limits import check_batch, copies_of, within_memory
from .schedules import objective_of, process


def source_of(part: str, source: Source) -> Source:
    """Return what a part learns from: the data as they are, or the pictures behind latents."""
    return pictures_of(source) if part in OF_PICTURES else source


def build_part(recipe: Recipe, part: str, source: Source, out: Path | None = None) -> Built:
    """Make a part's fresh network (weights from the recipe's seed), its objective, and its target.

    Args:
        recipe: the recipe.
        part: the part to build.
        source: its data.
        out: folder of the tokenizers, which are learned from the captions once.

    Raises:
        ValueError: network, conditions and data do not fit.
    """
    torch.manual_seed(recipe.seed + PARTS.index(part))
    spec, source = getattr(recipe, part), source_of(part, source)
    at_once = -(-spec.train.batch // spec.train.accumulate)
    size = 8 if spec.train.precision == "float64" else 4
    check_batch(at_once // int(os.environ.get("WORLD_SIZE", "1")), math.prod(source.shape) * size)
    if isinstance(spec, AutoencoderPart):
        return build_autoencoder(spec, source)
    if isinstance(spec, DecoderPart):
        return build_decoder(recipe, spec, source, out)
    if isinstance(spec, NetworkPart):
        return _build_model(recipe, spec, source, out)
    if isinstance(spec, CLIPPart):
        return build_clip(spec, part, source, out)
    if isinstance(spec, VisionPart):
        return build_noisy_clip(recipe, spec, source, out)
    return build_classifier(recipe, spec, source, noise_aware=part == "classifier")


def _build_model(recipe: Recipe, spec: NetworkPart, source: Source, out: Path | None) -> Built:
    specs, p = chosen_conditions(recipe, source.columns), process(recipe)
    columns = {name: source.columns[name] for name in specs}
    texts = {
        name: build_text(recipe, name, s, source, out)
        for name, s in specs.items()
        if columns[name].kind == "text"
    }
    widths = {t.width for t in texts.values()}
    if len(widths) > 1:
        raise ValueError(
            f"the text encoders of one model must be of one width, not {sorted(widths)}"
        )
    embedded = recipe.upscale is not None or any(c.kind != "text" for c in columns.values())
    beside = source.shape[0] if recipe.upscale else 0
    text_width = next(iter(widths), None)

    def make() -> nn.Module:
        return _network(
            spec,
            source.shape,
            columns,
            embedded=embedded,
            text_width=text_width,
            outputs=2 if recipe.objective.variance == "learned" else 1,
            beside=beside,
        )

    net = make() if ":" in spec.network else within_memory(make, copies_of(spec.train))
    if (
        not torch.cuda.is_available() and spec.train.precision != "float64"
    ):  # its softmax is in float32
        plain_attention(net)
    for text in texts.values():
        text.mask = is_masked(net)
    parts: dict[str, nn.Module] = {
        name: texts[name] if name in texts else build_encoder(columns[name], name, net, source)
        for name in specs
    }
    encoder = Conditions({**parts, **low_resolution(recipe, net, source)})
    denoiser = bridged(net, p, beside)
    rates = {
        name: spec.condition_dropout if s.dropout is None else s.dropout
        for name, s in specs.items()
    }
    low = recipe.upscale
    objective: Objective = Conditional(
        denoising=objective_of(recipe, source),
        dropout={**rates, **({LOW: low.dropout} if low else {})},
        joint=recipe.joint_dropout if low is None or low.dropout else 0.0,
        always=[name for name, column in columns.items() if column.kind == "length"],
    )
    if low is not None:
        objective = SuperResolution(conditional=objective, size=low.size, largest=low.augmentation)
    module = ConditionalModel(denoiser, encoder)
    return Built(
        module=module,
        objective=objective,
        prepare=Conditions(parts).rows,
    )


def _network(
    spec: NetworkPart,
    shape: tuple[int, ...],
    columns: Mapping[str, Column],
    *,
    embedded: bool,
    text_width: int | None,
    outputs: int = 1,
    beside: int = 0,
) -> nn.Module:
    if spec.network == "unet":
        return _unet(spec, shape, embedded=embedded, text_width=text_width, beside=beside)
    if spec.network == "sequence":
        return _sequence(spec, shape, text_width)
    if spec.network == "motion":
        return _motion(spec, shape, text_width)
    if ":" in spec.network:
        return networks.from_callable(spec.network, spec.config)
    filled = _filled(spec, shape, columns, embedded, text_width, outputs)
    if beside:
        filled = {**filled, "in_channels": shape[0] + beside}
    net = networks.own_dropout_off(networks.from_diffusers(spec.network, filled))
    return networks.adaln_zero(net) if spec.network == "DiTTransformer2DModel" else net


def _unet(
    spec: NetworkPart,
    shape: tuple[int, ...],
    *,
    embedded: bool,
    text_width: int | None,
    beside: int,
) -> nn.Module:
    widths = spec.widths or ()
    halvings = len(widths) - 1
    if len(shape) != 3 or shape[1] != shape[2] or shape[1] % 2**halvings:
        raise ValueError(
            f"a unet of {halvings + 1} widths halves square images {halvings} times, which "
            f"samples of {list(shape)} do not allow; use other widths, or network = "
            '"sequence"'
        )
    return networks.unet(
        size=shape[1],
        channels=shape[0],
        widths=widths,
        layers=spec.layers,
        groups=spec.groups,
        head=spec.head,
        embedded=embedded,
        text_width=text_width,
        beside=beside,
    )


def _sequence(spec: NetworkPart, shape: tuple[int, ...], text_width: int | None) -> nn.Module:
    if len(shape) == 3:
        raise ValueError(
            'network = "sequence" is for vectors and sequences [T, C], not for samples of '
            f"{list(shape)}"
        )
    from ...networks.sequence import SequenceTransformer

    more = {} if text_width is None else {"cross_attention_dim": text_width}
    return SequenceTransformer(
        channels=shape[-1],
        length=None if len(shape) == 1 else shape[0],
        width=spec.width,
        depth=spec.layers,
        heads=spec.heads,
        patch=spec.patch,
        **more,
    )


def _motion(spec: NetworkPart, shape: tuple[int, ...], text_width: int | None) -> nn.Module:
    if len(shape) != 2:
        raise ValueError(
            f'network = "motion" is for sequences [T, C], not for samples of {list(shape)}'
        )
    from ...networks.motion import MotionTransformer

    return MotionTransformer(
        channels=shape[1],
        length=shape[0],
        width=spec.width,
        depth=spec.layers,
        heads=spec.heads,
        text_width=text_width,
    )


def _filled(
    spec: NetworkPart,
    shape: tuple[int, ...],
    columns: Mapping[str, Column],
    embedded: bool,
    text_width: int | None,
    outputs: int,
) -> JSONObject:
    """Return a Diffusers network's settings, completed by those that the data determine."""
    config: JSONObject = {"in_channels": shape[0], "sample_size": shape[-1]}
    if spec.network.startswith("UNet2D"):
        config |= {"out_channels": outputs * shape[0]} | (
            {"class_embed_type": "identity"} if embedded else {}
        )
        config |= {} if text_width is None else {"cross_attention_dim": text_width}
    if spec.network == "PixArtTransformer2DModel":
        config |= {
            "out_channels": outputs * shape[0],
            "use_additional_conditions": False,
            "caption_channels": text_width,
        }
        config |= {
            "cross_attention_dim": spec.config.get("num_attention_heads", 16)
            * spec.config.get("attention_head_dim", 72)
        }
    if spec.network == "DiTTransformer2DModel":
        config |= {
            "out_channels": outputs * shape[0],
            "num_embeds_ada_norm": max([len(c.classes) for c in columns.values()] or [1]),
        }
    return {**config, **spec.config}
