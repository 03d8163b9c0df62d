"""Turn names of classes, or prompts, into the conditions of a model's networks."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core.denoiser import Condition, Denoiser
from ..core.passes import Net
from ..guidance import Guidance
from ..networks.conditions import Conditions
from ..networks.lengths import FRAMES
from .blame import blaming
from .protocols import Encoder, IndexEncoder, LatentDecoder, NamesClasses, PartEncoder, ScaleInput
from .request import Names

if TYPE_CHECKING:
    from .model import Model


def names_of(model: Model, cond: Names | None, count: int) -> tuple[str | int, ...] | None:
    """Return the condition of each of ``count`` samples of a `Model`.

    Raises:
        ValueError: an unknown name, or neither one nor ``count`` of them.
    """
    if cond is None:
        return None
    if model.encoder is None:
        raise ValueError(f"the model {model.name!r} is unconditional; leave cond out")
    names = [cond] if isinstance(cond, str | int) else list(cond)
    if len(names) not in (1, count):
        raise ValueError(
            f"{len(names)} conditions were given for {count} samples; give 1, or one for each"
        )
    if model.takes_prompts:
        _check_prompts(model, names)
    names = [_canonical(model.encoder, n) for n in names]
    return tuple(names if len(names) == count else names * count)


def _check_prompts(model: Model, names: Sequence[str | int]) -> None:
    wordless = next((n for n in names if not isinstance(n, str)), None)
    if wordless is not None:
        raise ValueError(
            f"the model {model.name!r} takes text prompts, not class names; describe the picture "
            f"in words in place of {wordless!r}"
        )
    if any(not str(n).strip() for n in names):
        warnings.warn(
            "a prompt is empty, so its samples are unconditional; describe what they should show",
            stacklevel=6,
        )


def _canonical(encoder: Encoder, name: str | int) -> str | int:
    """Name a class by its name, or by its index where two share a name."""
    if isinstance(encoder, Conditions) and encoder.length is not None:
        return encoder.canonical(name)
    if not isinstance(encoder, NamesClasses) or not encoder.classes or name == "":
        return name
    index = encoder.index(name)
    return encoder.classes[index] if encoder.index(encoder.classes[index]) == index else index


def nets_of(
    model: Model,
    expression: Guidance,
    cond: Sequence[str | int] | Condition | None,
    negative: str | int | None,
    scale: tuple[float, ...] | None,
) -> dict[str, Net]:
    """Bind a model's networks by name; conditions are encoded for those that are evaluated."""
    used = {"main", *(name for term in expression.terms for name in term.traits.nets)}
    everyone = {"main": (model.denoiser, model.encoder), **model.nets}
    nets = {
        name: _net_of(model, denoiser, encoder, cond, negative)
        if name in used
        else Net(denoiser=denoiser)
        for name, (denoiser, encoder) in everyone.items()
    }
    return {**nets, "main": _with_scale(model, nets["main"], scale)}


def index_of(model: Model) -> Callable[[str | int], int] | None:
    """Return what turns the name of a class into its index, if there is such a thing."""
    if isinstance(model.encoder, Conditions) and not model.encoder.indexed:
        return None
    indexed = IndexEncoder if model.classifiers else NamesClasses
    return model.encoder.index if isinstance(model.encoder, indexed) else None


@blaming("cond")
def target_of(model: Model, names: Sequence[str | int] | None) -> Tensor | None:
    """Return the class of each sample ``[B]`` for classifiers; None where there is none."""
    index = index_of(model)
    if names is None or index is None or "" in names:
        return None
    return torch.tensor([index(n) for n in names])


def guides_of(model: Model) -> dict[str, object]:
    """Return the classifiers as a run uses them: a CLIP of clean pictures sees latents through the
    decoder.
    """
    vae = model.decode.vae if isinstance(model.decode, LatentDecoder) else None
    if vae is None:
        return dict(model.classifiers)
    from ..diffusers.read.vae import ThroughDecoder

    guides: dict[str, Any] = dict(model.classifiers)
    return {
        name: ThroughDecoder(vae, c) if hasattr(c, "embed_text") and not c.noise_aware else c
        for name, c in guides.items()
    }


