"""Build the fresh networks of a recipe's parts, each with its objective and targets."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...core.rng import Draw
from ...data.latents import pictures_of
from ...data.source import Column, Source
from ...diffusers.read.clip import find_text
from ...diffusers.read.encoders import TextEncoder, is_masked
from ...diffusers.read.network import denoiser as bridged
from ...io.documents import JSONObject
from ...motion.body import SHORTEST
from ...networks import from_config as networks
from ...networks.classifier import Classifier
from ...networks.condition_encoders import (
    ClassEncoder,
    Conditions,
    LabelEncoder,
    VectorEncoder,
    check_condition_name,
)
from ...networks.conditional import ConditionalModel
from ...networks.cpu_fastpath import plain_attention
from ...networks.lengths import FRAMES, LengthEncoder
from ...networks.low_resolution import LOW, LowResolution
from ..objectives import classification as supervised
from ..objectives.denoising import Conditional
from ..objectives.objective import Built, Objective
from ..objectives.super_resolution import SuperResolution
from ..recipe.parts import (
    OF_PICTURES,
    PARTS,
    AutoencoderPart,
    ClassifierPart,
    CLIPPart,
    DecoderPart,
    NetworkPart,
    VisionPart,
)
from ..recipe.schema import Recipe
from ..recipe.tables import ConditionSpec
from .autoencoders import build_autoencoder, build_decoder
from .clips import build_clip, build_noisy_clip, fresh_clip
from .limits import check_batch, copies_of, within_memory
from .schedules import denoising, objective_of, process


def chosen_conditions(recipe: Recipe, columns: Mapping[str, Column]) -> dict[str, ConditionSpec]:
    """Return the conditions of the model: those of the recipe, or every column; lengths always.

    Raises:
        ValueError: the recipe names a column that the data lack.
    """
    lengths = {name: ConditionSpec() for name, c in columns.items() if c.kind == "length"}
    chosen = (
        {name: ConditionSpec() for name in columns}
        if recipe.conditions is None
        else {**recipe.conditions, **lengths}
    )
    strange = [name for name in chosen if name not in columns]
    if strange:
        raise ValueError(
            f"the recipe's condition {strange[0]!r} is not a column of the data, which "
            f"{'are ' + ', '.join(columns) if columns else 'have none'}; correct [conditions]"
        )
    for name in chosen:
        check_condition_name(name)
    return chosen


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
    return _build_classifier(recipe, spec, source, noise_aware=part == "classifier")


def _build_model(recipe: Recipe, spec: NetworkPart, source: Source, out: Path | None) -> Built:
    specs, p = chosen_conditions(recipe, source.columns), process(recipe)
    columns = {name: source.columns[name] for name in specs}
    texts = {
        name: _text(recipe, name, s, source, out)
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
        name: texts[name] if name in texts else _encode(columns[name], name, net, source)
        for name in specs
    }
    encoder = Conditions({**parts, **_low_resolution(recipe, net, source)})
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
        prepare=lambda targets: {n: p.rows(targets[n]) for n, p in parts.items()},  # type: ignore[operator]
    )


def _low_resolution(recipe: Recipe, net: nn.Module, source: Source) -> dict[str, nn.Module]:
    """Return the condition of a super-resolution stage, by its name; none of other models.

    Raises:
        ValueError: the size of the smaller pictures does not fit the data.
    """
    spec, shape = recipe.upscale, source.shape
    if spec is None:
        return {}
    if len(shape) != 3 or shape[1] != shape[2] or shape[1] % spec.size or shape[1] == spec.size:
        raise ValueError(
            f"upscale.size: samples of {list(shape)} must be a multiple of the smaller pictures, "
            f"and larger, not {spec.size} pixels a side"
        )
    return {
        LOW: LowResolution(
            channels=shape[0],
            size=spec.size,
            to=shape[1],
            width=_condition_width(net),
            largest=spec.augmentation,
            droppable=spec.dropout > 0,
        )
    }


def _text(
    recipe: Recipe, name: str, spec: ConditionSpec, source: Source, out: Path | None
) -> TextEncoder:
    if spec.encoder is None:
        raise ValueError(
            f"the condition {name!r} is text: name the CLIP that encodes it, "
            f'conditions.{name}.encoder = "clip" (the recipe\'s own), or a name or folder'
        )
    if spec.encoder == "clip" and recipe.clip is not None:
        clip = fresh_clip(recipe.clip, "clip", pictures_of(source), out)
        return TextEncoder(
            clip.text.requires_grad_(False), clip.tokenizer, layer=spec.layer, output=spec.output
        )
    found = find_text(spec.encoder)
    return TextEncoder(found.text, found.tokenizer, layer=spec.layer, output=spec.output)


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
    image = len(shape) == 3
    if spec.network == "unet":
        if not image or shape[1] != shape[2] or shape[1] % 2 ** (len(spec.widths or ()) - 1):
            halvings = len(spec.widths or ()) - 1
            raise ValueError(
                f"a unet of {halvings + 1} widths halves square images {halvings} times, which "
                f"samples of {list(shape)} do not allow; use other widths, or network = "
                '"sequence"'
            )
        return networks.unet(
            size=shape[1],
            channels=shape[0],
            widths=spec.widths or (),
            layers=spec.layers,
            groups=spec.groups,
            head=spec.head,
            embedded=embedded,
            text_width=text_width,
            beside=beside,
        )
    if spec.network == "sequence":
        if image:
            raise ValueError(
                'network = "sequence" is for vectors and sequences [T, C], not for samples of '
                f"{list(shape)}"
            )
        from ...networks.sequence import SequenceTransformer

        more = {} if text_width is None else {"cross_attention_dim": text_width}
        length = None if len(shape) == 1 else shape[0]
        return SequenceTransformer(
            channels=shape[-1],
            length=length,
            width=spec.width,
            depth=spec.layers,
            heads=spec.heads,
            patch=spec.patch,
            **more,
        )
    if spec.network == "motion":
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
    if ":" in spec.network:
        return networks.from_callable(spec.network, spec.config)
    filled = _filled(spec, shape, columns, embedded, text_width, outputs)
    if beside:
        filled = {**filled, "in_channels": shape[0] + beside}
    net = networks.own_dropout_off(networks.from_diffusers(spec.network, filled))
    return networks.adaln_zero(net) if spec.network == "DiTTransformer2DModel" else net


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


def _encode(column: Column, name: str, net: nn.Module, source: Source) -> nn.Module:
    if type(net).__name__ == "DiTTransformer2DModel":
        if column.kind != "class":
            raise ValueError(
                f"DiT takes a class, not the {column.kind} {name!r}; leave it out of the "
                "conditions, or use another network"
            )
        return LabelEncoder(column.classes, _null_of(net, column))
    if column.kind == "length":
        _check_masked(net, name)
        return LengthEncoder(column.width, SHORTEST)
    width = _condition_width(net)
    if column.kind == "class":
        return ClassEncoder(column.classes, width)
    mean, std = _statistics(source, name, column.width)
    return VectorEncoder(column.width, width, mean, std)


def _check_masked(net: nn.Module, name: str) -> None:
    """Refuse a network that does not take the mask of frames."""
    if FRAMES not in inspect.signature(net.forward).parameters:
        raise ValueError(
            f"a {type(net).__name__} takes no {FRAMES!r}, so it cannot tell motions from "
            f"their padding (the column {name!r}); "
            'write network = "motion", or add that argument'
        )


def _null_of(net: Any, column: Column) -> int | None:
    """Return the label that means no class in a DiT of more labels than there are classes.

    Raises:
        ValueError: it has fewer.
    """
    count = net.config["num_embeds_ada_norm"]
    if count < len(column.classes):
        raise ValueError(
            f"model.config: num_embeds_ada_norm must be at least the {len(column.classes)} classes "
            f"of the data, not {count}"
        )
    return None if count == len(column.classes) else count


def _condition_width(net: nn.Module) -> int:
    known = getattr(net, "condition_width", None)
    if isinstance(known, int):
        return known
    blocks = getattr(net, "config", {}).get("block_out_channels")
    if blocks:
        return 4 * blocks[0]
    raise ValueError(
        f"{type(net).__name__} has no attribute condition_width, the width of a condition's "
        "embedding; add it"
    )


def _statistics(
    source: Source, name: str, width: int, most: int = 4096
) -> tuple[list[float], list[float]]:
    if source.size is None:
        return [0.0] * width, [1.0] * width
    rows = torch.linspace(0, source.size - 1, min(most, source.size)).long().unique().tolist()
    values = torch.as_tensor(source.batch(rows, Draw(rows))[1][name]).double()
    return values.mean(0).tolist(), values.std(0, correction=0).clamp_min(1e-8).tolist()


def _build_classifier(
    recipe: Recipe, spec: ClassifierPart, source: Source, *, noise_aware: bool
) -> Built:
    name, column = classifier_column(spec, source.columns)
    p, times = process(recipe), denoising(recipe).levels
    what: JSONObject = {"classes": column.classes}
    if column.kind == "vector":
        centre, spread = _statistics(source, name, column.width)
        what |= {"outputs": column.width, "centre": centre, "spread": spread}
    shared = {
        "widths": spec.widths,
        "layers": spec.layers,
        "groups": 1 if len(source.shape) == 1 else spec.groups,
        "dropout": spec.dropout,
        "noise_aware": noise_aware,
    }
    channels = source.shape[0] if len(source.shape) == 3 else source.shape[-1]
    if len(source.shape) == 3:
        kind: Any = Classifier
    else:
        from ...networks.sequence_classifier import SequenceClassifier as kind
    copies = copies_of(spec.train)
    net = within_memory(lambda: kind(**what, channels=channels, **shared), copies)
    if not noise_aware:
        if column.kind != "class":
            raise ValueError(
                f"a judge predicts classes, and {name!r} is a {column.kind}; set judge.column"
            )
        objective: Objective = supervised.Classification(shift=spec.shift)
    else:
        objective = (
            supervised.NoisyClassification if column.kind == "class" else supervised.NoisyRegression
        )(schedule=p.schedule, levels=times)
    return Built(module=net, objective=objective, prepare=lambda targets: targets[name])


def classifier_column(spec: ClassifierPart, columns: Mapping[str, Column]) -> tuple[str, Column]:
    """Return the column that a classifier predicts.

    Raises:
        ValueError: there is no such column, or none of classes or vectors.
    """
    fit = [
        n
        for n, c in columns.items()
        if c.kind not in ("text", "length") and spec.column in (None, n)
    ]
    if not fit:
        wanted = (
            f"no class or vector {spec.column!r}"
            if spec.column
            else "no classes or vectors to predict"
        )
        raise ValueError(
            f"the data have {wanted}; their columns are "
            f"{', '.join(f'{n} ({c.kind})' for n, c in columns.items()) or 'none'}; correct "
            "column, or leave the part out"
        )
    return fit[0], columns[fit[0]]
