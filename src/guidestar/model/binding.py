"""Turn names of classes, or prompts, into the conditions of a model's networks."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ..core.denoiser import Condition, Denoiser
from ..core.passes import Net
from .protocols import ClassEncoder, Encoder, PartEncoder
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
    if model.told_by_text:
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
    if not isinstance(encoder, ClassEncoder) or not encoder.classes or name == "":
        return name
    index = encoder.index(name)
    return encoder.classes[index] if encoder.index(encoder.classes[index]) == index else index


def net_of(
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
        if negative not in (None, ""):
            raise ValueError(
                f"the model {model.name!r} takes no condition, so no negative either; leave it out"
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
    return Net(
        denoiser=denoiser,
        cond=cond if cond is None or isinstance(cond, Condition) else encode(list(cond)),
        null=None if null is None else null.to(model.device),
        negative=None if negative in (None, "") else encode([negative]),
        encode=encode,
        part=part if only and not isinstance(cond, Condition) else None,
    )