def _net_of(
    model: Model,
    denoiser: Denoiser,
    encoder: Encoder | None,
    cond: Sequence[str | int] | Condition | None,
    negative: str | int | None,
) -> Net:
    """Bind one of a `Model`'s denoisers to the conditions of a run, encoded by its own encoder.

    Raises:
        ValueError: a negative, of a denoiser that takes no condition.
    """
    if encoder is None:
        with blaming("negative"):
            if negative not in (None, ""):
                raise ValueError(
                    f"the model {model.name!r} takes no condition, so no negative either; leave it "
                    "out"
                )
        return Net(denoiser=denoiser)

    @torch.no_grad()
    def encode(names: Sequence[str | int]) -> Condition:
        return encoder.encode(names).to(model.device)

    only = encoder.only if isinstance(encoder, PartEncoder) else None

    def part(name: str) -> Condition:
        assert only is not None
        return encode([only(n, name) for n in cond or ()])

    null = encoder.null(1)
    with blaming("cond"):
        encoded = cond if cond is None or isinstance(cond, Condition) else encode(list(cond))
    with blaming("negative"):
        opposite = None if negative in (None, "") else encode([negative])
    net = Net(
        denoiser=denoiser,
        cond=encoded,
        null=None if null is None else null.to(model.device),
        negative=opposite,
        encode=encode,
        part=part if only and not isinstance(cond, Condition) else None,
    )
    return _with_lengths(net)


def _with_lengths(net: Net) -> Net:
    """Give every pass the lengths of the run's samples: a motion without its condition, or with
    another, is as long.
    """
    if net.cond is None or FRAMES not in net.cond:
        return net
    frames = net.cond[FRAMES]

    def put(cond: Condition | None) -> Condition | None:
        if cond is None or cond.batch not in (1, len(frames)):
            return cond
        return Condition({**cond.repeat(len(frames)), FRAMES: frames})

    encode, part = net.encode, net.part
    return replace(
        net,
        null=put(net.null),
        negative=put(net.negative),
        encode=None if encode is None else lambda names: put(encode(names)),
        part=None if part is None else lambda name: put(part(name)),
    )


SCALE = "guidance_scale"
"""The name of a student's scale among the conditions of its network."""


def find_scale(denoiser: object) -> ScaleInput | None:
    """Return what embeds the guidance scale of a student; None of networks that take none."""
    while denoiser is not None:
        found = getattr(denoiser, "scale", None)
        if isinstance(found, ScaleInput):
            return found
        denoiser = getattr(denoiser, "net", None)
    return None


@blaming("scale")
def scale_of(
    model: Model, scale: float | Sequence[float] | None, count: int | None = None
) -> tuple[float, ...] | None:
    """Return the guidance scale of each sample, where a student takes it as an input.

    Args:
        model: whose main network it is for.
        scale: one number, or one for each sample; None for the default.
        count: how many samples there are; None where that is not known yet.

    Returns:
        ``count`` numbers, or one; None where the network takes no scale.

    Raises:
        ValueError: the network takes none, or one is outside the range of its training.
    """
    embed = find_scale(model.denoiser)
    if embed is None:
        if scale is not None:
            raise ValueError(
                f"the model {model.name!r} takes no scale as an input; write it in the guidance, "
                f"e.g. cfg({scale if isinstance(scale, int | float) else 2:g})"
            )
        return None
    given = [embed.default] if scale is None else scale
    scales = [float(given)] if isinstance(given, int | float) else [float(s) for s in given]
    strange = next((s for s in scales if not embed.low <= s <= embed.high), None)
    if strange is not None:
        raise ValueError(
            f"the student {model.name!r} was trained for scales from {embed.low:g} to "
            f"{embed.high:g}, not for {strange:g}"
        )
    if count is not None and len(scales) not in (1, count):
        raise ValueError(
            f"{len(scales)} scales were given for {count} samples; give one, or one for each"
        )
    return tuple(scales * count) if count is not None and len(scales) == 1 else tuple(scales)


def _with_scale(model: Model, net: Net, scale: tuple[float, ...] | None) -> Net:
    """Let the condition of a network carry the scale; its null and negative have the scale 1."""
    if scale is None:
        return net
    put = lambda cond, value: None if cond is None else add_scale(cond, value, model.device)
    encode, part = net.encode, net.part
    return replace(
        net,
        cond=put(net.cond, scale),
        null=put(net.null, (1.0,)),
        negative=put(net.negative, (1.0,)),
        encode=None if encode is None else lambda names: put(encode(names), (1.0,)),
        part=None if part is None else lambda name: put(part(name), scale),
    )


def add_scale(cond: Condition, scale: Sequence[float], device: torch.device) -> Condition:
    """Add the guidance scale, one number or one for each sample, to a condition."""
    values = torch.tensor(scale, dtype=torch.float32, device=device)
    batch = max(cond.batch, len(values))
    return Condition({**cond.repeat(batch), SCALE: values.expand(batch)})
