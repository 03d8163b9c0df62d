"""What a model is told: names of classes, or prompts, as its networks take them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch

from ..core.denoiser import Condition, Denoiser
from ..core.passes import Net

Names = str | int | Sequence[str | int]


def names_of(
    model: Any, cond: Names | None, count: int, *, note: bool = True
) -> tuple[str | int, ...] | None:
    """Return the condition of each of ``count`` samples of a `Model`.

    ``note=False``, where a run's names are asked for again, does not warn of an empty prompt.

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
        _check_prompts(model, names, note)
    names = [_canonical(model, n) for n in names]
    return tuple(names if len(names) == count else names * count)


def _check_prompts(model: Any, names: Sequence[str | int], note: bool) -> None:
    wordless = next((n for n in names if not isinstance(n, str)), None)
    if wordless is not None:
        raise ValueError(
            f"the model {model.name!r} is told by a prompt, not by a class; write what you want "
            f"to see in place of {wordless!r}"
        )
    if note and any(not n.strip() for n in names):  # type: ignore[union-attr]
        warnings.warn(
            "an empty prompt asks for nothing: its samples are unconditional", stacklevel=4
        )


def _canonical(model: Any, name: str | int) -> str | int:
    """Name a class by its name, or by its index where two share a name."""
    if not model.classes or name == "":
        return name
    index = model.encoder.index(name)
    return model.classes[index] if model.encoder.index(model.classes[index]) == index else index


def net_of(
    model: Any,
    denoiser: Denoiser,
    encoder: Any,
    cond: Sequence[str | int] | Condition | None,
    negative: str | int | None,
) -> Net:
    """Bind one of a `Model`'s denoisers to what is asked for, encoded by its own encoder.

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

    def part(name: str) -> Condition:
        return encode([encoder.only(n, name) for n in cond or ()])

    null = encoder.null(1)
    return Net(
        denoiser=denoiser,
        cond=cond if cond is None or isinstance(cond, Condition) else encode(list(cond)),
        null=None if null is None else null.to(model.device),
        negative=None if negative in (None, "") else encode([negative]),
        encode=encode,
        part=part if hasattr(encoder, "only") and not isinstance(cond, Condition) else None,
    )
